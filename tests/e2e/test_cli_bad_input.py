"""Bad input, by the command a person types: one clear error (what, where, how to fix) or a counted drop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.pipeline.fakes import workplace
from typer.testing import CliRunner

from assay.cli.main import app

GOOD = [
    {"prompt": f"Question {n} about {n}?", "chosen": f"A fine answer, number {n}.", "rejected": f"Bad {n}."}
    for n in range(24)
]


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def prepare(folder: Path, content: str | bytes, *words: str, only: str = "data") -> tuple[int, str, str]:
    """`assay run` as far as the data: (exit code, stdout, stderr)."""
    recipe = workplace(folder)
    (folder / "pairs.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    result = CliRunner().invoke(app, ["run", str(recipe), "--only", only, "--json", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_pair_file_without_its_rejected_column_is_told_before_the_reward_stage(tmp_path: Path):
    content = lines(*({"prompt": row["prompt"], "chosen": row["chosen"]} for row in GOOD))
    code, out, err = prepare(tmp_path, content, only="reward")
    assert (code, out) == (2, ""), err
    assert "rejected" in err or "reward needs preferences" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ["pairs.jsonl", "empty"]),
        (lines(*GOOD[:3], '{"prompt": "Question", "chosen": ', *GOOD[3:]), ["pairs.jsonl", "line 4", "JSON"]),
        (lines(*[{"first": 1, "second": 2}] * 3), ["pairs.jsonl", "first", "second"]),
        (lines(*GOOD).encode() + b"\xff\xfe\n", ["pairs.jsonl", "UTF-8"]),
    ],
    ids=["empty file", "broken JSON line", "unknown columns", "not UTF-8"],
)
def test_an_unreadable_file_is_one_error_and_nothing_is_written(tmp_path: Path, content: str | bytes, said: list[str]):
    code, out, err = prepare(tmp_path, content)
    assert (code, out) == (2, ""), err
    assert all(words in err for words in said), err
    assert err.count("error: ") == err.count("hint: ") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "A new question?", "chosen": None, "rejected": "Bad."},
        '{"prompt": "A new question?", "chosen": NaN, "rejected": "Bad."}',
        {"prompt": "A new question?", "chosen": "", "rejected": "Bad."},
        {"prompt": "A new question?", "chosen": "The same.", "rejected": "The same."},
        GOOD[0],
    ],
    ids=["None", "NaN", "empty response", "chosen = rejected", "given twice"],
)
def test_a_bad_row_is_dropped_counted_and_shown(tmp_path: Path, bad: Any):
    code, out, err = prepare(tmp_path, lines(*GOOD, bad))
    assert code == 0, err
    summary = json.loads(out)
    metrics = summary["stages"]["data"]["metrics"]
    assert sum(metrics[f"preferences_{split}"] for split in ("train", "validation", "test")) == len(GOOD)
    folder = tmp_path / "runs" / "artifacts" / summary["stages"]["data"]["artifact"]
    dropped = json.loads((folder / "report.json").read_text())["dropped"]
    assert sum(drop["count"] for drop in dropped) == 1
    assert dropped[0]["examples"]


def test_a_bad_row_can_be_refused_instead_with_its_line(tmp_path: Path):
    content = lines(*GOOD, {"prompt": "A new question?", "chosen": None, "rejected": "Bad."})
    code, _, err = prepare(tmp_path, content, "data.clean.drop_invalid=false")
    assert code == 2
    assert f"line {len(GOOD) + 1}" in err
    assert "drop_invalid" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.pth=x"], 'did you mean "path"?'),
        (["stages=[rewrd]"], 'unknown stage "rewrd"'),
        (["reward.optim.learning_rate=fast"], "must be a number"),
        (["reward.lr=1e-5"], 'did you mean "optim.learning_rate"?'),
        (["device=cuda:99"], "this machine has no cuda:99"),
        (["--only", "reward", "model=./nowhere"], "no model at nowhere"),
        (["data.test_split=0.7", "data.validation_split=0.4"], "leave nothing to train on"),
    ],
)
def test_a_wrong_setting_is_one_error_before_anything_is_read_or_written(tmp_path: Path, words: list[str], said: str):
    code, out, err = prepare(tmp_path, lines(*GOOD), *words)
    assert (code, out) == (2, ""), err
    assert said in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def command(folder: Path, rows: str, *stages: str) -> tuple[int, str, str]:
    """`assay run` of these stages on these rows."""
    recipe = workplace(folder)
    (folder / "rows.jsonl").write_text(rows)
    top = f"model: {folder / 'model'}\nruns_dir: {folder / 'runs'}\ndata: {{path: {folder / 'rows.jsonl'}}}\n"
    recipe.write_text(top + "stages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    result = CliRunner().invoke(app, ["run", str(recipe), "--json"])
    return result.exit_code, result.stdout, result.stderr


JUDGED = [{"prompt": f"Question {n}?", "completion": f"Answer {n}.", "label": n % 2 == 0} for n in range(24)]
ALONE = [{"prompt": f"Question {n}?", "responses": [f"Answer {n}."]} for n in range(24)]
HEADS = "reward: {id: heads, objectives: {kindness: 1.0}}"


@pytest.mark.parametrize(
    ("rows", "stages", "said"),
    [
        (GOOD, ["sft", "reward", "group: {method: grpo, group_size: 1}"], ["group_size: 1", "set 2 or more"]),
        (GOOD, ["sft", "reward", "group: {method: dapo, kl_target: 6.0}"], ["kl_target"]),
        (JUDGED, ["sft", "preference: {method: dpo}"], ["preference needs preferences", "kto"]),
        (ALONE, ["sft", "reward"], ["rows.jsonl", "two"]),
        (
            GOOD,
            ["sft", HEADS, "reward: {id: read, base: heads, trained: true, objectives: {kindnes: 1.0}}"],
            ['no objective "kindnes"', 'did you mean "kindness"?'],
        ),
        (GOOD, ["sft", HEADS], ["kindness"]),
    ],
    ids=["group of one", "incompatible preset", "unpaired rows", "ranking of one", "objective of a model", "objective"],
)
def test_what_a_method_cannot_learn_from_is_one_error_before_a_model_is_loaded(
    tmp_path: Path, rows: list[Any], stages: list[str], said: list[str]
):
    """The model of the workplace is no model: whatever loads it fails otherwise."""
    code, out, err = command(tmp_path, lines(*rows), *stages)
    assert (code, out) == (2, ""), err
    assert all(words in err for words in said), err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def test_a_learning_rate_of_1e_5_is_taken_as_the_number_it_is(tmp_path: Path):
    code, _, err = prepare(tmp_path, lines(*GOOD), "reward.optim.learning_rate=1e-5")
    assert code == 0, err


def test_a_runs_folder_that_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "blocked").write_text("a file, no folder")
    code, out, err = prepare(tmp_path, lines(*GOOD), f"runs_dir={tmp_path / 'blocked'}")
    assert (code, out) == (2, ""), err
    assert "blocked" in err
    assert "runs_dir=" in err


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow),  # nobody listens there; it retries
    ],
)
def test_without_a_network_a_hub_name_is_one_error(tmp_path: Path, environment: dict[str, str]):
    recipe = tmp_path / "hub.yaml"
    recipe.write_text(f"data: {{path: nobody/no-such-data}}\nruns_dir: {tmp_path / 'runs'}\nstages: [sft]\n")
    program = "from assay.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(recipe), "--only", "data"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stdout) in ((1, ""), (2, "")), done.stderr
    assert "nobody/no-such-data" in done.stderr
    assert done.stderr.count("error: ") == done.stderr.count("hint: ") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
