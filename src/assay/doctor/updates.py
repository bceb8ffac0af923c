"""How PPO and the group methods learn from a batch: who drew it, the steps on it, and the critic.

sampler → ratio before the first step → gradient and step → ratio after it; values beside them
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from assay.doctor.data import percent
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.kl import START_KL, first_kl, length
from assay.doctor.log import SAMPLING, Log
from assay.doctor.window import CONFIDENCE, LATE, bounds, text, together
from assay.statistics import wilson

SAMPLER_DIFFERS = Mode(
    49,
    "sampler-differs",
    "machine",
    "Sampler and trainer disagree",
    "Answers are drawn by other weights, another precision or another engine than the one that learns from them.",
    "Send the trainer's weights to the sampler before every batch, compute in the same precision, or weigh tokens by "
    "min(π/π_sampler, cap): `importance_cap: 2.0`.",
    ("negative-kl", "ratio-not-one", "kl-before-training", "ratio-spikes", "kl-blow-up", "entropy-out-of-bounds"),
)
RATIO_NOT_ONE = Mode(
    30,
    "ratio-not-one",
    "policy",
    "The ratio is not 1 before the first step",
    "The same tokens get other probabilities when the policy is trained than when their old ones were computed.",
    "Use the same temperature, mask, positions and number format in both, with dropout off; if the sampler is another "
    "program, compute the old log-probabilities with the trainer.",
    ("ratio-spikes", "kl-blow-up", "entropy-out-of-bounds"),
)
NOTHING_MOVES = Mode(
    26,
    "nothing-moves",
    "policy",
    "Nothing moves: loss and KL stay at 0",
    "No update reaches the policy, or nothing in the reward tells one answer from another.",
    "Follow the branch that the finding names. A loss of 0.0000 alone is no fault: at a ratio of 1 the advantages "
    "cancel, and the gradient does not.",
    ("bad-critic",),
)
NOISE = ("ratio-spikes", "kl-blow-up", "entropy-out-of-bounds")
"""What rewards that are all alike bring about: advantages are scaled to a deviation of 1, be they noise and no more."""
RATIO_SPIKES = Mode(
    34,
    "ratio-spikes",
    "policy",
    "The policy jumps within one batch",
    "The steps are so long that the policy leaves the one that drew the batch, and its samples say little about it.",
    "Lower optim.learning_rate tenfold, take fewer inner_epochs, and keep kl_stop (0.1) and max_grad_norm (1).",
    (
        "kl-blow-up",
        "entropy-out-of-bounds",
        "reward-hacking",
        "repetition",
        "never-stops",
        "empty-answers",
        "bad-critic",
    ),
)
BAD_CRITIC = Mode(
    35,
    "bad-critic",
    "policy",
    "The critic is worse than none",
    "The value model's errors vary more than the returns it predicts, so it adds noise to every advantage.",
    "Start it from the reward model, scale rewards to a deviation of 1, give it a value_warmup of 5 and a "
    "value_learning_rate of its own, higher than the policy's; or use the group stage, which needs no critic.",
    ("kl-blow-up", "entropy-out-of-bounds", "never-stops", "ratio-spikes"),
)
SAMPLER_KL = 1e-3
"""Nats per token: fp32 has 1e-13, eight-bit rollouts 2e-4 (docs/concepts.md)."""
TWICE = 1.0
"""|π/π_sampler − 1| of a single token; healthy runs of the embedded recipe have 1e-5 (docs/results/embedded.json)."""
FIRST_RATIO, CLIP = 0.05, 0.2
"""bfloat16 alone moves a ratio by a few hundredths; beyond PPO's usual clip tokens lose their gradient at once."""
NO_SPREAD, NO_GRADIENT = 1e-6, 1e-12
"""Deviation of scores (advantages.informative_groups) and norm of a gradient that count as none."""
ROUNDING = 1e-5
"""Nats per token: float32 in another order of sums stays below (stages/online.py, EXACT)."""
CLIPPED, DRIFT = 0.3, 0.5
"""Share of tokens that the clip cuts (the catalogue's), and KL(old‖new) per token; healthy: below 0.1 and 0.08."""
REPEATED = 0.01
"""Share of the steps that jump, beyond doubt: fewer of a long run are odd batches."""
WORTHLESS = -1.0
"""Explained variance of a critic whose errors vary twice as much as the returns: it leads the run astray by itself."""
CRITIC_STEPS = 20
"""The catalogue's: a new critic needs some to learn."""


