"""What the metrics of TRL's trainers show, where they have not what the detectors of our own logs ask for.

Nothing here is asked of a run of Assay's: a detector whose parameter is a `Foreign` log reads no other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from assay.doctor.data import SWAPPED_LABELS
from assay.doctor.detector import Missing, detects
from assay.doctor.direct import CHOSEN_FALLS, EARLY, EASY, SATURATED
from assay.doctor.finding import Finding, Sureness
from assay.doctor.foreign import Foreign
from assay.doctor.kl import (
    COLLAPSED,
    ENTROPY_OUT_OF_BOUNDS,
    FEW_OF_MANY,
    KL_BLOW_UP,
    NATS,
    OPEN,
    SURPRISE,
    WHEN_COLLAPSED,
)
from assay.doctor.log import SAMPLING
from assay.doctor.responses import HALF, NEVER_STOPS
from assay.doctor.reward import (
    AGAINST_MARGIN,
    CONSTANT,
    CONSTANT_SCORES,
    DRIFT,
    EVALUATIONS,
    FLUCTUATING,
    REWARD_AT_CHANCE,
    SCORE_DRIFT,
    TELLING,
    VISIBLE,
    too_long,
)
from assay.doctor.sft import GUESS
from assay.doctor.updates import CLIPPED, NOTHING_MOVES, RATIO_SPIKES, ROUNDING
from assay.doctor.window import LATE, bounds, late, rose, text, together

FEWEST_LINES = 40
"""Lines of a log whose every pair was right: of one pair each, the least that a line can be of, an accuracy of 90 %
would give that once in 68 times."""
MEAN_RATIO = 10.0
"""The catalogue's. Healthy runs of TRL's PPO stay within 0.97 and 1.02."""
FALLEN = 1.0
"""Nats that the entropy of an answer must have fallen by, whatever share of it that is."""
GONE = 10.0
"""Nats that an answer has become less likely by: it is drawn e^10 times less often, and is as good as gone."""
RATES = {"ppo": "policy/learning_rate", "group": "policy/learning_rate", "sft": "train/learning_rate"}


def second_half(values: NDArray[np.float64], least: int = 2 * LATE) -> NDArray[np.float64]:
    """Of a training metric; the first half is spent on learning."""
    if len(values) < least:
        raise Missing(f"{len(values)} lines, and {least} are needed")
    return values[len(values) // 2 :]


@detects(NOTHING_MOVES, kinds=("ppo", "group", "sft"))
def stands_still(log: Foreign) -> Iterator[Finding]:
    """A learning rate that is 0 throughout; or a KL, and where it is known a drift, that never leave 0."""
    rate = log[RATES[log.kind]].values
    if len(rate) < LATE:
        raise Missing(f"{len(rate)} lines, and {LATE} are needed")
    if not rate.any():
        yield Finding(
            NOTHING_MOVES,
            log.where,
            f"learning rate 0 in all {len(rate)} lines",
            sureness="certain",
            cause="The learning rate is 0, so no weight changes.",
            cure="Set `learning_rate` above 0, and see that the schedule does not end before it begins "
            "(`warmup_steps`, `max_steps`).",
        )
        return
    if log.kind == "sft":
        return
    kl = np.abs(log["objective/kl"].values[1:])
    if len(kl) < 2 * LATE:
        raise Missing(f"{len(kl)} lines after the first update, and {2 * LATE} are needed")
    if kl.max() >= ROUNDING:
        return
    seen = f"|KL| to the reference at most {kl.max():.2g} in {len(kl)} lines, learning rate up to {rate.max():.2g}"
    cause = (
        "No update reaches the weights: every answer scores alike, the gradient is cut off, or the rate is far too low"
    )
    cure = (
        "See that the optimizer has the policy's parameters and that they require gradients; score two different "
        "answers by hand"
    )
    apart = "Give the reference weights of its own (`ref_model`, or the adapter off)"
    sure: Sureness = "possible" if kl.any() else "likely"
    if "policy/approxkl_avg" not in log:
        cause, cure = f"{cause}; or policy and reference share their weights", f"{cure}. {apart}"
    else:
        drift = log["policy/approxkl_avg"].values.max()
        seen += f", KL(old‖new) up to {drift:.2g} a token"
        if drift > ROUNDING:
            cause, cure = "The policy moves and its reference moves with it, for they share their weights", apart
            sure = "certain"
    yield Finding(NOTHING_MOVES, log.where, seen, "red", sure, f"{cause}.", f"{cure}.")


@detects(KL_BLOW_UP, kinds=SAMPLING)
def kl_blow_up(log: Foreign) -> Iterator[Finding]:
    """What the last answers cost the reference, in nats an answer, against what they cost the policy, now and at first.

    KL and entropy are sums over the same answers: −Σ log π_ref = KL + entropy. Each of the last lines must show it: in
    the mean of more of them, a KL that grows by the step is far below its end, and its growth passes for noise.
    """
    kl, entropy = together(log, "objective/kl", "answer/entropy")
    if len(kl) < 2 * LATE:
        raise Missing(f"{len(kl)} lines, and {2 * LATE} are needed")
    risen, own = kl.tail(LATE) - kl.first, entropy.tail(LATE)
    dearest = max(entropy.first, float(own.mean()))
    tokens = log["lengths/response_mean"].tail(LATE).mean() if "lengths/response_mean" in log else 1.0
    if (risen + own).min() > SURPRISE * dearest and risen.min() > NATS * tokens:
        yield Finding(
            KL_BLOW_UP,
            log.where,
            f"KL at least {kl.tail(LATE).min():.3g} nats an answer in each of the last {LATE} lines, {kl.first:.2g} at "
            f"the start: answers cost the reference {(risen + own).mean():.3g} nats and the policy {own.mean():.3g}; "
            f"at the start {entropy.first:.3g}",
        )


@detects(ENTROPY_OUT_OF_BOUNDS, kinds=("ppo",))
def collapsed(log: Foreign) -> Iterator[Finding]:
    """The entropy of whole answers: TRL takes that of tokens over the padding, too, which hides a collapse."""
    entropy = log["answer/entropy"]
    values, start = late(entropy), entropy.first
    if bounds(values)[1] > COLLAPSED * start or start - values.mean() < FALLEN:
        return
    seen = f"entropy {text(values)} nats an answer, {start:.3g} at the start"
    if not rose(log["objective/reward"]):
        cause = "The policy has become sure of one answer, or of a short one, without having been paid for it."
        seen += "; the reward has not risen"
        yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "red", "likely", cause, WHEN_COLLAPSED)
    elif start > OPEN:
        seen += "; the reward has risen"
        yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "amber", "possible", FEW_OF_MANY, WHEN_COLLAPSED)


@detects(NEVER_STOPS, kinds=("ppo",))
def no_end_token(log: Foreign) -> Iterator[Finding]:
    """Steps of which no answer holds the end token; in how many answers it is, a count over all tokens cannot tell."""
    ends = log["val/num_eos_tokens"]
    none = late(ends) == 0
    if none.mean() > HALF:
        never = not ends.values.any()
        yield Finding(
            NEVER_STOPS,
            log.where,
            f"not one end token among all answers in {none.sum()} of the last {len(none)} steps"
            + (", nor in any step before" if never else f"; {ends.first:.0f} in the first step"),
            sureness="certain" if never else "likely",
            cause="The model did not end its answers before this stage began: it has not learned the end token, or "
            "another token is looked for."
            if never
            else "",
        )


@detects(RATIO_SPIKES, kinds=("group",))
def clipped(log: Foreign) -> Iterator[Finding]:
    """The clip alone, again and again: GRPO logs no drift beside it."""
    share = log["policy/clipfrac_avg"].values
    cut = int((share > CLIPPED).sum())
    if cut >= max(3, len(share) / 10):
        seen = (
            f"more than {CLIPPED:.0%} of the tokens clipped in {cut} of {len(share)} steps, at most {share.max():.0%}"
        )
        yield Finding(RATIO_SPIKES, log.where, seen)


@detects(RATIO_SPIKES, kinds=("ppo",))
def ratio_far_from_one(log: Foreign) -> Iterator[Finding]:
    """The mean ratio of a step, which is 1 of answers of one's own: so far from it a few tokens outweigh all others."""
    ratio = log["policy/ratio"]
    beyond = ratio.values > MEAN_RATIO
    if beyond.any():
        again = beyond.sum() >= max(3, len(ratio) / 10)
        seen = f"mean ratio π/π_old above {MEAN_RATIO:g} in {beyond.sum()} of {len(ratio)} steps"
        yield Finding(RATIO_SPIKES, log.where, seen, *(("red", "likely") if again else ("amber", "possible")))


