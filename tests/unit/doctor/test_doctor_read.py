"""Runs, TRL's histories and tables become logs; half-written, odd and unknown things are told and the rest is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.doctor.read import read
from assay.errors import UsageError


def a_run(root: Path) -> Path:
    """Two stages, of which the artifact of the second is whole; a third at work."""
    run, artifacts = root / "mine-1", root / "artifacts"
    run.mkdir()
    stages = {
        "sft": {"kind": "sft", "artifact": "sft-1", "metrics": {"validation_loss": 0.5}},
        "aligned": {"kind": "ppo", "artifact": "ppo-2", "metrics": {"kl": 3.0, "accuracy": 0.7}},
    }
    (run / "summary.json").write_text(json.dumps({"run": "mine-1", "stages": stages}))
    for name, lines in (("ppo-2", [{"objective/kl": 1.5}, {"objective/kl": None}]), (".reward-3.partial", [{"a": 1}])):
        (artifacts / name).mkdir(parents=True)
        rows = [json.dumps({"step": step, "time": 0.1, **row}) for step, row in enumerate(lines, start=1)]
        (artifacts / name / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 3, "ti')
    (artifacts / "ppo-2" / "manifest.json").write_text(json.dumps({"config": {"kl_coef": 0.05}}))
    (artifacts / "ppo-2" / "accuracy.json").write_text(json.dumps({"ceiling": 0.8}))
    return run


def test_a_run_is_read_stage_by_stage_with_what_is_missing_told(tmp_path: Path) -> None:
    found = read(a_run(tmp_path))
    sft, aligned, reward = found.logs
    assert (sft.kind, sft.where, sft.number("validation_loss"), dict(sft.series)) == ("sft", "sft", 0.5, {})
    assert (aligned.kind, aligned.where, aligned.number("kl")) == ("ppo", "aligned", 3.0)
    assert aligned["objective/kl"].values.tolist() == [1.5]
    assert aligned["objective/kl"].not_finite == (2,)
    assert aligned.setting("kl_coef") == 0.05
    assert aligned.reports["accuracy"] == {"ceiling": 0.8}
    assert aligned.number("accuracy") == 0.7
    assert (reward.kind, reward["a"].last) == ("reward", 1.0)
    assert not aligned.foreign
    assert [note.split(":")[0] for note in found.notes] == ["sft", "reward is not finished"]


@pytest.mark.parametrize(
    ("stages", "read_too"),
    [
        ("- sft: {}\n- ppo: {}\n", False),
        ("- sft: {}\n- reward: {}\n- ppo: {}\n", True),
        ("- sft: {seeds: 2}\n- ppo: {}\n", False),
        ("- nonsense\n", True),
    ],
)
def test_what_another_run_is_at_work_on_is_not_of_this_run(tmp_path: Path, stages: str, read_too: bool) -> None:
    run = a_run(tmp_path)
    (run / "recipe.yaml").write_text(f"stages:\n{stages}")
    assert ("reward (unfinished)" in [log.where for log in read(run).logs]) is read_too


def test_a_summary_of_odd_entries_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (run / "summary.json").write_text(json.dumps({"stages": {"sft": 3, "ppo": {"kind": "ppo", "metrics": [1]}}}))
    found = read(run)
    assert [(log.where, dict(log.final)) for log in found.logs if log.kind == "ppo"] == [("ppo", {})]
    assert "mine-1/summary.json says nothing of sft that could be read" in found.notes


def test_damaged_files_cost_what_they_hold_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (tmp_path / "artifacts" / "ppo-2" / "manifest.json").write_text("{")
    (tmp_path / "artifacts" / "ppo-2" / "metrics.jsonl").write_text('{"step": 1, "time": 0}\nnonsense\n')
    found = read(run)
    assert found.logs[1].number("kl") == 3.0
    assert dict(found.logs[1].series) == {}
    assert sum("not readable" in note for note in found.notes) == 2


@pytest.mark.parametrize(
    ("kind", "row", "ours"),
    [
        ("ppo", {"objective/kl": 1.0, "objective/scores": 0.2, "lr": 1e-5}, {"objective/score": 0.2}),
        ("group", {"completions/mean_length": 9.0, "kl": 0.1, "loss": 0.0}, {"objective/kl": 0.9, "policy/loss": 0.0}),
        ("preference", {"rewards/margins": 0.4, "loss": 0.7}, {"train/reward_margin": 0.4, "train/loss": 0.7}),
        ("reward", {"mean_reward": 0.4, "accuracy": 0.7, "margin": 1.0}, {"train/accuracy": 0.7}),
        ("sft", {"loss": 0.4, "epoch": 0.5}, {"train/loss": 0.4}),
    ],
)
def test_a_trainers_history_is_told_apart_and_renamed(
    tmp_path: Path, kind: str, row: dict[str, float], ours: dict[str, float]
) -> None:
    history: list[Any] = [{"step": 10, **row}, {"step": 20, **row}, {"step": 20, "train_runtime": 3.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (log,) = read(tmp_path).logs
    assert (log.kind, log.foreign) == (kind, True)
    for name, value in ours.items():
        assert log[name].values.tolist() == [value, value]
        assert log[name].steps.tolist() == [10, 20]


def test_the_latest_checkpoint_of_a_trainer_is_read(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
    (log,) = read(tmp_path).logs
    assert log["train/loss"].steps.tolist() == [10]


def test_a_table_may_have_gaps_nans_and_columns_that_nobody_knows(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("\ufeffstep,objective/kl,colour,lr\n1,-0.5,red,1e-5\n2,,blue,\n3,nan,,1e-5\n", encoding="utf-8")
    found = read(table)
    (log,) = found.logs
    assert (log.kind, log["objective/kl"].steps.tolist(), log["objective/kl"].not_finite) == ("ppo", [1], (3,))
    assert log["policy/learning_rate"].steps.tolist() == [1, 3]
    assert found.notes == ()  # a column of words holds no number


def test_a_table_without_steps_is_numbered_and_unknown_metrics_are_named(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("loss,charm\n0.5,1\n0.4,2\n")
    found = read(table)
    assert found.logs[0]["train/loss"].steps.tolist() == [1, 2]
    assert "lines are numbered" in found.notes[0]
    assert "charm" in found.notes[1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "hello", "no run"),
        ("x.csv", "a,b\n1,2\n", "none of the metrics"),
        ("x.csv", "", "none of the metrics"),
        ("state.json", "{}", "no log_history"),
        ("state.json", "not json", "no log_history"),
    ],
)
def test_what_is_no_log_is_refused_with_the_way_out(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read(tmp_path / name)
    assert error.value.hint
