"""What lies on the disk is judged by what can be read of it, and nothing is green because it could not be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assay.doctor.examination import examination, of_settings
from assay.doctor.sft import LOSS_BLOW_UP

STEPS = 40
FACTS = {"severity": "red", "sureness": "likely", "evidence": "9 after 1", "cause": "long steps", "cure": "short ones"}
STOPPED = {"step": STEPS, "action": "stopped", "mode": LOSS_BLOW_UP.name, "title": LOSS_BLOW_UP.title, **FACTS}


def lines(values: dict[int, Any]) -> str:
    rows = ({"step": step, "time": step, "train/loss": values.get(step, 1 / step)} for step in range(1, STEPS + 1))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One stage finished and one at work, both healthy."""
    (folder := tmp_path / "mine-1").mkdir()
    stages = {"sft": {"kind": "sft", "artifact": "sft-1", "metrics": {}}}
    unfinished = {"more": {"kind": "sft", "artifact": "sft-2", "config": {}}}
    (folder / "summary.json").write_text(json.dumps({"stages": stages, "unfinished": unfinished}))
    for name in ("sft-1", ".sft-2.partial"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        (tmp_path / "artifacts" / name / "metrics.jsonl").write_text(lines({}))
    (tmp_path / "artifacts" / "sft-1" / "manifest.json").write_text('{"config": {}}')
    return folder


def test_a_healthy_run_at_work_is_green(run: Path) -> None:
    given = examination(run)
    assert (given.verdict, given.stages, given.unread) == ("green", ["sft", "more"], [])


def lose_the_artifact(run: Path) -> None:
    shutil.rmtree(run.parent / "artifacts" / "sft-1")


def cut_the_summary(run: Path) -> None:
    (run / "summary.json").write_text('{"stages": {"sft"')


def empty_the_log(run: Path) -> None:
    (run.parent / "artifacts" / "sft-1" / "metrics.jsonl").write_text("\n\n")


def write_no_line(run: Path) -> None:
    (run.parent / "artifacts" / "sft-1" / "metrics.jsonl").write_text("")


def begin_nothing(run: Path) -> None:
    (run / "summary.json").write_text('{"stages": {}, "unfinished": {}}')


@pytest.mark.parametrize("harm", [lose_the_artifact, cut_the_summary, empty_the_log, write_no_line, begin_nothing])
def test_what_was_not_read_speaks_neither_for_a_run_nor_against_it(run: Path, harm: Callable[[Path], None]) -> None:
    harm(run)
    given = examination(run)
    assert given.verdict == given.facts()["verdict"] == "unchecked"
    assert given.diagnosis.verdict == "green"
    assert len(given.facts()["unread"]) == 1


def test_what_is_seen_to_be_broken_is_red_whatever_else_could_not_be_read(run: Path) -> None:
    lose_the_artifact(run)
    (run.parent / "artifacts" / ".sft-2.partial" / "metrics.jsonl").write_text(lines({STEPS: None}))
    given = examination(run)
    assert (given.verdict, [found.mode.name for found in given.diagnosis.causes]) == ("red", ["not-finite"])
    assert given.unread


def test_a_stage_that_its_monitor_stopped_is_red_whatever_its_log_shows(run: Path) -> None:
    folder = run.parent / "artifacts" / ".sft-2.partial"
    (folder / "findings.jsonl").write_text(json.dumps({**STOPPED, "where": "more", "change": {"more.x": 1}}) + "\n")
    (folder / "metrics.jsonl").write_text("nonsense\n" + lines({}))
    given = examination(run)
    (found,) = given.diagnosis.findings
    assert given.verdict == "red"
    assert (found.mode, found.where, found.cure, dict(found.change)) == (
        LOSS_BLOW_UP,
        "more",
        "short ones",
        {"more.x": 1},
    )
    assert found.evidence == f"9 after 1; its monitor stopped it at step {STEPS}"


def test_a_stop_that_the_log_shows_is_told_once(run: Path) -> None:
    folder = run.parent / "artifacts" / ".sft-2.partial"
    (folder / "findings.jsonl").write_text(json.dumps({**STOPPED, "where": "more", "change": {}}) + "\n")
    (folder / "metrics.jsonl").write_text(lines(dict.fromkeys(range(10, STEPS + 1), 9.0)))
    (found,) = [found for found in examination(run).diagnosis.findings if found.mode == LOSS_BLOW_UP]
    assert "monitor" not in found.evidence


HEADS = {
    "SFTTrainer": "loss",
    "DPOTrainer": "loss,rewards/margins,rewards/accuracies",
    "RewardTrainer": "loss,mean_reward,accuracy",
    "PPOTrainer": "objective/kl,objective/scores",
}


@pytest.mark.parametrize("trainer", HEADS)
@pytest.mark.parametrize("count", [1, 9, 40])
def test_a_log_of_a_few_lines_leaves_no_verdict_and_whose_it_is_taken_for_is_told(
    tmp_path: Path, trainer: str, count: int
) -> None:
    row = ",0.5" * len(HEADS[trainer].split(","))
    table = "".join(f"{step}{row}\n" for step in range(1, count + 1))
    (path := tmp_path / "log.csv").write_text(f"step,{HEADS[trainer]}\n{table}")
    given = examination(path)
    assert f"log.csv: taken as a log of TRL's {trainer}, by the names of its metrics" in given.notes
    if count == 40:
        assert given.unread == []
    else:
        assert given.unread == [f"log.csv has {count} lines to read, and a verdict takes 10"]
        assert given.verdict in ("unchecked", "red")


def test_numbers_of_which_only_nan_can_be_looked_for_are_not_green(run: Path) -> None:
    for name in ("sft-1", ".sft-2.partial"):
        (run.parent / "artifacts" / name / "metrics.jsonl").write_text('{"step": 1, "time": 1, "train/charm": 1}\n')
    given = examination(run)
    assert {mode.name for mode, _ in given.diagnosis.checked} == {"not-finite"}
    assert (given.verdict, given.unread) == ("unchecked", [])


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("learning_rate: 5e-7\nmodel: gpt2\nseed: 1\nlabels: {0: a}\n", ["number-as-text"]),  # keys of recipes, too
        ("lr: 1.0e-5\n", []),
        ("", None),
        ("data: here\nlr: 1e-5\n", None),
        ("stages: []\nlr: 1e-5\n", None),
        ("a: [1,\n", None),
        ("a: &a [*a]\n", None),
        ("- lr: 1e-5\n", None),
    ],
)
def test_a_map_without_stages_and_data_is_another_trainers(tmp_path: Path, text: str, modes: list[str] | None) -> None:
    (path := tmp_path / "train.yaml").write_text(text)
    given = of_settings(path)
    assert (None if given is None else [found.mode.name for found in given.diagnosis.findings]) == modes