@detects(REWARD_AT_CHANCE, kinds=("reward",))
def at_chance(log: Foreign) -> Iterator[Finding]:
    """The second half of training; an evaluation, where there is one, is judged with its interval (reward.py)."""
    if "eval/accuracy_low" in log:
        return
    accuracy, loss = second_half(log["train/accuracy"].values), second_half(log["train/loss"].values)
    low, high = bounds(accuracy)
    if low <= HALF <= high < TELLING:
        yield Finding(
            REWARD_AT_CHANCE,
            log.where,
            f"accuracy {accuracy.mean():.1%} in the second half of training (99 %: {low:.1%} to {high:.1%}), "
            f"loss {loss.mean():.3f} (a guess: 0.693)",
            "red",
            "likely",
            *too_long(log),
        )


@detects(SWAPPED_LABELS, kinds=("reward",))
def backwards(log: Foreign) -> Iterator[Finding]:
    """The pairs of training are told apart, and held-out pairs are told apart the wrong way round.

    Ties and outliers, which make an accuracy of 30 % of one of 60 %, would show in training as well.
    """
    held, high = log["eval/accuracy"], log["eval/accuracy_high"]
    trained = second_half(log["train/accuracy"].values)
    if high.last < HALF < bounds(trained)[0]:
        yield Finding(
            SWAPPED_LABELS,
            log.where,
            f"held-out accuracy {held.last:.1%} (at most {high.last:.1%}) in the last of {len(held)} evaluations, "
            f"{held.first:.1%} in the first; accuracy {trained.mean():.1%} in the second half of training",
            cause="It learns what it is shown, and held-out pairs say the opposite: of one of the two files, or of a "
            "part of it, the columns chosen and rejected are the wrong way round.",
            cure="Read ten pairs of each file, and swap the columns of the one that is wrong; then train again.",
            brings=("overfitting",),
        )


