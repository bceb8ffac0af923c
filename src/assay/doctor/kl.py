"""How far a policy goes while it learns from its own samples: its KL to the reference, and its entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import SAMPLING, Log
from assay.doctor.window import SIGNIFICANT, bounds, late, rose, text, together

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
KL_BEFORE_TRAINING = Mode(
    29,
    "kl-before-training",
    "policy",
    "There is a KL before anything was learned",
    "The reference is not the model that the policy starts from, or one of the two is read with dropout.",
    "Make the reference a frozen copy of the SFT model that the policy starts from, and switch dropout off in both.",
    ("negative-kl", "ratio-not-one", "kl-blow-up"),
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
ENTROPY_OUT_OF_BOUNDS = Mode(
    40,
    "entropy-out-of-bounds",
    "policy",
    "The entropy collapses or explodes",
    "The policy has become sure of one answer too early, or a bonus for entropy outweighs the reward.",
    "Collapsed: clip_high 0.28, a larger kl_coef, a smaller optim.learning_rate. Exploded: entropy_coef 0.",
    ("kl-blow-up", "never-stops"),
)
NO_CHANCE = 1e-6
"""The p beyond which chance is out of the question."""
START_KL = 1e-3
"""Nats per token; the catalogue's. Healthy runs start below 1e-6, bfloat16 included where both are read alike."""
LONGEST = 1000
"""Tokens that answers are taken to have where nobody says how long they are: few have more."""
KL_OVER_TARGET = 3.0
"""The catalogue's. An adaptive β that works keeps a run within 1.5 of its target."""
SURPRISE, NATS = 3.0, 1.0
"""Answers are so many times as surprising to the reference as its own are, and by so many nats per token more. Healthy
runs stay near 1: they choose among the answers that the reference gives."""
COLLAPSED, EXPLODED, LEAST_CHANGE = 0.2, 1.5, 0.1
"""Entropy as a share of the start's (a fifth is the catalogue's, half as much again beyond all healthy runs:
docs/results/doctor.md), and nats a token that it must have changed by besides."""
FEW_OF_MANY = "The policy had thousands of answers to a prompt and gives a few: what it does not try it cannot learn."
OPEN = 8.0
"""Nats an answer: e^8 is 3,000 answers to a prompt, which no task of one right word has. Healthy runs of the stages'
toy, where one word is right, begin below 2 and end near 0; those of PPO in the embedded world begin at 10 or more, and
keep two fifths of the entropy of a token."""
WHEN_COLLAPSED = (
    "Raise `kl_coef`, and lower `optim.learning_rate` to a third. Set `clip_high: 0.28`, which lets rare tokens grow."
)
WHEN_EXPLODED = "Lower `optim.learning_rate` to a third. Set `entropy_coef: 0`."


@detects(NEGATIVE_KL, kinds=SAMPLING)
def negative_kl(log: Log) -> Iterator[Finding]:
    """Σ log(π_ref/π) of answers drawn from π exceeds log(1/p) with a chance of at most p: π_ref/π is 1 on average.

    Markov's inequality: no normal distribution and no variance, which rare answers with a large KL would belie. It is
    asked of every stretch of the log; a batch of unknown size counts as one answer, the least that it can be worth.
    """
    if log.config.get("resample"):
        raise Missing("groups were chosen by their scores (resample), and the KL of chosen answers may be below 0")
    kl, answers = log["objective/kl"], log.config.get("batch_size") or 1
    if log.foreign and log.kind == "group" and kl.values.min() >= 0:
        raise Missing("TRL's GRPO logs an estimate of the KL that cannot be negative (k3)")
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
    if not log.counted:
        raise Missing("no column counts the trainer's steps, and the first line may come after some")
    if kl.steps[0] > 1:
        raise Missing(f"the log begins at step {kl.steps[0]}")
    tokens, per_token = length(log), first_kl(log)
    if abs(per_token) > START_KL:
        seen = f"KL {kl.first:.3g} nats an answer"
        seen += f", {per_token:.2g} per token" if tokens else f", more than {LONGEST:,} tokens would excuse"
        known = tokens and not log.foreign  # the first line of a table need not be that of the start
        seen += ", before the first update; between equal models it is 0 in every batch"
        yield Finding(KL_BEFORE_TRAINING, log.where, seen, "red", "certain" if known else "likely")


def length(log: Log) -> float | None:
    """Tokens of the first answers, at least 1; None where none are logged."""
    return max(1.0, log["lengths/response_mean"].first) if "lengths/response_mean" in log else None


def first_kl(log: Log) -> float:
    """KL of the first answers to the reference, nats per token."""
    return log["objective/kl"].first / (length(log) or LONGEST)


@detects(KL_BLOW_UP, kinds=SAMPLING)
def kl_blow_up(log: Log) -> Iterator[Finding]:
    """Far above its target; or, where there is none, answers that the reference would hardly ever give."""
    kl = late(log["objective/kl"])
    reached = log["objective/kl_coef"].last if "objective/kl_coef" in log else 0.0  # by adapting, or by corrections
    target, stronger = log.config.get("kl_target"), max(0.05, 2 * log.config.get("kl_coef", 0.0), 2 * reached)
    # One that leaps about has a wide interval, however far above its target every step is.
    if isinstance(target, int | float) and max(bounds(kl)[0], kl.min()) > KL_OVER_TARGET * target:
        seen = f"KL {text(kl)} nats an answer, never below {kl.min():.3g}, with a target of {target:g}"
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


@detects(ENTROPY_OUT_OF_BOUNDS, kinds=SAMPLING)
def entropy_out_of_bounds(log: Log) -> Iterator[Finding]:
    """Exploded, or collapsed: for nothing, or for a reward that has risen but leaves one answer of thousands."""
    series = log["objective/entropy"]
    values, start = late(series), series.first
    low, high = bounds(values)
    seen = f"entropy {text(values)} nats a token, {start:.2g} at the start"
    if low > EXPLODED * start and low - start > LEAST_CHANGE:
        cause = "A bonus for entropy, or noise in the updates, outweighs the reward."
        change = {"entropy_coef": 0.0}
        yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "red", "certain", cause, WHEN_EXPLODED, change)
    elif high < COLLAPSED * start and start - high > LEAST_CHANGE:
        if not rose(log["objective/reward"]):
            cause = "The policy has become sure of one answer without having been paid for it."
            seen = f"{seen}; the reward has not risen"
            yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "red", "likely", cause, WHEN_COLLAPSED, fatal=True)
        elif start * (length(log) or LONGEST) > OPEN:  # one that has found the one right word is sure of it, and well
            seen += "; the reward has risen"
            yield Finding(ENTROPY_OUT_OF_BOUNDS, log.where, seen, "amber", "possible", FEW_OF_MANY, WHEN_COLLAPSED)
