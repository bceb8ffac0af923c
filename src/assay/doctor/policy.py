"""What goes wrong while a policy learns from its own samples: PPO and the group methods, read from their logs.

An interval, and not a single step, decides: the mean of a run's last steps, with Student's t. Thresholds were set so
that healthy runs of the embedded recipe and of the stages' toy task stay silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log, Series

SAMPLING = ("ppo", "group")
"""Stages whose policy learns from its own samples."""

NEGATIVE_KL = Mode(
    28,
    "negative-kl",
    "policy",
    "The KL to the reference is negative",
    "The answers were not drawn from the policy whose probabilities are counted; a true KL is never below 0.",
    "Draw from the policy itself: temperature the same in sampling and scoring, top_p 1, no top_k, no repetition "
    "penalty, no minimum length, dropout off, the newest weights, and the prompts' padding masked in both.",
    ("kl-blow-up", "entropy-out-of-bounds", "ratio-spikes", "empty-answers", "never-stops"),
)
NOTHING_MOVES = Mode(
    26,
    "nothing-moves",
    "policy",
    "Nothing moves: loss and KL stay at 0",
    "No update reaches the policy, or nothing in the reward tells one answer from another.",
    "Follow the branch that the finding names. A loss of 0.0000 alone is no fault: at a ratio of 1 the advantages "
    "cancel, and the gradient does not.",
    ("ratio-spikes", "bad-critic", "kl-blow-up", "entropy-out-of-bounds"),
)
KL_BLOW_UP = Mode(
    33,
    "kl-blow-up",
    "policy",
    "The KL to the reference runs away",
    "The reward pulls harder than the penalty holds: β is too small for it, or the steps are too long.",
    "Raise kl_coef (0.05 is a start), set kl_target (3 to 6 nats an answer) so that β adapts, and lower "
    "optim.learning_rate.",
    ("reward-hacking", "repetition", "never-stops", "empty-answers", "entropy-out-of-bounds", "bad-critic"),
)
REWARD_HACKING = Mode(
    36,
    "reward-hacking",
    "policy",
    "The reward rises while the answers get worse",
    "The policy has found what the reward model likes and people do not.",
    "Stop where the truth was highest (patience: 3), raise kl_coef, and train the reward model on comparisons of such "
    "answers, or as an ensemble (ensemble: {members: 4, aggregate: uncertainty}).",
    ("kl-blow-up", "repetition", "empty-answers", "entropy-out-of-bounds", "length-growth"),
)
ENTROPY_OUT_OF_BOUNDS = Mode(
    40,
    "entropy-out-of-bounds",
    "policy",
    "The entropy collapses or explodes",
    "The policy has become sure of one answer too early, or a bonus for entropy outweighs the reward.",
    "Collapsed: clip_high 0.28, a larger kl_coef, a smaller optim.learning_rate. Exploded: entropy_coef 0.",
    ("kl-blow-up", "never-stops"),
)
REPETITION = Mode(
    37,
    "repetition",
    "policy",
    "Answers repeat themselves",
    "The reward does not count loops against an answer, or pays for them, and the policy has found that out.",
    "Score a few loops with the reward model: if they score well, train it on comparisons that have some. Raise "
    "kl_coef, and see that answers end (never-stops).",
    ("never-stops", "kl-blow-up", "entropy-out-of-bounds"),
)
NEVER_STOPS = Mode(
    38,
    "never-stops",
    "policy",
    "Answers do not end",
    "The policy hardly ever emits the end token: it was never taught to, or nothing is lost by going on.",
    "See that the end token is among the labels of the SFT stage (eos-not-learned), keep missing_eos: set with a "
    "missing_eos_penalty of 1 or more, or raise sampling.max_new_tokens if good answers are that long.",
    ("repetition", "kl-blow-up"),
)
EMPTY_ANSWERS = Mode(
    39,
    "empty-answers",
    "policy",
    "Answers shrink to nothing",
    "The reward pays for silence: a short or empty answer scores better than an attempt.",
    "Score an empty answer with the reward model: it must be the worst. Keep missing_eos: set, which pays an empty "
    "answer as one without an end, and train the reward model on comparisons with short bad answers.",
    ("kl-blow-up", "entropy-out-of-bounds"),
)
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
KL_BEFORE_TRAINING = Mode(
    29,
    "kl-before-training",
    "policy",
    "There is a KL before anything was learned",
    "The reference is not the model that the policy starts from, or one of the two is read with dropout.",
    "Make the reference a frozen copy of the SFT model that the policy starts from, and switch dropout off in both.",
    ("negative-kl", "ratio-not-one", "kl-blow-up"),
)
GROUPS_WITHOUT_SIGNAL = Mode(
    41,
    "groups-without-signal",
    "policy",
    "Groups whose answers all score alike",
    "In most groups every answer gets the same reward: the prompts are too easy or too hard, or the reward does not "
    "look at the answer.",
    "Filter prompts that are always or never solved, draw new ones for them (resample: 3), and raise group_size (16).",
    ("nothing-moves",),
)
BROKEN_GROUPS = Mode(
    42,
    "broken-groups",
    "policy",
    "A group holds answers to different prompts",
    "Answers were put in another order than their prompts before they were compared with each other.",
    "Group by the prompt's id, and do not shuffle or filter single answers between sampling and the advantages.",
)
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
LATE = 5
"""Steps that an interval needs; of a long run, its last quarter."""
CONFIDENCE = 0.99
"""One-sided: several bounds must be crossed at once for most findings."""
SIGNIFICANT = 1e-3
"""The p that `likely` stands for (finding.py)."""
ROUNDING = 1e-5
"""Nats per token: float32 in another order of sums stays below (stages/online.py, EXACT)."""
NO_CHANCE = 1e-6
"""The p beyond which chance is out of the question."""
NO_SPREAD, NO_GRADIENT = 1e-6, 1e-12
"""Deviation of scores (advantages.informative_groups) and norm of a gradient that count as none."""
START_KL = 1e-3
"""Nats per token; the catalogue's. Healthy runs start below 1e-6, bfloat16 included where both are read alike."""
SAMPLER_KL = 1e-3
"""Nats per token: fp32 has 1e-13, eight-bit rollouts 2e-4 (docs/concepts.md)."""
FIRST_RATIO, CLIP = 0.05, 0.2
"""bfloat16 alone moves a ratio by a few hundredths; beyond PPO's usual clip tokens lose their gradient at once."""
KL_OVER_TARGET = 3.0
"""The catalogue's. An adaptive β that works keeps a run within 1.5 of its target."""
SURPRISE, NATS = 3.0, 1.0
"""Answers are so many times as surprising to the reference as its own are, and by so many nats per token more. Healthy
runs stay near 1: they choose among the answers that the reference gives."""
CLIPPED, DRIFT = 0.3, 0.5
"""Share of tokens that the clip cuts (the catalogue's), and KL(old‖new) per token; healthy: below 0.1 and 0.08."""
LOOPS = 0.2
"""Repeated 4-grams; the catalogue's. Healthy: below 0.05."""
HALF = 0.5
EMPTY, SHRUNK = 0.2, 0.2
"""Share of empty answers, and length as a share of the start's (the catalogue's)."""
COLLAPSED, EXPLODED, LEAST_CHANGE = 0.2, 1.5, 0.1
"""Entropy as a share of the start's (a fifth is the catalogue's, half as much again beyond all healthy runs:
docs/results/doctor.md), and nats a token that it must have changed by besides."""
WORTHLESS = -1.0
"""Explained variance of a critic whose errors vary twice as much as the returns: it leads the run astray by itself."""
CRITIC_STEPS = 20
"""The catalogue's: a new critic needs some to learn."""


