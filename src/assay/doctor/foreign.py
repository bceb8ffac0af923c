"""Logs of TRL's trainers as ours: what their metrics are called here, and in which units they are counted.

    log_of(name, rows, notes)     rows of a trainer_state.json or of a table → a Foreign log, or UsageError

TRL's own names are kept where we have no such metric: the detectors of trl.py read those. Read in TRL 1.16.0, and for
PPO in 1.10.0, the last release that has it; a few names are of releases before those.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from assay.doctor.detector import Missing
from assay.doctor.log import Log, Series
from assay.doctor.rows import COUNTED, STEPS, Rows
from assay.errors import DataError, UsageError
from assay.statistics import wilson
from assay.tracking.metrics import MetricsLine

Row = Mapping[str, float]
NOT_LOGGED = "TRL logs nothing that would show it"

PREFIXES = {"train/": "", "eval/": "eval_"}
"""What Weights & Biases and TensorBoard put before a trainer's names → what the trainer itself puts there."""

COMMON = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "eval/loss",
}
NAMES: Mapping[str, Mapping[str, str]] = {
    "ppo": {
        "objective/kl": "objective/kl",  # nats an answer, as ours
        "policy/approxkl_avg": "policy/approxkl_avg",
        "policy/clipfrac_avg": "policy/clipfrac_avg",
        "val/num_eos_tokens": "val/num_eos_tokens",
        "objective/scores": "objective/score",
        "objective/rlhf_reward": "objective/reward",
        "policy/entropy_avg": "objective/entropy",  # nats a token, over answers and their padding
        "objective/entropy": "answer/entropy",  # nats an answer: −Σ log π of what was drawn
        "loss/policy_avg": "policy/loss",
        "loss/value_avg": "val/loss",
        "lr": "policy/learning_rate",
        "val/ratio": "policy/ratio",
        "val/ratio_var": "policy/ratio_var",
    },
    "group": {
        "reward": "objective/reward",
        "reward_std": "objective/reward_std",
        "entropy": "objective/entropy",
        "frac_reward_zero_std": "objective/groups_without_signal",
        "completions/mean_length": "lengths/response_mean",
        "completion_length": "lengths/response_mean",  # before 0.16
        "completions/clipped_ratio": "lengths/truncated",
        "clip_ratio/region_mean": "policy/clipfrac_avg",
        "clip_ratio": "policy/clipfrac_avg",  # before 0.18
        "loss": "policy/loss",
        "grad_norm": "policy/grad_norm",
        "learning_rate": "policy/learning_rate",
    },
    "preference": {
        **COMMON,
        "rewards/accuracies": "train/accuracy",
        "rewards/margins": "train/reward_margin",
        "rewards/chosen": "train/chosen_reward",
        "rewards/rejected": "train/rejected_reward",
        "logps/chosen": "train/chosen_logprob",
        "logps/rejected": "train/rejected_logprob",
        "eval_logps/chosen": "eval/chosen_logprob",
    },
    "reward": {
        **COMMON,
        "accuracy": "train/accuracy",
        "margin": "train/margin",
        "mean_reward": "train/score_mean",
        "min_reward": "train/score_min",
        "max_reward": "train/score_max",
        "eval_accuracy": "eval/accuracy",
    },
    "sft": COMMON,
}
"""TRL's names → ours, by the kind of stage; the unit is the same. Names that both sides share are left out."""


def tokens(row: Row) -> float:
    """Mean length of GRPO's answers."""
    return row["completions/mean_length"] if "completions/mean_length" in row else row["completion_length"]


def sampler_kl(row: Row) -> float:
    """At least: a KL is about ½ E[Δ²] of the log-probabilities' difference Δ, and E[Δ²] ≥ E[|Δ|]², which TRL logs."""
    return row["sampling/sampling_logp_difference/mean"] ** 2 / 2


def first_length(row: Row) -> float:
    """Tokens of PPO's first answers: nats an answer by nats a token, which are over the padding, too."""
    if row["step"] != 1 or row["policy/entropy_avg"] <= 0:
        raise KeyError("step")
    return row["objective/entropy"] / row["policy/entropy_avg"]


def evaluated(row: Row) -> int:
    """How many pairs were evaluated: seconds times pairs a second."""
    return round(row["eval_runtime"] * row["eval_samples_per_second"])


def accuracy_bound(row: Row, end: int) -> float:
    """Low (0) or high (1) end of the interval of an evaluation's accuracy."""
    pairs = evaluated(row)
    interval = wilson(min(1.0, row["eval_accuracy"]) * pairs, pairs)
    bound = (interval.low, interval.high)[end]
    if bound is None:
        raise KeyError("eval_accuracy")  # of too few pairs
    return bound