@detects(CHOSEN_FALLS, kinds=("preference",))
def both_fall(log: Foreign) -> Iterator[Finding]:
    """Chosen and rejected answers alike have become many times as surprising; what is sampled nobody has logged."""
    sides = together(log, "train/chosen_logprob", "train/rejected_logprob")
    ends = [bounds(late(side))[1] for side in sides]
    if all(end < min(SURPRISE * side.first, side.first - GONE) for side, end in zip(sides, ends, strict=True)):
        seen = "; ".join(
            f"{name} answers {side.first:.3g} → {late(side).mean():.3g} nats"
            for name, side in zip(("chosen", "rejected"), sides, strict=True)
        )
        yield Finding(CHOSEN_FALLS, log.where, f"log-probability of the {seen}", "amber")


@detects(AGAINST_MARGIN, kinds=("reward",))
def against_margin(log: Foreign) -> Iterator[Finding]:
    """The mean margin of the second half is above 0, and the accuracy too low for it, or for the loss.

    Too low: surely below one half; or that of a guess, and too low for the loss. Where the likelier order has
    probability p, a pair is right with p and costs H(p) ≥ 2(1 − p) ln 2 on average: of an accuracy a the loss is at
    least 2(1 − a) ln 2 if probabilities are right. Scores that are rounded have less, for ties count as wrong; so have
    pairs of equal answers, which is why a higher accuracy proves nothing.
    """
    accuracy, margin, loss = (second_half(log[f"train/{name}"].values) for name in ("accuracy", "margin", "loss"))
    right, cost = bounds(accuracy)[1], bounds(loss)[1]
    least = 2 * (1 - right) * GUESS
    if bounds(margin)[0] > 0 and (right < HALF or (right < TELLING and cost < least)):
        seen = (
            f"accuracy {accuracy.mean():.1%} (99 %: at most {right:.1%}) and margin {margin.mean():+.3f} (at least "
            f"{bounds(margin)[0]:+.3f}) in the second half of training"
        )
        if cost < least:
            seen += f"; loss {loss.mean():.3f} (at most {cost:.3f}), where so few right pairs cost {least:.3f} or more"
        yield Finding(
            AGAINST_MARGIN,
            log.where,
            seen,
            cause="Scores tie, which counts as wrong, for they are rounded; or a few huge margins carry the mean; or a "
            "part of the pairs has its labels the wrong way round.",
            cure="Compute head and scores in fp32 (`bf16: false`), then look at the median margin and at the accuracy "
            "of each source; centre the scores (`center_rewards_coefficient: 0.01`).",
            brings=(REWARD_AT_CHANCE.name,),
        )


