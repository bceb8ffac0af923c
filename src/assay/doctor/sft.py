"""Supervised fine-tuning by its log."""

from __future__ import annotations

from collections.abc import Iterator

from assay.doctor.detector import detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log

OVERFITTING = Mode(
    14,
    "overfitting",
    "sft",
    "The validation loss rises while the training loss falls",
    "The model has seen the demonstrations so often that it recites them instead of learning from them.",
    "Stop where the validation loss was lowest: set `epochs` lower (1 to 3), or give more demonstrations.",
    ("repetition", "entropy-out-of-bounds"),
)

RISE = 0.02  # of the lowest validation loss: twice what healthy runs of the embedded recipe vary by at their end
MUCH = 0.2  # a rise that undoes a good part of what was learnt
RISING = 2  # evaluations in a row: one alone is noise


@detects(OVERFITTING, kinds=("sft", "pretrain", "reward"))
def overfitting(log: Log) -> Iterator[Finding]:
    """Two evaluations in a row above the lowest, by more than their noise, while the training loss is below both."""
    held, train = log["eval/loss"], log["train/loss"]
    best = int(held.values.argmin())
    later = held.values[best + 1 :]
    rise = held.last / held.values[best] - 1
    recent = float(train.tail(max(1, len(train) // 10)).mean())
    if len(later) < RISING or (later <= held.values[best]).any() or rise < RISE or recent > held.values[best]:
        return
    step, steps = int(held.steps[best]), int(train.steps[-1])
    epochs = log.config.get("epochs")
    change = {}
    if isinstance(epochs, int) and epochs > 1 and not log.foreign:
        change = {f"{log.kind}.epochs": min(epochs - 1, max(1, round(epochs * step / steps)))}
    yield Finding(
        OVERFITTING,
        log.where,
        f"validation loss {held.values[best]:.3f} at step {step}, {held.last:.3f} at step {held.steps[-1]} "
        f"(+{rise:.0%}, {len(later)} evaluations above the lowest); training loss {recent:.3f}",
        "red" if rise > MUCH else "amber",
        "likely" if len(later) > RISING or rise > MUCH else "possible",
        change=change,
    )
