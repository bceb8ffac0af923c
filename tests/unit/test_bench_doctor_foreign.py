"""Logs of TRL on trial: what is read of a finished run, and what is counted."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from bench.doctor_foreign import page, runs
from bench.doctor_foreign.runs import Fault, Seen

GUESSING = Fault("reward", "labels at random", ("reward-at-chance",))
HEALTHY = Fault("reward", "healthy")


def seen(folder: Path, fault: Fault, *, right: float) -> Seen:
    """Of a log as TRL's reward trainer writes it, with as many pairs in the right order, in training and beyond it."""
    rng = random.Random(0)
    loss = -math.log(right)
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": step / 60,
            "loss": loss + rng.gauss(0, 0.02),
            "accuracy": right + rng.gauss(0, 0.08),
            "margin": 2 * (right - 0.5) + rng.gauss(0, 0.02),
            "mean_reward": rng.gauss(0, 0.1),
            "min_reward": -1.0,
            "max_reward": 1.0,
            "learning_rate": 1e-3,
        }
        for step in range(1, 61)
    ]
    evaluated = {"eval_loss": loss, "eval_accuracy": right, "eval_runtime": 0.5, "eval_samples_per_second": 2000.0}
    rows += [{"step": step, "epoch": step / 60, **evaluated} for step in (20, 40, 60)]
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows, "train_batch_size": 16}))
    (folder / "run.json").write_text(json.dumps({"failed": ""}))
    return runs.examined(fault, 0, folder)


def test_a_fault_is_read_in_the_log_and_in_tables_of_it(tmp_path: Path) -> None:
    """Where nobody knows how many pairs were evaluated, another detector says it."""
    one = seen(tmp_path / "run", GUESSING, right=0.5)
    assert one.right
    assert list(page.table_rows([one], [])) == [[name, what, "1 of 1", "0 of 0"] for name, what in runs.TABLES.items()]
    assert list(page.otherwise_rows([one])) == []
    header = {name: (tmp_path / "run" / name).read_text().splitlines()[0] for name in runs.TABLES}
    assert [("eval_runtime" in columns, "eval_accuracy" in columns) for columns in header.values()] == [
        (True, True),
        (False, True),
    ]
    assert [one.answers[name] for name in ("reward.at_chance", "trl.at_chance", "trl.against_margin")] == [
        "found",
        "found",
        "silent",
    ]


def test_runs_are_counted_by_fault_and_by_detector(tmp_path: Path) -> None:
    guessed, learnt = (
        seen(tmp_path / name, fault, right=right)
        for name, fault, right in (("guessed", GUESSING, 0.5), ("learnt", HEALTHY, 0.8))
    )
    missed = seen(tmp_path / "missed", GUESSING, right=0.8)
    (row,) = page.fault_rows([missed, guessed])
    assert row[2:4] == ["*nothing*, reward-at-chance", "1 of 2"]
    text = page.text(dict.fromkeys(FACTS, ""), [guessed, missed, learnt])
    assert "Of 2 runs, 1 faults with each seed,\n1 of 2: 50.0 %" in text
    (rate,) = (line for line in text.splitlines() if line.startswith("| trl.at_chance | "))
    assert "| 1 of 2: " in rate
    assert "| 0 of 1: " in rate
    (dial,) = (line for line in text.splitlines() if line.startswith("| trl.constant_scores: CONSTANT | "))
    assert dial.endswith("| below 0.001 | 2 | – |")


FACTS = ("command", "commit", "date", "cpu", "cores", "memory_gb", "load_at_start", "python", "torch", "transformers")


def test_every_trainer_has_healthy_runs_and_every_fault_its_own_name() -> None:
    named = [(fault.trainer, fault.name) for fault in (*runs.HEALTHY, *runs.FAULTS)]
    assert len(set(named)) == len(named)
    assert {fault.trainer for fault in runs.HEALTHY if not fault.modes} == set(runs.BASE)
    assert all(fault.modes for fault in runs.FAULTS)