@detects(SAMPLER_DIFFERS, kinds=SAMPLING)
def sampler_apart(log: Log) -> Iterator[Finding]:
    """The tokens of an iteration read by the policy that learns from them, where the run has compared the two.

    A stage that has ended reports the largest KL, and the worst token of all comparisons: the one before the first
    step, which no line of the log has, is among them. There the reference reads in the policy's place: where the two
    are not the same at the start, that one tells nothing of the sampler.
    """
    ended = {"sampler_kl", "sampler_error"} <= log.final.keys()
    if "val/sampler_kl" in log or not ended:
        apart = log["val/sampler_kl"]
        worst, above = float(apart.values.max()), apart.values > SAMPLER_KL
        since = f"first at step {apart.steps[above.argmax()]}; above {SAMPLER_KL:g} in {above.sum()} of {len(apart)}"
    else:
        worst, since = log.number("sampler_kl"), "the largest of all"
    if worst > SAMPLER_KL:
        seen = f"KL(sampler‖trainer) up to {worst:.2g} nats a token, {since} comparisons"
        yield Finding(SAMPLER_DIFFERS, log.where, seen, "red", "certain", change={"importance_cap": 2.0})
        return
    if "objective/kl" in log and abs(first_kl(log)) > START_KL:
        return
    if ended and log.number("sampler_error") > TWICE and log.config.get("rollout_weights") != "int8":
        seen = f"max |π/π_sampler − 1| {log.number('sampler_error'):.2g}, though their KL is at most {worst:.2g}"
        yield Finding(SAMPLER_DIFFERS, log.where, seen, "amber", "possible", change={"importance_cap": 2.0})


@detects(RATIO_NOT_ONE, kinds=SAMPLING)
def ratio_not_one(log: Log) -> Iterator[Finding]:
    first = log["policy/ratio_first_error"]
    usual = float(np.median(first.values))
    seen = f"max |ρ − 1| before an iteration's first step: {usual:.2g} (median of {len(first)} iterations)"
    if usual > CLIP:
        yield Finding(RATIO_NOT_ONE, log.where, seen, "red", "certain")
    elif usual > FIRST_RATIO:
        cause = f"{RATIO_NOT_ONE.cause[:-1]}, or the number format is too coarse for them."
        yield Finding(RATIO_NOT_ONE, log.where, seen, "amber", "possible", cause)


@detects(NOTHING_MOVES, kinds=SAMPLING)
def nothing_moves(log: Log) -> Iterator[Finding]:
    """Four causes, told apart by the scores' spread, the gradient, the step and the KL."""
    gradient = log["policy/grad_norm"].values
    if len(gradient) < LATE:
        raise Missing(f"the policy was updated in {len(gradient)} steps; {LATE} are needed")
    spread = log["objective/reward_std"].values.max() if "objective/reward_std" in log else math.nan
    signal = log["objective/groups_without_signal"].values.min() < 1 if grouped(log) else True
    if spread < NO_SPREAD or (not signal and gradient.max() < NO_GRADIENT):
        alike = (
            f"scores deviate by {spread:.2g} at most" if spread < NO_SPREAD else "in every group all scores are alike"
        )
        cause = "flat-reward: every answer gets the same reward, so none is better than another."
        cure = "Score two different answers by hand: the reward must tell them apart (constant-scores)."
        yield Finding(NOTHING_MOVES, log.where, alike, "red", "certain", cause, cure, brings=NOISE)
    elif gradient.max() < NO_GRADIENT:
        seen = f"gradient norm 0 in all {len(gradient)} steps; scores deviate by {spread:.2g}"
        cause = (
            "cut-graph: log-probabilities were detached, or come from a copy: the loss does not depend on the weights."
        )
        cure = "Compute the new log-probabilities with gradients on, from the model whose parameters the optimizer has."
        yield Finding(NOTHING_MOVES, log.where, seen, "red", "certain" if spread > 0 else "possible", cause, cure)
    else:
        yield from stands_still(log, gradient)


