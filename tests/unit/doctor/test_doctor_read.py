"""Runs, TRL's histories and tables become logs; half-written, odd and unknown things are told and the rest is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.doctor.read import read
from assay.errors import UsageError

WORKING = "artifacts/.reward-3.partial"
SETTINGS = {"batch_size": 16}
STOPPED = {
    **{"step": 2, "action": "stopped", "mode": "loss-blow-up", "title": "The training loss rises", "where": "reward"},
    **{"severity": "red", "sureness": "likely", "evidence": "9 after 1", "cause": "long steps", "cure": "short steps"},
    "change": {"reward.optim.learning_rate": 0.001},
}


def a_run(root: Path) -> Path:
    """Two stages, of which the artifact of the second is whole; a third at work, and one that has not begun."""
    run, artifacts = root / "mine-1", root / "artifacts"
    run.mkdir()
    stages = {
        "sft": {"kind": "sft", "artifact": "sft-1", "metrics": {"validation_loss": 0.5}},
        "aligned": {"kind": "ppo", "artifact": "ppo-2", "metrics": {"kl": 3.0, "accuracy": 0.7}},
    }
    unfinished = {
        "judge": {"kind": "reward", "artifact": "reward-3", "config": SETTINGS},
        "evaluate": {"kind": "evaluate", "artifact": "evaluate-4", "config": {}},
    }
    (run / "summary.json").write_text(json.dumps({"run": "mine-1", "stages": stages, "unfinished": unfinished}))
    for name, lines in (
        ("ppo-2", [{"objective/kl": 1.5}, {"objective/kl": None}]),
        (".reward-3.partial", [{"train/loss": 0.7}, {"train/loss": 0.6}]),
        (".reward-5.partial", [{"train/loss": 9.0}]),  # another run's
    ):
        (artifacts / name).mkdir(parents=True)
        rows = [json.dumps({"step": step, "time": 0.1, **row}) for step, row in enumerate(lines, start=1)]
        (artifacts / name / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 3, "ti')
    (artifacts / "ppo-2" / "manifest.json").write_text(json.dumps({"config": {"kl_coef": 0.05}}))
    (artifacts / "ppo-2" / "accuracy.json").write_text(json.dumps({"ceiling": 0.8}))
    return run


def test_a_run_is_read_stage_by_stage_with_what_is_missing_told(tmp_path: Path) -> None:
    found = read(a_run(tmp_path))
    sft, aligned, _ = found.logs
    assert (sft.kind, sft.where, sft.number("validation_loss"), dict(sft.series)) == ("sft", "sft", 0.5, {})
    assert (aligned.kind, aligned.where, aligned.number("kl")) == ("ppo", "aligned", 3.0)
    assert aligned["objective/kl"].values.tolist() == [1.5]
    assert aligned["objective/kl"].not_finite == (2,)
    assert aligned.setting("kl_coef") == 0.05
    assert aligned.reports["accuracy"] == {"ceiling": 0.8}
    assert aligned.number("accuracy") == 0.7
    assert not aligned.foreign
    assert found.unread == ["sft: its artifact sft-1 is gone: only the numbers of the summary are looked at"]
    assert found.notes[1:] == ["evaluate has not begun"]


def test_an_unfinished_stage_is_read_from_its_own_folder_with_its_settings(tmp_path: Path) -> None:
    found = read(a_run(tmp_path))
    (reward,) = [log for log in found.logs if log.kind == "reward"]
    assert (reward.where, reward["train/loss"].values.tolist(), reward.config) == ("judge", [0.7, 0.6], SETTINGS)
    assert found.notes[0] == "judge is not finished: only what it has logged so far is looked at"


def test_a_summary_of_odd_entries_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    stages = {"sft": 3, "judge": {"kind": "reward"}, "ppo": {"kind": "ppo", "artifact": "ppo-2", "metrics": [1]}}
    (run / "summary.json").write_text(json.dumps({"stages": stages, "unfinished": [1]}))
    found = read(run)
    (log,) = found.logs
    assert (log.where, dict(log.final), log["objective/kl"].values.tolist()) == ("ppo", {}, [1.5])
    assert found.unread == [
        "mine-1/summary.json says nothing of sft that could be read",
        "mine-1/summary.json says nothing of judge that could be read",
        "mine-1/summary.json does not say what ppo came to",
        "mine-1/summary.json: unfinished is no object with an entry for each stage",
    ]


def test_without_a_summary_the_manifests_of_what_was_planned_tell_the_stages(tmp_path: Path) -> None:
    run, artifacts = a_run(tmp_path), tmp_path / "artifacts"
    manifest = {"stage": "aligned", "kind": "ppo", "metrics": {"kl": 3.0}, "config": {"kl_coef": 0.05}}
    manifest["inputs"] = {"base": "sft-1", "policies": "sft-1,reward-3", "model": "model:0"}
    (artifacts / "ppo-2" / "manifest.json").write_text(json.dumps(manifest))
    (run / "before.json").write_text(json.dumps({"artifacts": ["reward-3", "ppo-2", "evaluate-4"]}))
    (run / "summary.json").write_text('{"stages": {"al')
    found = read(run)
    aligned, judge = found.logs
    assert (aligned.where, aligned.kind, aligned.number("kl"), aligned.setting("kl_coef")) == (
        *("aligned", "ppo", 3.0),
        0.05,
    )
    assert (judge.where, judge.kind, judge["train/loss"].values.tolist()) == ("reward-3", "reward", [0.7, 0.6])
    assert found.graph == {"aligned": ["reward-3"]}
    assert [line.partition(":")[0] for line in found.unread] == ["mine-1/summary.json is not readable"]
    assert "mine-1: its stages are told by the manifests of their artifacts" in found.notes


def test_damaged_files_cost_what_they_hold_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (tmp_path / "artifacts" / "ppo-2" / "manifest.json").write_text("{")
    (tmp_path / "artifacts" / "ppo-2" / "metrics.jsonl").write_text('nonsense\n{"step": "1", "time": 0}\n')
    (tmp_path / "artifacts" / "ppo-2" / "findings.jsonl").write_text('{"action": "stopped"}\n')
    found = read(run)
    assert found.logs[1].number("kl") == 3.0
    assert dict(found.logs[1].series) == {}
    assert [line.partition(":")[0] for line in found.unread[1:]] == [
        "ppo-2/findings.jsonl has a line without 'title'",
        "ppo-2/manifest.json is not readable",
        "ppo-2/metrics.jsonl",
    ]
    assert found.unread[-1].endswith(
        "2 of 2 lines are left out: line 1: not valid JSON (Expecting value: line 1 column "
        "1 (char 0)); line 2: its step is '1'"
    )


def test_a_log_that_is_gone_or_locked_is_told(tmp_path: Path) -> None:
    run, log = a_run(tmp_path), tmp_path / "artifacts" / "ppo-2" / "metrics.jsonl"
    log.unlink()
    assert "aligned: ppo-2 has no metrics.jsonl: only its final numbers are looked at" in read(run).unread
    log.mkdir()
    assert "ppo-2/metrics.jsonl is not readable: Is a directory" in read(run).unread


ODD_LINES = ["nonsense", "[]", '{"step": 1e400, "time": 0}', '{"step": 7, "time": 0, "train/loss": "much"}', "\xff"]


def test_a_line_that_is_none_is_left_out_and_the_others_are_read(tmp_path: Path) -> None:
    run, log = a_run(tmp_path), tmp_path / WORKING / "metrics.jsonl"
    good = [json.dumps({"step": step, "time": step, "train/loss": 1.0 / step}) for step in range(1, 9)]
    log.write_bytes("\n".join([*good[:4], *ODD_LINES, *good[4:], ""]).encode("latin-1"))
    found = read(run)
    assert found.logs[-1]["train/loss"].steps.tolist() == list(range(1, 9))
    (told,) = [note for note in found.notes if "left out" in note]
    assert told.startswith(".reward-3.partial/metrics.jsonl: 5 of 13 lines are left out: line 5: not valid JSON")
    assert "; line 6: not a JSON object; line 7: its step is inf, …" in told
    assert not any("reward-3" in line for line in found.unread)


def test_a_stage_that_its_monitor_stopped_is_so_until_it_goes_on(tmp_path: Path) -> None:
    run, folder = a_run(tmp_path), tmp_path / WORKING
    said = STOPPED | {"action": "said", "step": 1}
    (folder / "findings.jsonl").write_text(f"{json.dumps(said)}\n{json.dumps(STOPPED)}\n")
    found = read(run)
    assert found.logs[-1].stopped["mode"] == "loss-blow-up"
    assert "judge was stopped at step 2: The training loss rises: 9 after 1" in found.notes
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, "time": 0, "train/loss": 1.0}) + "\n" for step in (1, 2, 3))
    assert read(run).logs[-1].stopped == {}


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


def test_a_table_may_have_columns_that_nobody_knows(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("step,loss,charm,colour,mine/own,rewards/f/mean\n1,0.5,1,red,3,4\n2,0.4,2,blue,3,4\n")
    found = read(table)
    assert found.logs[0]["train/loss"].steps.tolist() == [1, 2]
    assert found.notes == [
        "metrics.csv: cells that are no numbers are left out: colour (2, such as 'red')",
        "metrics.csv: nothing is known of charm, mine/own",
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "hello", "no run"),
        ("x.csv", "a,b\n1,2\n", "none of the metrics"),
        ("x.csv", 'step,loss\n"one",0.5\n', "1 of 1 lines are left out, for their step is no number"),
    ],
)
def test_what_is_no_log_is_refused_with_the_way_out(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read(tmp_path / name)
    assert error.value.hint