def late(series: Series, steps: int = LATE) -> NDArray[np.float64]:
    """The last quarter of a run, and at least so many steps."""
    if len(series) < steps:
        raise Missing(f"{series.name} was logged {len(series)} times; {steps} are needed")
    return series.tail(max(steps, len(series) // 4))


def together(log: Log, *names: str) -> list[Series]:
    """Several metrics at the steps where all of them are known."""
    known = [dict(zip(log[name].steps.tolist(), log[name].values.tolist(), strict=True)) for name in names]
    steps = sorted(set.intersection(*map(set, known)))
    if not steps:
        raise Missing(f"{' and '.join(names)} were never logged together")
    return [
        Series(name, np.array(steps), np.array([values[step] for step in steps]))
        for name, values in zip(names, known, strict=True)
    ]


def bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """Lower and upper confidence bound of the mean; values that are all alike are their own."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    margin = float(stats.t.ppf(CONFIDENCE, len(values) - 1) * error)
    return float(values.mean()) - margin, float(values.mean()) + margin


def length(log: Log) -> float:
    """Tokens of the first answers; 1, the least, where none are logged."""
    return max(1.0, log["lengths/response_mean"].first) if "lengths/response_mean" in log else 1.0


def text(values: NDArray[np.float64]) -> str:
    """A mean with its interval."""
    low, high = bounds(values)
    return f"{values.mean():.3g} (99 %: {low:.3g} to {high:.3g}, last {len(values)} steps)"


@detects(NEGATIVE_KL, kinds=SAMPLING)
def negative_kl(log: Log) -> Iterator[Finding]:
    """Σ log(π_ref/π) of answers drawn from π exceeds log(1/p) with a chance of at most p: π_ref/π is 1 on average.

    Markov's inequality: no normal distribution and no variance, which rare answers with a large KL would belie. It is
    asked of every stretch of the log; a batch of unknown size counts as one answer, the least that it can be worth.
    """
    if log.config.get("resample"):
        raise Missing("groups were chosen by their scores (resample), and the KL of chosen answers may be below 0")
    kl, answers = log["objective/kl"], log.config.get("batch_size") or 1
    sums = np.concatenate([[0.0], np.cumsum(-answers * kl.values)])
    ends = (sums - np.minimum.accumulate(sums)).argmax()
    begin = sums[: ends + 1].argmin()
    surplus = sums[ends] - sums[begin] - math.log(len(kl))
    if surplus > -math.log(SIGNIFICANT):
        stretch = slice(begin, ends)
        seen = (
            f"KL {kl.values[stretch].mean():.3g} nats an answer from step {kl.steps[stretch][0]} to "
            f"{kl.steps[stretch][-1]} (p < {math.exp(-min(surplus, 700.0)):.1g})"
        )
        sure = "certain" if surplus > -math.log(NO_CHANCE) else "likely"
        yield Finding(NEGATIVE_KL, log.where, seen, "red", sure)


@detects(KL_BEFORE_TRAINING, kinds=SAMPLING)
def kl_before_training(log: Log) -> Iterator[Finding]:
    kl = log["objective/kl"]
    if kl.steps[0] > 1:
        raise Missing(f"the log begins at step {kl.steps[0]}")
    per_token = kl.first / length(log)
    if abs(per_token) > START_KL:
        seen = f"KL {kl.first:.3g} nats an answer, {per_token:.2g} per token, before the first update"
        yield Finding(KL_BEFORE_TRAINING, log.where, seen, "red", "certain")


@detects(SAMPLER_DIFFERS, kinds=SAMPLING)
def sampler_apart(log: Log) -> Iterator[Finding]:
    """The tokens of an iteration read by the policy that learns from them, where the run has compared the two."""
    apart = log["val/sampler_kl"]
    if apart.values.max() > SAMPLER_KL:
        first = int(apart.steps[(apart.values > SAMPLER_KL).argmax()])
        often = int((apart.values > SAMPLER_KL).sum())
        seen = (
            f"KL(sampler‖trainer) up to {apart.values.max():.2g} nats a token, first at step {first}; above "
            f"{SAMPLER_KL:g} in {often} of {len(apart)} comparisons"
        )
        yield Finding(SAMPLER_DIFFERS, log.where, seen, "red", "certain", change={"importance_cap": 2.0})


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
        yield Finding(NOTHING_MOVES, log.where, alike, "red", "certain", cause, cure)
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
    still = bool((kl < ROUNDING * length(log)).all())
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


@detects(KL_BLOW_UP, kinds=SAMPLING)
def kl_blow_up(log: Log) -> Iterator[Finding]:
    """Far above its target; or, where there is none, answers that the reference would hardly ever give."""
    kl = late(log["objective/kl"])
    target, stronger = log.config.get("kl_target"), max(0.05, 2 * log.config.get("kl_coef", 0.0))
    if isinstance(target, int | float) and bounds(kl)[0] > KL_OVER_TARGET * target:
        seen = f"KL {text(kl)} nats an answer, with a target of {target:g}"
        yield Finding(KL_BLOW_UP, log.where, seen, change={"kl_coef": stronger}, fatal=True)
        return
    distance, entropy, tokens = together(log, "objective/kl", "objective/entropy", "lengths/response_mean")
    risen = (late(distance) - distance.first) / late(tokens).mean()
    surprise = risen + late(entropy)
    low = bounds(surprise)[0]
    if low > SURPRISE * entropy.first and low - entropy.first > NATS and bounds(risen)[0] > NATS:
        seen = (
            f"answers cost the reference {text(surprise)} nats a token; its own cost {entropy.first:.2g}. "
            f"KL {kl.mean():.3g} nats an answer"
        )
        unheld = log.config.get("kl_coef") == 0
        sure = "likely" if unheld else "possible"
        yield Finding(KL_BLOW_UP, log.where, seen, "red", sure, change={"kl_coef": stronger}, fatal=True)


@detects(RATIO_SPIKES, kinds=SAMPLING)
def ratio_spikes(log: Log) -> Iterator[Finding]:
    """Tokens cut by the clip and a drift within the batch, together; or the clip alone, again and again."""
    clipped, drift = together(log, "policy/clipfrac_avg", "policy/approxkl_avg")
    narrow = log.config.get("ratio", "token") != "token" or (log.config.get("clip") or CLIP) < CLIP / 2
    jumps = int(((drift.values > DRIFT) & (clipped.values > CLIPPED / 3)).sum())
    cut = 0 if narrow else int((clipped.values > CLIPPED).sum())  # GSPO's clip is meant to cut that many
    if jumps or cut >= max(3, len(clipped) / 10):
        seen = (
            f"KL(old‖new) up to {drift.values.max():.2g} nats a token; more than {CLIPPED:.0%} of the tokens clipped "
            f"in {cut} of {len(clipped)} steps, at most {clipped.values.max():.0%}"
        )
        change = {"optim.learning_rate": rate / 10} if (rate := learning_rate(log)) else {}
        yield Finding(RATIO_SPIKES, log.where, seen, "red", "likely", change=change)


def learning_rate(log: Log) -> float | None:
    """The recipe's, where it is known."""
    optim = log.config.get("optim")
    return optim.get("learning_rate") if isinstance(optim, Mapping) else None


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


@detects(REWARD_HACKING, kinds=SAMPLING)
def reward_hacking(log: Log) -> Iterator[Finding]:
    """Over the run, or its second half, the proxy climbs and the truth falls; or a judge prefers the start."""
    final = log.final
    gained, won = final.get("reward_gain_low"), final.get("win_rate_high")
    if isinstance(gained, float) and isinstance(won, float) and gained > 0 and won < HALF:
        seen = f"reward up by at least {gained:.2g}, and a win rate against the start of at most {won:.0%}"
        yield Finding(REWARD_HACKING, log.where, seen, "red", "certain")
        return
    if "objective/truth" not in log:
        if won is None:
            raise Missing("nothing but the reward judges the answers: no truth, and no judge")
        return
    reward, truth = together(log, "objective/reward", "objective/truth")
    for part in (slice(None), slice(len(truth) // 2, None)):
        if len(truth.values[part]) < 2 * LATE:
            continue
        (up, p_up), (down, p_down) = trend(reward, part), trend(truth, part)
        if up > 0 > down and p_up < 1 - CONFIDENCE and p_down < SIGNIFICANT:
            first, last = (int(truth.steps[part][i]) for i in (0, -1))
            seen = (
                f"from step {first} to {last} the reward changes by {up * (last - first):+.2g} and the truth by "
                f"{down * (last - first):+.2g} (p = {p_down:.1g})"
            )
            yield Finding(REWARD_HACKING, log.where, seen, change={"patience": 3})
            return


def trend(series: Series, part: slice) -> tuple[float, float]:
    """Slope of a line through a part of a metric, and its two-sided p."""
    line: Any = stats.linregress(series.steps[part], series.values[part])
    return float(line.slope), float(line.pvalue)


@detects(REPETITION, kinds=SAMPLING)
def repeats(log: Log) -> Iterator[Finding]:
    series = log["text/repetition"]
    values = late(series)
    seen = f"share of repeated 4-grams {text(values)}, {series.first:.2g} at the start"
    if bounds(values)[0] > LOOPS and series.first > LOOPS:
        cause = "The policy repeated itself before this stage began: the fault is in the SFT model or its data."
        yield Finding(REPETITION, log.where, seen, "red", "likely", cause)
    elif bounds(values)[0] > max(LOOPS, 2 * series.first):
        yield Finding(REPETITION, log.where, seen)


@detects(NEVER_STOPS, kinds=SAMPLING)
def never_stops(log: Log) -> Iterator[Finding]:
    series = log["lengths/truncated"]
    values = late(series)
    if bounds(values)[0] > HALF:
        seen = f"answers cut off at max_new_tokens: {text(values)}, {series.first:.2g} at the start"
        if series.first > HALF:
            cause = "The model did not end its answers before this stage began: it has not learned the end token."
            yield Finding(NEVER_STOPS, log.where, seen, "red", "certain", cause)
        else:
            yield Finding(NEVER_STOPS, log.where, seen, "red", "likely", change={"missing_eos": "set"})


@detects(EMPTY_ANSWERS, kinds=SAMPLING)
def empty_answers(log: Log) -> Iterator[Finding]:
    lengths = log["lengths/response_mean"]
    short = late(lengths)
    empty = late(log["lengths/empty"]) if "lengths/empty" in log else np.zeros(LATE)
    if bounds(short)[1] < SHRUNK * lengths.first or bounds(empty)[0] > EMPTY:
        seen = f"{text(empty)} of the answers are empty; {short.mean():.3g} tokens, {lengths.first:.3g} at the start"
        yield Finding(EMPTY_ANSWERS, log.where, seen, change={"missing_eos": "set", "missing_eos_penalty": 1.0})


@detects(ENTROPY_OUT_OF_BOUNDS, kinds=SAMPLING)
def entropy_out_of_bounds(log: Log) -> Iterator[Finding]:
    """A policy that became sure of what pays has learned its task; one that became sure for nothing has collapsed."""
    series = log["objective/entropy"]
    values, start = late(series), series.first
    low, high = bounds(values)
    seen = f"entropy {text(values)} nats a token, {start:.2g} at the start"
    if low > EXPLODED * start and low - start > LEAST_CHANGE:
        cause = "A bonus for entropy, or noise in the updates, outweighs the reward."
        change = {"entropy_coef": 0.0}
        yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "red", "likely", cause, change=change)
    elif high < COLLAPSED * start and start - high > LEAST_CHANGE and not rose(log["objective/reward"]):
        cause = "The policy has become sure of one answer without having been paid for it."
        seen = f"{seen}; the reward has not risen"
        yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "red", "likely", cause, fatal=True)


def rose(series: Series) -> bool:
    """Whether the last steps are surely above the first."""
    return bounds(late(series))[0] > bounds(series.head(LATE))[1]


@detects(GROUPS_WITHOUT_SIGNAL, kinds=("group",))
def groups_without_signal(log: Log) -> Iterator[Finding]:
    """Over the whole run: a policy that has solved its task has such groups at the end, too."""
    if log.config.get("group_size") == 1:
        return
    share = log["objective/groups_without_signal"]
    low, _ = bounds(late(share, max(LATE, len(share))))
    if low > HALF:
        seen = f"{share.values.mean():.0%} of the groups (at least {low:.0%}, {len(share)} steps) have no spread"
        severity = "red" if share.values.min() >= 1 else "amber"
        yield Finding(GROUPS_WITHOUT_SIGNAL, log.where, seen, severity, "likely", change={"resample": 3})


@detects(BROKEN_GROUPS, kinds=("group",))
def broken_groups(log: Log) -> Iterator[Finding]:
    prompts = log["objective/prompts_per_group"].values
    if prompts.max() > 1:
        seen = f"up to {prompts.max():.3g} different prompts in a group, on average {prompts.mean():.2g}"
        yield Finding(BROKEN_GROUPS, log.where, seen, "red", "certain")