def stands_still(log: Log, gradient: NDArray[np.float64]) -> Iterator[Finding]:
    """There is a gradient: does a step follow from it, and a distance from the steps?"""
    kl = np.abs(log["objective/kl"].values[log["objective/kl"].steps > log["policy/grad_norm"].steps[0]])
    still = bool((kl < ROUNDING * (length(log) or 1)).all())
    moved = log["policy/update_rms"].values.max() if "policy/update_rms" in log else math.nan
    drift = log["policy/approxkl_avg"].values.max() if "policy/approxkl_avg" in log else math.nan
    seen = f"gradient norm {gradient.mean():.2g}, |KL| to the reference at most {kl.max(initial=0):.2g}"
    if moved == 0 or (math.isnan(moved) and still and drift < ROUNDING**2):
        rate = log["policy/learning_rate"].values.max() if "policy/learning_rate" in log else math.nan
        cause = "frozen-optimizer: there is a gradient, and the weights do not change."
        cure = "Keep optim.learning_rate above 0, and give the optimizer the parameters of the model that is used."
        sure = "certain" if moved == 0 else "likely"
        seen += f", step {moved:.2g}, learning rate {rate:.2g}"
        yield Finding(NOTHING_MOVES, log.where, seen, "red", sure, cause, cure, {"optim.learning_rate": 3e-6})
    elif still and drift > ROUNDING:
        cause = "aliased-reference: the policy moves and its reference moves with it, for they share their weights."
        cure = "Make the reference a copy of its own, or read it with the adapter off."
        seen += f", KL(old‖new) up to {drift:.2g} per token"
        yield Finding(NOTHING_MOVES, log.where, seen, "red", "certain", cause, cure)


def grouped(log: Log) -> bool:
    """Whether answers are compared within groups of several."""
    return "objective/groups_without_signal" in log and log.config.get("group_size") != 1


@detects(RATIO_SPIKES, kinds=SAMPLING)
def ratio_spikes(log: Log) -> Iterator[Finding]:
    """Tokens cut by the clip and a drift within the batch, together; or the clip alone, again and again.

    One step may be of one odd batch: it is told, and not held against the run.
    """
    clipped, drift = together(log, "policy/clipfrac_avg", "policy/approxkl_avg")
    steps = len(clipped)
    narrow = log.config.get("ratio", "token") != "token" or (log.config.get("clip") or CLIP) < CLIP / 2
    jumped = (drift.values > DRIFT) & (clipped.values > CLIPPED / 3)
    cut = np.zeros(steps, dtype=bool) if narrow else clipped.values > CLIPPED  # GSPO's clip is meant to cut that many
    again = cut.sum() >= max(3, steps / 10)
    spikes = jumped | cut if again else jumped
    if spikes.any():
        share = wilson(float(spikes.sum()), steps, confidence=CONFIDENCE)
        red = again or (spikes.sum() > 1 and share.low is not None and share.low > REPEATED)
        seen = (
            f"{spikes.sum()} of {steps} steps ({percent(share)}) jump: KL(old‖new) up to "
            f"{drift.values[spikes].max():.2g} nats a token, up to {clipped.values[spikes].max():.0%} of them clipped"
        )
        severity, sure = ("red", "likely") if red else ("amber", "possible")
        change = {"optim.learning_rate": rate / 10} if (rate := log.learning_rate) else {}
        yield Finding(RATIO_SPIKES, log.where, seen, severity, sure, change=change)


@detects(BAD_CRITIC, kinds=("ppo",))
def bad_critic(log: Log) -> Iterator[Finding]:
    explained = log["val/explained_variance"].values[log.config.get("value_warmup") or 0 :]
    if len(explained) < CRITIC_STEPS:
        raise Missing(f"the policy was trained for {len(explained)} steps; a critic is judged after {CRITIC_STEPS}")
    values = explained[-CRITIC_STEPS:]
    if bounds(values)[1] < 0 and bounds(values[-LATE:])[1] < 0:  # one that has just become useful is well
        severity = "red" if bounds(values)[1] < WORTHLESS else "amber"
        change = {"value_warmup": 5}
        yield Finding(BAD_CRITIC, log.where, f"explained variance {text(values)}", severity, "likely", change=change)
