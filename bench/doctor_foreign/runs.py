"""Real runs of TRL's trainers, healthy and with one fault put in, and what the doctor says of their logs."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.doctor_trial.case import Answer, answer
from bench.doctor_trial.dials import detector_name, standings
from bench.peers import trl_logs
from bench.race.sides import environment, side

from assay.doctor.detector import DETECTORS, examine
from assay.doctor.examination import Examination, examination
from assay.doctor.foreign import Foreign
from assay.doctor.read import read
from assay.doctor.rows import STATE
from assay.models.scratch import new_model, train_tokenizer

FOLDER = common.ROOT / ".bench" / "foreign"
VERSIONS = {"ppo": "trl==1.10.0"}
"""The last release with PPO; everything else runs in the newest."""
NEWEST = "trl==1.16.0"
HEALTHY_SEEDS, SEEDS = (0, 1, 2, 3), (0, 1)
"""Of healthy runs, and of those with a fault."""
TABLES = {
    "metrics.csv": "every column that was logged",
    "plotted.csv": "no times, and so not how many pairs were evaluated",
}
"""Names of the tables that are written of a log, and what is in them."""
TIMES = ("runtime", "per_second")
"""Ends of the columns that a plot of the run would not show."""
ONCE = {"num_train_epochs": 1}
BASE: Mapping[str, Mapping[str, Any]] = {
    "reward": {"rows": 960, "batch": 16, "learning_rate": 5e-3, "noise": 0.1, "evaluate_every": 20, "settings": ONCE},
    "sft": {"rows": 512, "batch": 16, "learning_rate": 3e-3, "evaluate_every": 8, "settings": ONCE},
    "dpo": {"rows": 800, "batch": 16, "learning_rate": 3e-4, "noise": 0.1, "settings": ONCE},
    "grpo": {"rows": 20, "batch": 16, "learning_rate": 3e-4, "settings": {"beta": 0.04, "max_steps": 24}},
    "ppo": {"rows": 20, "batch": 16, "learning_rate": 3e-4, "settings": {"kl_coef": 0.05}},
}
"""What a healthy run of each trainer is told, PPO's after the reward model that it follows; `rows` are prompts a colour
pair for GRPO, and steps for PPO."""


@dataclass(frozen=True, eq=False)
class Fault:
    """One fault, or none, and what it changes of a healthy run."""

    trainer: str
    name: str
    modes: Sequence[str] = ()
    """Of which one should be named first; the first of them is what it is made to show. None for a healthy run."""
    change: Mapping[str, Any] = field(default_factory=dict)


def faster(trainer: str, times: float) -> dict[str, Any]:
    return {"learning_rate": BASE[trainer]["learning_rate"] * times}


HEALTHY = (
    *(Fault(trainer, "healthy") for trainer in BASE),
    Fault("grpo", "healthy, each batch four times", (), {"settings": {"num_iterations": 4}}),
)
FAULTS = (
    Fault("sft", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("sft", 1000)),
    Fault("sft", "learning rate 0", ("nothing-moves",), faster("sft", 0)),
    Fault(
        "sft",
        "16 demonstrations, 40 epochs",
        ("overfitting",),
        {"rows": 16, "settings": {"num_train_epochs": 40}},
    ),
    Fault("reward", "labels at random", ("reward-at-chance",), {"swapped": 0.5}),
    Fault(
        "reward",
        "labels at random, nothing evaluated",
        ("reward-at-chance",),
        {"swapped": 0.5, "evaluate_every": None},
    ),
    Fault(
        "reward",
        "columns swapped in the training file",
        ("swapped-labels",),
        {"swapped": 1.0, "held_out_swapped": 0.0},
    ),
    Fault(
        "reward",
        "eight training pairs of ten swapped",
        ("swapped-labels",),
        {"swapped": 0.8, "held_out_swapped": 0.0},
    ),
    Fault("reward", "learning rate 0", ("reward-at-chance", "nothing-moves"), faster("reward", 0)),
    Fault("reward", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("reward", 1000)),
    Fault("reward", "head of zeros", ("constant-scores",), {"unit": 0.0}),
    Fault("reward", "scores + 65", ("score-drift",), {"offset": 65.0}),
    Fault(
        "reward",
        "scores + 300, rounded to bf16",
        ("accuracy-against-margin",),
        {"offset": 300.0, "dtype": "bfloat16"},
    ),
    Fault("reward", "16 pairs to evaluate on", ("fluctuating-accuracy",), {"held_out": 16, "evaluate_every": 4}),
    Fault("dpo", "learning rate 0", ("stuck-at-ln2", "nothing-moves"), faster("dpo", 0)),
    Fault("dpo", "reference with the policy's weights", ("stuck-at-ln2",), {"shared": True}),
    Fault("dpo", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("dpo", 1000)),
    Fault("dpo", "learning rate × 30", ("chosen-falls",), faster("dpo", 30)),
    Fault(
        "dpo",
        "learning rate × 30, beta 0.01",
        ("chosen-falls",),
        {"settings": {"beta": 0.01}, **faster("dpo", 30)},
    ),
    Fault("dpo", "chosen ends with a phrase", ("saturated-early",), {"phrase": " thanks", **faster("dpo", 10)}),
    Fault("grpo", "learning rate 0", ("nothing-moves",), faster("grpo", 0)),
    Fault("grpo", "reference with the policy's weights", ("nothing-moves",), {"shared": True}),
    Fault("grpo", "learning rate × 1000", ("entropy-out-of-bounds", "kl-blow-up", "not-finite"), faster("grpo", 1000)),
    Fault(
        "grpo",
        "learning rate × 30, each batch four times",
        ("ratio-spikes",),
        {"settings": {"num_iterations": 4}, **faster("grpo", 30)},
    ),
    Fault(
        "grpo",
        "a point for every blue, 16 tokens, beta 0.0001, learning rate × 10",
        ("kl-blow-up",),
        {
            "counts": True,
            "settings": {"beta": 0.0001, "max_completion_length": 16, "max_steps": 48},
            **faster("grpo", 10),
        },
    ),
    Fault("grpo", "reward 0", ("nothing-moves", "groups-without-signal"), {"unit": 0.0}),
    Fault("grpo", "no end token taught", ("never-stops",), {"model": "endless"}),
    Fault("ppo", "learning rate 0", ("nothing-moves",), faster("ppo", 0)),
    Fault("ppo", "reference with the policy's weights", ("nothing-moves",), {"shared": True}),
    Fault(
        "ppo",
        "learning rate × 1000",
        ("ratio-spikes", "kl-blow-up", "entropy-out-of-bounds", "not-finite"),
        faster("ppo", 1000),
    ),
    Fault(
        "ppo",
        "cliprange 1000, learning rate × 10, each batch eight times",
        ("ratio-spikes",),
        {"settings": {"cliprange": 1000.0, "num_ppo_epochs": 8}, **faster("ppo", 10)},
    ),
    Fault("ppo", "kl_coef −1", ("kl-blow-up",), {"settings": {"kl_coef": -1.0}}),
    Fault(
        "ppo",
        "kl_coef 0, learning rate × 30, reward × 10",
        ("kl-blow-up", "ratio-spikes"),
        {"settings": {"kl_coef": 0.0}, "unit": 10.0, **faster("ppo", 30)},
    ),
    Fault(
        "ppo",
        "reward 0, kl_coef 0, learning rate × 3, 60 steps",
        ("entropy-out-of-bounds",),
        {"settings": {"kl_coef": 0.0}, "unit": 0.0, "rows": 60, **faster("ppo", 3)},
    ),
    Fault("ppo", "no end token taught", ("never-stops",), {"model": "endless"}),
)


@dataclass(frozen=True)
class Seen:
    """A run, and what the doctor said of its log."""

    fault: Fault
    seed: int
    said: Examination
    """Of the trainer_state.json."""
    tables: Mapping[str, Examination]
    """By name, of the same numbers in a table."""
    answers: Mapping[str, Answer]
    """By detector, of those that read any of these."""
    standings: Mapping[str, float | None]
    """By dial."""
    failed: str
    """Why the trainer broke off, if it did."""

    @property
    def modes(self) -> Sequence[str]:
        """What the fault is made to show."""
        return self.fault.modes[:1]

    @property
    def first(self) -> str:
        return first(self.said)

    @property
    def right(self) -> bool:
        return self.first in self.fault.modes if self.fault.modes else not self.first


def first(said: Examination) -> str:
    """The mode that is named first, or nothing."""
    causes = said.diagnosis.causes
    return causes[0].mode.name if causes else ""


def taught(folder: Path, *, end: bool) -> None:
    """A model of two layers that answers prompts with colours; and ends its answers, if that is taught."""
    rng = random.Random(0)
    texts = [(rng.choice(trl_logs.PROMPTS), trl_logs.answer(rng)) for _ in range(1600)]
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in texts], 330)
    model = new_model("llama", layers=2, width=64, heads=4, max_length=64, tokenizer=tokenizer, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in range(0, len(texts), 16):
        last = str(tokenizer.eos_token) if end else ""
        batch = tokenizer(
            [prompt + answer + last for prompt, answer in texts[start : start + 16]], return_tensors="pt", padding=True
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def runs(trainer: str) -> Iterator[tuple[Fault, int]]:
    """Healthy ones first."""
    for faults, seeds in ((HEALTHY, HEALTHY_SEEDS), (FAULTS, SEEDS)):
        yield from ((fault, seed) for fault in faults if fault.trainer == trainer for seed in seeds)


def made(trainer: str) -> Iterator[Seen]:
    """Train all runs of a trainer in TRL's environment, those that are not finished, and ask the doctor about each."""
    for name, end in (("base", True), ("endless", False)):
        if not (FOLDER / name / "tokenizer.json").is_file():
            taught(FOLDER / name, end=end)
    jobs: list[tuple[Fault, int, dict[str, Any]]] = []
    for number, (fault, seed) in enumerate(runs(trainer)):
        run = {**BASE[trainer], **fault.change, "trainer": trainer, "seed": seed}
        run["settings"] = {**BASE[trainer].get("settings", {}), **fault.change.get("settings", {})}
        run["model"], run["reward"] = str(FOLDER / run.get("model", "base")), str(FOLDER / "reward-model")
        if trainer == "reward" and number == 0:
            run["save"] = run["reward"]
        jobs.append((fault, seed, run | {"folder": str(FOLDER / f"{trainer}-{number}")}))
    waiting = [run for _, _, run in jobs if not finished(run)]
    if waiting:
        python = environment(VERSIONS.get(trainer, NEWEST))
        side([str(python), "-m", "bench.peers.trl_logs"], {"runs": waiting}, FOLDER / f"{trainer}-job")
    for fault, seed, run in jobs:
        yield examined(fault, seed, Path(run["folder"]))


