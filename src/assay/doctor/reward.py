"""Reward models by their log and report; and numbers that are not finite, in any log."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode, Severity
from assay.doctor.log import TRAINING, Log, Series
from assay.doctor.sft import GUESS, WORSE, slower
from assay.doctor.window import CONFIDENCE
from assay.statistics import wilson

REWARD_AT_CHANCE = Mode(
    17,
    "reward-at-chance",
    "reward",
    "The reward model guesses: accuracy about 50 %, loss about 0.69",
    "Nothing that the reward model learns tells chosen from rejected: no gradient reaches its weights, the learning "
    "rate is too low, or the labels are noise.",
    "Start from the SFT model, let the head train, and raise `optim.learning_rate`; ask the probe whether it "
    "can learn 32 pairs by heart: if not, the code is at fault, else the data or the rate.",
    ("score-drift", "length-bias", "reward-hacking"),
)
AGAINST_MARGIN = Mode(
    18,
    "accuracy-against-margin",
    "reward",
    "Accuracy and mean margin tell different stories",
    "The mean of the margins is carried by something that a majority of the pairs does not share.",
    "Read ties, median and mean together: compute scores in fp32 (ties), clip or remove outliers (median below zero), "
    "or look at the accuracy of each source (a part with swapped labels).",
)
FLUCTUATING = Mode(
    19,
    "fluctuating-accuracy",
    "reward",
    "The validation accuracy jumps from one evaluation to the next",
    "The evaluation itself is noisy, or the model changes too much between two evaluations.",
    "Evaluate on at least 1,000 fixed pairs, with dropout off (`model.eval()`), and show the interval; if it still "
    "jumps, lower `optim.learning_rate`.",
)
CONSTANT_SCORES = Mode(
    22,
    "constant-scores",
    "reward",
    "Every response has the same score",
    "The score does not depend on the response: it is read at a token that both share, or the head has died.",
    "Read the score at the last token that is no padding; if that is so, lower `optim.learning_rate`.",
    ("reward-at-chance", "accuracy-against-margin", "score-drift", "groups-without-signal", "nothing-moves"),
)
SCORE_DRIFT = Mode(
    23,
    "score-drift",
    "reward",
    "All scores are far from zero",
    "Bradley–Terry only looks at differences, so nothing holds the scores' mean in its place.",
    "Centre the scores: `centring: 0.01`, and subtract the mean score before PPO.",
    ("bad-critic",),
)
NOT_FINITE = Mode(
    24,
    "not-finite",
    "reward",
    "NaN or infinity",
    "A number grew beyond what its format can hold (fp16 ends at 65,504), or a logarithm or a division met zero.",
    "Use bf16 or fp32, compute logits and losses in fp32 (logsigmoid, not log of sigmoid); lower the learning rate.",
    ("reward-at-chance", "constant-scores", "nothing-moves", "kl-blow-up", "ratio-spikes", "bad-critic"),
)
LENGTH_BIAS = Mode(
    25,
    "length-bias",
    "reward",
    "The reward model prefers long (or short) responses more than people do",
    "It has learnt length as a stand-in for quality.",
    "Train on pairs of like length, or take the part of the score that length explains out of it; in PPO, cap "
    "`max_new_tokens` and watch the length.",
    ("length-growth", "reward-hacking"),
)

NARROW = 0.1  # half an interval: beyond that, held-out pairs cannot say that nothing was carried over
TELLING = 0.6  # share of pairs that a model which has learnt something is right in: people agree in more
FEW_TIES = 0.05  # in fp32 equal scores of different texts do not occur; the catalogue's proposal
CONSTANT = 1e-3  # standard deviation of scores, before calibration; those of a random head have about 1
COARSE = 8.0  # scores from which on bf16 has no more than 32 numbers to a unit
DRIFT = 5.0  # |mean| in standard deviations; centred models of the embedded recipe have less than 0.1
TASTE = 0.1  # share of pairs; two shares that differ by x correlate with length by 2x more, the catalogue's 0.2
STRONG_TASTE = 0.2
EVALUATIONS = 5  # fewer have no variance worth the name
VISIBLE = 0.03  # standard deviation of an accuracy that people begin to wonder about
BLIND = 0.05  # standard error of an evaluation too small to choose by; those of healthy runs have 0.03
SURE = 1e-3  # p-value
VITAL = {"loss", "grad_norm", "reward", "score", "kl", "entropy"}  # what training follows; others only describe it


def held_out(log: Log, name: str) -> float:
    """A number about held-out pairs: the report's, or the last validation's."""
    try:
        return log.number(name)
    except Missing:
        return log[f"eval/{name}"].last


@detects(REWARD_AT_CHANCE, kinds=("reward",))
def at_chance(log: Log) -> Iterator[Finding]:
    """Held-out pairs are not surely in the right order; the pairs of training say whether anything was learnt.

    Surely in the wrong order is what a head at random may be, too; one that has learnt has swapped labels. A guess must
    not be one for want of pairs: one of the two intervals lies below what a model would be right in.
    """
    accuracy, low, high = (held_out(log, name) for name in ("accuracy", "accuracy_low", "accuracy_high"))
    learnt, right, pairs = training_accuracy(log)
    if low > 0.5 or (learnt and high < 0.5):
        return
    loss = float(log["train/loss"].tail(max(1, len(log["train/loss"]) // 4)).mean())
    held = f"held-out accuracy {accuracy:.1%} [{low:.1%}, {high:.1%}]"
    trained = f"in the second half of training {right:.1%} of about {pairs} pairs"
    seen = f"{held}; {trained}, loss {loss:.3f} (a guess: 0.693)"
    if "train/grad_norm" in log and not (learnt or log["train/grad_norm"].values.any()):
        cause = "No gradient reaches the weights that the optimizer has: they are frozen, copied, or cut off."
        yield Finding(REWARD_AT_CHANCE, log.where, f"{seen}; the gradient is exactly 0", "red", "certain", cause)
    elif not learnt:
        if min(high, wilson(right * pairs, pairs, confidence=CONFIDENCE).high or 1.0) > TELLING:
            raise Missing(f"{held}; {trained}: so few cannot tell whether it guesses")
        yield Finding(REWARD_AT_CHANCE, log.where, seen, "red", "likely", *too_long(log))
    elif right > high and (high - low) / 2 < NARROW:
        yield Finding(
            REWARD_AT_CHANCE,
            log.where,
            seen,
            "amber",
            cause="It has learnt its training pairs, but nothing that holds for others.",
            cure="Give more pairs, fewer epochs (`epochs: 1`); check that held-out pairs are of the same kind.",
        )


def too_long(log: Log) -> tuple[str, str]:
    """Cause and cure of a guess that has cost more than one: scores that differ by much, as often the wrong way."""
    if log["train/loss"].values.mean() < WORSE * GUESS:
        return "", ""
    return (
        "The steps are so long that every one throws the scores about, and no order comes of it: a guess whose scores "
        "are equal would cost 0.693.",
        "Lower `optim.learning_rate` tenfold, and keep `optim.max_grad_norm` at 1 and some `optim.warmup`.",
    )


def training_accuracy(log: Log) -> tuple[bool, float, int]:
    """Whether the pairs of the second half of training were told apart (z > 3), their share, their number."""
    accuracy = log["train/accuracy"]
    late = accuracy.tail(max(1, len(accuracy) // 2))
    size = log.config.get("batch_size", 1)
    pairs = len(late) * size
    share = float(late.mean())
    return (share - 0.5) * math.sqrt(4 * pairs) > 3, share, pairs


def told_apart(log: Log) -> bool:
    """Whether the pairs of training were."""
    learnt, _, _ = training_accuracy(log)
    return learnt


@detects(AGAINST_MARGIN, kinds=("reward",))
def against_margin(log: Log) -> Iterator[Finding]:
    """Ties, median and mean of the margins: rounding, outliers, or a part whose labels are swapped."""
    from scipy.stats import binomtest

    accuracy, n = held_out(log, "accuracy"), round(held_out(log, "n"))
    ties, gap, median = (held_out(log, name) for name in ("ties", "reward_gap", "reward_gap_median"))
    tied = binomtest(round(ties), n)
    said = f"accuracy {accuracy:.1%} of {n} pairs, {ties / n:.1%} ties, margin {gap:+.3f} (median {median:+.3f})"
    if tied.proportion_ci(1 - SURE).low > FEW_TIES:
        offset = abs(mean_score(log))
        yield Finding(
            AGAINST_MARGIN,
            log.where,
            f"{said}; mean score {offset:.1f}",
            sureness="certain" if ties / n > 2 * FEW_TIES else "likely",
            cause=f"Scores are rounded: near {offset:.0f} the format has no numbers between most pairs, which then "
            "tie, and a tie that counts as wrong makes the accuracy look worse than the model is.",
            cure="Compute head and scores in fp32, and centre the scores (`centring: 0.01`).",
            brings=(CONSTANT_SCORES.name, REWARD_AT_CHANCE.name) if offset > COARSE else (),
        )
        return
    wrong = round((1 - accuracy) * n - ties / 2)
    p_value = binomtest(wrong, max(1, n - round(ties)), alternative="greater").pvalue
    if gap <= 0 or accuracy >= 0.5 or p_value >= 0.01:  # 3 of 10 is p = 0.17
        return
    outliers = median < 0
    yield Finding(
        AGAINST_MARGIN,
        log.where,
        f"{said}; p = {p_value:.1e}",
        sureness="likely" if p_value < SURE else "possible",
        cause="Most pairs are in the wrong order, and a few with huge margins carry the mean."
        if outliers
        else "Some part of the pairs has its labels the wrong way round.",
    )


@detects(FLUCTUATING, kinds=("reward",))
def fluctuating(log: Log) -> Iterator[Finding]:
    """How far the accuracy falls back, which learning does not do, against what so few pairs vary by anyway."""
    from scipy.stats import chi2

    accuracy = log["eval/accuracy"].values
    if len(accuracy) < EVALUATIONS:
        raise Missing(f"{len(accuracy)} evaluations, and a variance needs {EVALUATIONS}")
    n = log["eval/n"].last
    falls = np.diff(accuracy).clip(max=0)
    observed = float((falls**2).mean())  # of noise alone: a difference has variance 2σ², and half of them are falls
    p = float(accuracy.mean())
    expected = max(p * (1 - p), 0.25 / n) / n
    spread, ratio = math.sqrt(observed), observed / expected
    if spread < VISIBLE:
        return
    seen = (
        f"validation accuracy varies by ±{spread:.1%} between evaluations; {n:.0f} pairs alone make ±"
        f"{math.sqrt(expected):.1%} (ratio of variances {ratio:.1f}, {len(accuracy)} evaluations)"
    )
    if chi2.sf(ratio * len(falls) / 2, len(falls) / 2) < SURE:  # only half of the differences are falls
        yield Finding(
            FLUCTUATING,
            log.where,
            seen,
            "amber",
            cause="The model itself changes between evaluations: the learning rate is too high, or dropout is on.",
            cure="Lower `optim.learning_rate` to a third; if the same checkpoint scored twice differs, turn "
            "dropout off.",
        )
    elif ratio < 2 and math.sqrt(expected) > BLIND:
        needed = math.ceil(p * (1 - p) / 0.01**2 / 100) * 100
        yield Finding(
            FLUCTUATING,
            log.where,
            seen,
            "amber",
            cause=f"It is sampling noise: {n:.0f} pairs say no more than that.",
            cure=f"Evaluate on {needed:,} fixed pairs for ±1 point.",
        )


@detects(CONSTANT_SCORES, kinds=("reward",))
def constant_scores(log: Log) -> Iterator[Finding]:
    """No spread over all responses, or none within any pair."""
    raw = log.final.get("temperature", 1.0)  # calibration divided by it
    spread, within = held_out(log, "score_std") * raw, held_out(log, "reward_gap_std") * raw
    if min(spread, within) < CONSTANT:
        yield Finding(
            CONSTANT_SCORES,
            log.where,
            f"standard deviation of the scores {spread:.1e}, of the margins {within:.1e}, over "
            f"{held_out(log, 'n'):.0f} pairs ({held_out(log, 'ties'):.0f} ties)",
            sureness="certain",
            cause="" if spread < CONSTANT else "Responses to one prompt score alike: the score is read in the prompt.",
        )


def mean_score(log: Log) -> float:
    return (held_out(log, "chosen_mean") + held_out(log, "rejected_mean")) / 2


@detects(SCORE_DRIFT, kinds=("reward",))
def score_drift(log: Log) -> Iterator[Finding]:
    """The mean score in standard deviations; harmless to the order, not to rounding or to a critic."""
    mean, spread = mean_score(log), held_out(log, "score_std")
    if abs(mean) > DRIFT * spread:
        change = {} if log.foreign else {"centring": 0.01}
        seen = f"mean score {mean:+.1f}, standard deviation {spread:.2f}"
        yield Finding(SCORE_DRIFT, log.where, seen, "amber", change=change)


@detects(LENGTH_BIAS, kinds=("reward",))
def length_bias(log: Log) -> Iterator[Finding]:
    """How much more often than they do it expects people to prefer the longer response, on the same pairs."""
    excess, low, high = (held_out(log, f"length_excess{end}") for end in ("", "_low", "_high"))
    beyond, expected = max(low, -high), held_out(log, "length_expected")
    if beyond > TASTE and (expected - 0.5) * excess > 0:  # one that leans less than people do is not fooled
        severity: Severity = "red" if beyond > STRONG_TASTE else "amber"
        which = "longer" if excess > 0 else "shorter"
        low, high = sorted((abs(low), abs(high)))
        yield Finding(
            LENGTH_BIAS,
            log.where,
            f"expects people to prefer the {which} response in {abs(excess):.1%} more of the pairs than they do "
            f"[{low:.1%}, {high:.1%}]",
            severity,
        )


@detects(NOT_FINITE, kinds=TRAINING)
def not_finite(log: Log) -> Iterator[Finding]:
    """The metrics that were not finite first."""
    if not log.series:
        raise Missing("the log has no metrics")
    odd = [series for series in log.series.values() if series.not_finite]
    if odd:
        first = min(series.not_finite[0] for series in odd)
        names = ", ".join(sorted({log.called(series.name) for series in odd if series.not_finite[0] == first}))
        often = max(map(lost, odd))
        seen = f"{names} at step {first}; up to {often:.0%} of a metric's values are not finite"
        fatal = any(series.name.rpartition("/")[2] in VITAL for series in odd)
        yield Finding(NOT_FINITE, log.where, seen, sureness="certain", change=slower(log), fatal=fatal)


def lost(series: Series) -> float:
    """Share of its values that are not finite."""
    return len(series.not_finite) / (len(series.not_finite) + len(series))
