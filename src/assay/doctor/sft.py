"""Supervised fine-tuning by its log; and a training loss that runs away, in any stage that has one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log, Series
from assay.doctor.window import CONFIDENCE, LATE, bounds, late, text

OVERFITTING = Mode(
    14,
    "overfitting",
    "sft",
    "The validation loss rises while the training loss falls",
    "The model has seen the demonstrations so often that it recites them instead of learning from them.",
    "Stop where the validation loss was lowest: set `epochs` lower (1 to 3), or give more demonstrations.",
    ("repetition", "entropy-out-of-bounds"),
)
LOSS_BLOW_UP = Mode(
    60,
    "loss-blow-up",
    "sft",
    "The training loss rises above where it began",
    "Steps are so long that they throw the weights away from everything that was learnt.",
    "Lower `optim.learning_rate` to a third, keep `optim.max_grad_norm` at 1 and some `optim.warmup`, and look at the "
    "rows of the step where it began.",
    ("reward-at-chance", "constant-scores", "chosen-falls", "repetition", "overfitting"),
)

RISE = 0.02  # of the lowest validation loss: twice what healthy runs of the embedded recipe vary by at their end
MUCH = 0.2  # a rise that undoes a good part of what was learnt
RISING = 2  # evaluations in a row: one alone is noise
WORSE, LEAST = 1.5, 0.1  # times the first loss, and nats: healthy runs never come back to where they began
GUESS = math.log(2)  # what a pair costs of which nothing is known
PAIRWISE = ("reward", "preference")


@detects(OVERFITTING, kinds=("sft", "pretrain", "reward"))
def overfitting(log: Log) -> Iterator[Finding]:
    """Two evaluations in a row above the lowest, the last by more than their noise, and a training loss below both."""
    held, train = log["eval/loss"], log["train/loss"]
    best = int(held.values.argmin())
    later = held.values[best + 1 :]
    rise = held.last / held.values[best] - 1
    recent = float(train.tail(max(1, len(train) // 10)).mean())
    if len(later) < RISING or (later <= held.values[best]).any() or rise < RISE or recent > held.values[best]:
        return
    margin = noise(held.values[min(best, len(held) // 2) :]) / held.values[best]
    if rise < margin:
        return
    step, steps = int(held.steps[best]), int(train.steps[-1])
    epochs, what = log.config.get("epochs"), "pairs" if log.kind == "reward" else "demonstrations"
    fewer = min(epochs - 1, max(1, round(epochs * step / steps))) if isinstance(epochs, int) else 1
    change: dict[str, Any] = {}
    if fewer:
        change = {} if log.foreign or epochs is None else {"epochs": fewer}
        cause = f"The model has seen the {what} so often that it recites them instead of learning from them."
        cure = f"Stop where the validation loss was lowest: `epochs: {fewer}`; or give more {what}."
    else:
        change = slower(log)
        cause = (
            f"In one pass the model has learnt its {what} by heart: they are few, some come again, or steps are long."
        )
        cure = f"Lower `optim.learning_rate` to a third, see that no {what} come twice, or give more of them."
    yield Finding(
        OVERFITTING,
        log.where,
        f"validation loss {held.values[best]:.3f} at step {step}, {held.last:.3f} at step {held.steps[-1]} "
        f"(+{rise:.0%}, 99 %: ± {margin:.1%}; {len(later)} evaluations above the lowest); training loss {recent:.3f}",
        "red" if rise > MUCH else "amber",
        "likely" if rise - margin > RISE else "possible",
        cause,
        cure,
        change,
    )


def noise(losses: NDArray[np.float64]) -> float:
    """By how much two evaluations differ for nothing, in 99 % of cases; roughly, where there are few.

    A smooth course has small second differences; those of noise alone have six times its variance. What bends for a
    reason is counted as noise, so that this errs to the side of caution.
    """
    bends = np.diff(losses, 2)
    deviation = math.sqrt(float((bends**2).mean()) / 6)
    return NormalDist().inv_cdf(CONFIDENCE) * math.sqrt(2) * deviation


@detects(LOSS_BLOW_UP, kinds=("sft", "pretrain", "reward", "preference", "distill"))
def loss_blow_up(log: Log) -> Iterator[Finding]:
    """The mean of the last quarter of the run, with its bound, against where it began; or of an earlier quarter.

    A run comes back from there as its rate falls, and has to learn anew what it knew: that is not fatal any more.
    """
    loss = log["train/loss"]
    if len(loss) < 2 * LATE:
        raise Missing(f"{len(loss)} steps, and {2 * LATE} are needed")
    values, start = late(loss), beginning(log)
    change = slower(log)
    if bounds(values)[0] > max(WORSE * start, start + LEAST):
        seen = f"training loss {text(values)}, {start:.3g} at the start"
        yield Finding(LOSS_BLOW_UP, log.where, seen, change=change, fatal=True)
    elif (part := lost(loss, start)) is not None:
        first, last = (loss.steps[part[end]] for end in (0, -1))
        seen = (
            f"training loss {loss.values[part].mean():.3g} from step {first} to {last}, up to "
            f"{loss.values[part].max():.3g}; {start:.3g} at the start, {values.mean():.3g} at the end"
        )
        yield Finding(LOSS_BLOW_UP, log.where, seen, change=change)


def beginning(log: Log) -> float:
    """The loss before anything is learnt: of pairs that of a guess, or of the first batch where that is more.

    Else the median of the first steps, for one batch may be odd; where the second step already is lost, so is the
    median, and twice the first loss stands for it.
    """
    loss = log["train/loss"]
    return max(loss.first, GUESS) if log.kind in PAIRWISE else min(float(np.median(loss.head(LATE))), 2 * loss.first)


def lost(loss: Series, start: float) -> NDArray[np.int64] | None:
    """The worst of the quarters after the first step, if its mean is that much above the start, and surely above it.

    Surely: in logarithms, for of wrecked batches one costs a thousand times another, and no other mean has a bound.
    """
    if loss.values.min() <= 0:
        return None
    quarters = np.array_split(np.arange(1, len(loss)), 4)
    worst = max(quarters, key=lambda part: float(loss.values[part].mean()))
    values = loss.values[worst]
    above = len(worst) >= LATE and values.mean() > WORSE * start and bounds(np.log(values / start))[0] > 0
    return worst if above else None


def slower(log: Log) -> dict[str, float]:
    """A third of the learning rate, where it is known."""
    rate = None if log.foreign else log.learning_rate
    return {"optim.learning_rate": rate / 3} if rate else {}