DERIVED: Mapping[str, Mapping[str, tuple[str | None, Callable[[Row], float]]]] = {
    "ppo": {"lengths/response_mean": (None, first_length)},
    "group": {  # TRL counts nats a token, and we an answer, as in PPO
        "objective/kl": ("kl", lambda row: row["kl"] * tokens(row)),
        "answer/entropy": ("entropy", lambda row: row["entropy"] * tokens(row)),
        "val/sampler_kl": ("sampling/sampling_logp_difference/mean", sampler_kl),
    },
    "reward": {
        "eval/n": ("eval_runtime", evaluated),
        "eval/accuracy_low": ("eval_accuracy", lambda row: accuracy_bound(row, 0)),
        "eval/accuracy_high": ("eval_accuracy", lambda row: accuracy_bound(row, 1)),
    },
}
"""Ours in another unit, or of several of TRL's in one row → what users know it by, and how to make it."""
OTHERS = {
    *("kl", "entropy", "num_tokens", "eps", "step_time", "mean_token_accuracy", "policy_loss", "aux_loss", "epoch"),
    *("runtime", "samples_per_second", "steps_per_second", "total_flos", "train_loss", "train_runtime"),
    *("train_samples_per_second", "train_steps_per_second", "entropy_coef", "cispo_clip_ratio"),
    *("nll_loss", "log_odds_ratio", "log_odds_chosen", "_step", "_runtime", "_timestamp"),
}
"""Metrics of TRL's, and columns of Weights & Biases, that are parts of others, or that no detector needs."""
GROUPS = {
    *("completions", "clip_ratio", "rewards", "logps", "logits", "sampling", "tools", "vespo", "profiling"),
    *("objective", "policy", "loss", "val", "system"),
}
"""What stands before the slash in names of TRL's and of Weights & Biases'."""

SHOWN = 8
"""Of the unknown metrics: how many are named."""

SIGNS: Sequence[tuple[str, str]] = (
    ("objective/kl", "ppo"),
    ("completions/mean_length", "group"),
    ("frac_reward_zero_std", "group"),
    ("reward_std", "group"),
    ("rewards/margins", "preference"),
    ("rewards/chosen", "preference"),
    ("mean_reward", "reward"),
    ("margin", "reward"),
    ("loss", "sft"),
)
"""A metric that only one kind of trainer logs → the kind; the first that is there decides."""


@dataclass(frozen=True)
class Foreign(Log):
    """What a trainer of TRL's has written down; asked for what is not there, it knows what TRL never logs."""

    foreign: bool = True

    def __getitem__(self, name: str) -> Series:
        if name in self:
            return self.series[name]
        raise Missing(NOT_LOGGED if theirs_of(self.kind, name) is None else f"the log has no {name}")

    def called(self, name: str) -> str:
        return theirs_of(self.kind, name) or name

    def number(self, name: str) -> float:
        raise Missing(NOT_LOGGED)

    def report(self, name: str, part: str) -> Mapping[str, Any]:
        raise Missing(NOT_LOGGED)


def theirs_of(kind: str, name: str) -> str | None:
    """TRL's name of a metric of ours, as its trainer of this kind logs it; None where it logs no such thing."""
    if name in DERIVED.get(kind, {}):
        return DERIVED[kind][name][0]
    return next((theirs for theirs, ours in NAMES[kind].items() if ours == name), None)


def log_of(name: str, rows: Rows, notes: list[str], batch_size: int | None = None) -> Foreign:
    """The log of a trainer: `rows` of a step and its metrics under TRL's names; `batch_size` of one step, if known.

    UsageError where no metric tells which trainer it was.
    """
    seen = {metric for _, row in rows for metric in row}
    kind = next((kind for sign, kind in SIGNS if {sign, f"train/{sign}"} & seen), None)
    if kind is None:
        raise UsageError(
            f"{name} has none of the metrics that tell what was trained: {', '.join(sign for sign, _ in SIGNS)}",
            hint="name the columns as TRL does",
        )
    rows = [(step, {bare(kind, metric): value for metric, value in row.items()}) for step, row in rows]
    lines = [MetricsLine(step, 0.0, ours(kind, {**row, "step": step})) for step, row in rows]
    metrics = {metric for _, row in rows for metric in row}
    if unknown := sorted(metric for metric in metrics if not known(kind, metric)):
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        notes.append(f"{name}: nothing is known of {', '.join(unknown[:SHOWN])}{more}")
    counted = bool(seen & {*COUNTED})
    return Foreign.of(kind, name, lines, config=settings(kind, rows, batch_size), counted=counted)


def bare(kind: str, metric: str) -> str:
    """Without the prefix that an export has put before a name of TRL's."""
    for prefix, instead in PREFIXES.items():
        name = instead + metric.removeprefix(prefix)
        if metric.startswith(prefix) and known(kind, name):
            return name
    return metric


def known(kind: str, metric: str) -> bool:
    """Whether it is a metric of TRL's, of training or of an evaluation."""
    name = metric.removeprefix("eval_")
    return bool({name, metric} & {*NAMES[kind], *OTHERS, *STEPS}) or name.partition("/")[0] in GROUPS


def ours(kind: str, row: Row) -> dict[str, float]:
    """A row under our names and in our units."""
    names = NAMES[kind]
    values = {names.get(metric, metric): value for metric, value in row.items() if metric not in STEPS}
    for name, (_, derive) in DERIVED.get(kind, {}).items():
        with suppress(KeyError, OverflowError, ValueError, DataError):
            values[name] = derive(row)
    return values


def settings(kind: str, rows: Sequence[tuple[int, Row]], batch_size: int | None) -> dict[str, Any]:
    """What the log itself tells of the settings: rows of data behind a line, and passes over them."""
    found: dict[str, Any] = {}
    steps = statistics.median_low(apart([step for step, row in rows if "loss" in row]) or [0])
    episodes = statistics.median_low(apart([row["episode"] for _, row in rows if "episode" in row]) or [0])
    if size := int(episodes if kind == "ppo" else steps * (batch_size or 0)):
        found["batch_size"] = size
    epochs = [row["epoch"] for _, row in rows if math.isfinite(row.get("epoch", math.nan))]
    return found | ({"epochs": max(1, round(epochs[-1]))} if epochs else {})


def apart(numbers: Sequence[float]) -> list[float]:
    """Distances from one number to the next."""
    return [after - before for before, after in pairwise(numbers) if math.isfinite(after - before)]