def finished(run: Mapping[str, Any]) -> bool:
    """Whether it was trained before, with the same settings."""
    file = Path(run["folder"]) / "run.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["run"] == run


def examined(fault: Fault, seed: int, folder: Path) -> Seen:
    """What is said of a finished run's log, as its trainer wrote it and as tables; and by which detector."""
    state, tables = folder / STATE, list(written(folder / STATE))
    logs = [log for path in (state, *tables) for log in read(path).logs]
    said = {
        detector_name(detector): [examine([log], [detector]) for log in logs if detector.reads(log)]
        for detector in DETECTORS
    }
    return Seen(
        fault=fault,
        seed=seed,
        said=examination(state),
        tables={table.name: examination(table) for table in tables},
        answers={name: answer(parts) for name, parts in said.items() if parts},
        standings=standings(logs, [detector for detector in DETECTORS if detector.evidence is Foreign]),
        failed=json.loads((folder / "run.json").read_text(encoding="utf-8"))["failed"],
    )


def written(state: Path) -> Iterator[Path]:
    """The same numbers as tables, beside their log."""
    rows = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    plotted = [column for column in columns if not column.endswith(TIMES)]
    for name, kept in zip(TABLES, (columns, plotted), strict=True):
        with state.with_name(name).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, kept, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        yield state.with_name(name)
