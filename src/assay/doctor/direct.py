"""Direct preference optimisation (DPO and its family) by its log and report."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from assay.doctor.data import SWAPPED_LABELS
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode, Severity
from assay.doctor.log import Log, Series
from assay.doctor.window import LATE, SIGNIFICANT, bounds, text, together

STUCK = Mode(
    43,
    "stuck-at-ln2",
    "direct",
    "The loss of DPO stays at 0.693 and the margin at 0",
    "Policy and reference stay the same model: they share their weights, or no weight ever changes.",
    "Give the reference weights of its own (a second load, or the backbone without the adapter), and check that the "
    "optimizer has the policy's parameters and a learning rate above 0.",
)
CHOSEN_FALLS = Mode(
    44,
    "chosen-falls",
    "direct",
    "The chosen answers become unlikely, and the samples get worse",
    "The loss only asks for a difference: both answers may fall, and the probability goes to texts that nobody wrote.",
    "Raise `beta`, lower `optim.learning_rate`, or keep the chosen answers likely with `nll_weight: 1.0`.",
    ("repetition", "never-stops", "length-growth"),
)
SATURATED = Mode(
    45,
    "saturated-early",
    "direct",
    "The accuracy is 99 % before a tenth of the data is seen",
    "The pairs are too easy: something other than quality tells chosen from rejected, such as length or a phrase.",
    "Look at what length alone and single words can tell (`assay data`), and take pairs whose answers come from the "
    "same model.",
)
LENGTH_GROWTH = Mode(
    46,
    "length-growth",
    "direct",
    "Answers are much longer than before",
    "Chosen answers are longer than rejected ones, and summed log-probabilities reward length by themselves.",
    "Normalise by length (`method: ldpo` or `simpo`), or train on pairs of like length.",
    ("never-stops",),
)

NOTHING = 1e-5  # margins, in nats times β: rounding of an answer's sum leaves less, some steps of training more
FEWEST = 4  # steps before anything can be said of their course
NO_GROWTH = 2.0  # standard errors
CHANCE = 0.5
EARLY = 0.1  # share of the data; the catalogue's
SOON = 0.3  # share of the data by which enough pairs must have been seen, or it was not early
EASY = 0.99
ENOUGH = 128  # pairs that an accuracy of 99 % needs: with fewer it is luck
LONGER = 1.5  # the catalogue's; healthy DPO on the embedded recipe stays below 1.2
MUCH_LONGER = 2.0
SHRUNK = 0.6  # of the length before
SPOILED = 0.05  # share of answers or of n-grams: healthy runs move by less than half of it


@detects(STUCK, kinds=("preference",))
def stuck(log: Log) -> Iterator[Finding]:
    """The margin between policy and reference, which is 0 in the first step and grows from there."""
    margin = log["train/reward_margin"]
    if len(margin) < FEWEST:
        raise Missing(f"{len(margin)} steps, and {FEWEST} are needed")
    later = margin.values[1:]
    loss = f"loss {log['train/loss'].last:.4f}" if "train/loss" in log else "loss unknown"
    seen = f"margin {later.mean():+.1e} on average over {len(later)} steps, {loss} (ln 2 = 0.6931)"
    half = second_half(margin)
    if abs(half).max() < NOTHING:
        rates = (("gradient", "train/grad_norm"), ("learning rate", "train/learning_rate"))
        still = " and the ".join(what for what, name in rates if name in log and not log[name].values.any())
        yield Finding(
            STUCK,
            log.where,
            seen + f"; gradient norm {log['train/grad_norm'].last:.2g}" if "train/grad_norm" in log else seen,
            sureness="certain",
            cause=f"No weight changes, for the {still} is 0."
            if still
            else "There is a gradient, and policy and reference move together: they share their weights.",
            cure="Check that the optimizer has the policy's parameters, that they require gradients, and that "
            "`optim.learning_rate` is above 0."
            if still
            else "Give the reference weights of its own: a second load, or the backbone without the adapter.",
        )
        return
    error = float(half.std()) / math.sqrt(len(half))
    if len(half) >= 2 * LATE and abs(half.mean()) < NO_GROWTH * error:
        yield Finding(
            STUCK,
            log.where,
            f"{seen}; {half.mean() / error:+.1f} standard errors from 0 in the second half",
            "amber",
            "possible",
            cause="The policy hardly moves, or the pairs teach nothing that holds for the next ones.",
            cure="Raise `optim.learning_rate` threefold, and check the labels.",
        )


def second_half(series: Series) -> NDArray[np.float64]:
    """The steps that come after what there is to learn."""
    return series.tail(len(series) // 2)


@detects(SWAPPED_LABELS, kinds=("preference",))
def backwards(log: Log) -> Iterator[Finding]:
    """Margin and accuracy of the training pairs both fall below chance: what is learnt is the opposite.

    A loss whose pairs are swapped before it sees them would learn the swapped ones, and its own margin would grow.
    """
    margin, accuracy = together(log, "train/reward_margin", "train/accuracy")
    margins, right = second_half(margin), second_half(accuracy)
    if len(margins) < LATE:
        raise Missing(f"{len(margin)} steps, and {2 * LATE} are needed")
    if bounds(margins, SIGNIFICANT)[1] < 0 and bounds(right, SIGNIFICANT)[1] < CHANCE:
        yield Finding(
            SWAPPED_LABELS,
            log.where,
            f"margin {text(margins)}, accuracy {text(right)} on the pairs that are trained on: both below chance",
            cause="Training makes the chosen answers less likely than the rejected ones: the loss has the wrong sign, "
            "or takes one column for the other.",
            cure="Read three pairs as the loss gets them, and see that it falls where the chosen answer becomes "
            "likelier; a smaller rate would only do the wrong thing slowly.",
        )


@detects(CHOSEN_FALLS, kinds=("preference",))
def chosen_falls(log: Log) -> Iterator[Finding]:
    """Falling alone is what DPO does; with samples that repeat, break off or say little else, it is harm."""
    chosen = log["eval/chosen_logprob"] if "eval/chosen_logprob" in log else log["train/chosen_logprob"]
    few = max(1, len(chosen) // 10)
    try:  # the loss was taken before the first step
        before = log.number("validation_chosen_logprob_before")
    except Missing:
        before = float(chosen.head(few).mean())
    after = float(chosen.tail(few).mean())
    if after >= before:
        return
    harm = [
        f"{what} {log.number(f'{name}_before'):.1%} → {log.number(f'{name}_after'):.1%}"
        for name, what in (("repetition", "repeated 4-grams"), ("truncated", "answers that never end"))
        if log.number(f"{name}_change_low") > 0 and log.number(f"{name}_change") > SPOILED
    ]
    before_tokens, shrunk = log.number("length_tokens_before"), log.number("length_tokens_change_high")
    if before_tokens + shrunk < SHRUNK * before_tokens:
        harm.append(f"tokens an answer {before_tokens:.1f} → {log.number('length_tokens_after'):.1f}")
    if harm:
        yield Finding(
            CHOSEN_FALLS,
            log.where,
            f"log-probability of the chosen answers {before:.1f} → {after:.1f} nats; {'; '.join(harm)}",
            change={} if log.foreign else {"nll_weight": 1.0},
        )


@detects(SATURATED, kinds=("preference", "reward"))
def saturated_early(log: Log) -> Iterator[Finding]:
    """The accuracy of the steps that end a tenth of the first pass, pooled until they are enough."""
    accuracy = log["train/accuracy"]
    size, epochs = int(log.setting("batch_size")), int(log.config.get("epochs", 1))
    steps = len(accuracy) / epochs
    window = math.ceil(ENOUGH / size)
    first = max(1, round(EARLY * steps))
    seen = accuracy.values[first : first + window]
    if first + window > SOON * steps:
        raise Missing(f"{steps:.0f} steps of {size} pairs are too few to say what the first tenth taught")
    if seen.mean() >= EASY:
        yield Finding(
            SATURATED,
            log.where,
            f"accuracy {seen.mean():.1%} over {len(seen) * size} pairs that came after {first} of {steps:.0f} steps",
            "amber",
            "likely",
        )


@detects(LENGTH_GROWTH, kinds=("preference",))
def length_growth(log: Log) -> Iterator[Finding]:
    """Tokens of the answers to the same prompts before and after, with the paired interval of the change."""
    before, after = log.number("length_tokens_before"), log.number("length_tokens_after")
    low, high = log.number("length_tokens_change_low"), log.number("length_tokens_change_high")
    if before + low > LONGER * before:
        severity: Severity = "red" if before + low > MUCH_LONGER * before else "amber"
        yield Finding(
            LENGTH_GROWTH,
            log.where,
            f"{before:.1f} → {after:.1f} tokens an answer, {after / before:.1f} times "
            f"[{1 + low / before:.1f}, {1 + high / before:.1f}]",
            severity,
            change={} if log.foreign else {"method": "ldpo"},
        )