@detects(CONSTANT_SCORES, kinds=("reward",))
def constant_scores(log: Foreign) -> Iterator[Finding]:
    """The largest and the smallest score of a batch are one; or those of a pair are, in every batch."""
    high, low = together(log, "train/score_max", "train/score_min")
    spread = late(high) - late(low)
    within = np.abs(second_half(log["train/margin"].values)).max() if "train/margin" in log else np.inf
    if spread.max() < CONSTANT or within == 0:
        alike = spread.max() < CONSTANT
        yield Finding(
            CONSTANT_SCORES,
            log.where,
            f"largest and smallest score of a batch {spread.max():.1e} apart at most in the last {len(spread)} lines"
            if alike
            else f"margin exactly 0 in the second half of training; scores of a batch {spread.mean():.2g} apart",
            sureness="certain",
            cause=""
            if alike
            else "Both responses of a pair score alike: they are one text, or the score is read in "
            "the prompt, as where `max_length` cuts the responses off.",
        )


@detects(SCORE_DRIFT, kinds=("reward",))
def score_drift(log: Foreign) -> Iterator[Finding]:
    """No deviation of scores in a batch is larger than half of its range, which is what TRL logs."""
    mean, high, low = together(log, "train/score_mean", "train/score_max", "train/score_min")
    spread = float((late(high) - late(low)).mean()) / 2
    below, above = bounds(late(mean))
    if spread > CONSTANT and max(below, -above) > DRIFT * spread:
        seen = f"mean score {text(late(mean))}, standard deviation of a batch at most {spread:.2g}"
        yield Finding(SCORE_DRIFT, log.where, seen, "amber")


@detects(FLUCTUATING, kinds=("reward",))
def fluctuating(log: Foreign) -> Iterator[Finding]:
    """Falls of the accuracy between evaluations of an unknown number of pairs: so few would vary as much."""
    if "eval/n" in log:
        return
    accuracy = log["eval/accuracy"].values
    if len(accuracy) < EVALUATIONS:
        raise Missing(f"{len(accuracy)} evaluations, and a variance needs {EVALUATIONS}")
    spread = float(np.sqrt((np.diff(accuracy).clip(max=0) ** 2).mean()))
    if spread >= VISIBLE:
        p = float(accuracy.mean().clip(0.05, 0.95))
        seen = (
            f"validation accuracy varies by ±{spread:.1%} between {len(accuracy)} evaluations, as that of "
            f"{p * (1 - p) / spread**2:.0f} pairs would by chance"
        )
        yield Finding(FLUCTUATING, log.where, seen, "amber", "possible")


@detects(SATURATED, kinds=("preference", "reward"))
def saturated_early(log: Foreign) -> Iterator[Finding]:
    """Every line after a tenth of the first epoch, where nobody knows how many pairs a line has."""
    if "batch_size" in log.config:
        return
    accuracy, epoch = together(log, "train/accuracy", "epoch")
    after = accuracy.values[epoch.values > EARLY]
    if len(after) < FEWEST_LINES:
        raise Missing(f"{len(after)} lines after a tenth of the data, and {FEWEST_LINES} are needed")
    if after.mean() >= EASY:
        first = int(np.argmax(epoch.values > EARLY))
        seen = f"accuracy {after.mean():.1%} in all {len(after)} lines from step {accuracy.steps[first]} on (epoch 0.1)"
        yield Finding(SATURATED, log.where, seen, "amber", "possible")
