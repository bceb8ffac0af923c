"""`assay doctor` before a run, by its command: recipes, runs and logs are told apart; one JSON object; exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay.cli.main import app
from assay.pipeline import environment

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
data: {world: frontdesk, demonstrations: 60, preferences: 80}
stages:
  - sft: {epochs: 1, batch_size: 16, max_length: 128, optim: {learning_rate: 1.0e-3}}
  - reward: {batch_size: 16, max_length: 128, optim: {learning_rate: 5.0e-4}}
"""
OFFLINE = ("hh", "instructgpt")
"""Recipes whose models and data are on a hub."""


def assay(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, run in this process."""
    result = CliRunner().invoke(app, list(words), prog_name="assay")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def nobody_else_holds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_mb", environment.memory_mb)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    return file


def test_a_healthy_recipe_is_green(recipe: Path) -> None:
    code, out, err = assay("doctor", "mine.yaml")
    assert (code, out.splitlines()[0].partition(":")[0]) == (0, "green")
    assert "taken as the recipe mine.yaml" in err
    assert "not checked:" in out
    assert not (recipe.parent / "runs").exists()


def test_json_is_one_object_and_red_is_exit_code_one(recipe: Path) -> None:
    code, out, _ = assay("doctor", str(recipe), "sft.optim.learning_rate=2", "--json")
    given = json.loads(out)
    assert (code, given["verdict"], given["what"]) == (1, "red", str(recipe))
    (finding,) = given["findings"]
    assert finding["mode"] == "learning-rate-out-of-range"
    assert finding["page"] == "docs/doctor/learning-rate-out-of-range.md"
    assert (ROOT / finding["page"]).is_file()
    again = [f"{key}={value}" for key, value in finding["change"].items()]
    assert assay("doctor", str(recipe), *again, "--json")[0] == 0


def test_a_run_tells_what_was_found_before_it_and_is_read_as_a_run_afterwards(recipe: Path) -> None:
    code, _, err = assay("run", "mine.yaml", "sft.optim.learning_rate=2")
    assert code == 2
    assert "error: A learning rate far from any that is known to work (sft)" in err
    assert "--despite learning-rate-out-of-range" in err
    assert list(recipe.parent.glob("runs/mine*")) == []  # nothing was begun
    code, out, err = assay("run", "mine.yaml", "--json")
    assert code == 0, err
    assert "doctor: green" in err
    assert json.loads(out)["before"]["verdict"] == "green"
    run = Path(json.loads(out)["dir"])
    _, _, err = assay("doctor", run.name)
    assert "after it ran" in err
    code, _, err = assay("doctor", run.name, "seed=2")
    assert (code, "it takes no seed=2" in err) == (2, True)


def test_what_could_not_be_read_is_exit_code_two(recipe: Path) -> None:
    (run := recipe.parent / "runs" / "mine-1").mkdir(parents=True)
    (run / "summary.json").write_text('{"stages": {"sft"')
    code, out, _ = assay("doctor", "mine-1")
    assert (code, out.splitlines()[0].partition(":")[0]) == (2, "unchecked")
    assert "not read   mine-1/summary.json is not readable" in out


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 2, "error: train.yaml holds no settings"),
        ("lr: 1e-5\nlabels: {0: a}\n", 1, "taken as the settings of another trainer"),
        ("lr: [1e-5,\n", 2, "error: train.yaml:2: not valid YAML"),
    ],
)
def test_another_trainers_settings_are_read_as_it_reads_them(recipe: Path, text: str, code: int, said: str) -> None:
    (recipe.parent / "train.yaml").write_text(text)
    given, _, err = assay("doctor", "train.yaml")
    assert (given, said in err) == (code, True)


def test_what_is_none_of_them_is_told_all_that_it_could_be(recipe: Path) -> None:
    code, _, err = assay("doctor", "sandbxo")
    assert code == 2
    assert all(words in err for words in ("recipe", "run", "trainer_state.json", ".csv", "sandbox"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")))
def test_no_shipped_recipe_is_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ROOT.parent / "shared" / "data" / "hh-rlhf"
    local = name.startswith("hh_local")
    if local and not data.is_dir():
        pytest.skip("needs ../shared/data/hh-rlhf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, out, _ = assay("doctor", name, *[f"data.path={data}"] * local, "--json")
    given = json.loads(out)
    found = [finding["mode"] for finding in given["findings"]]
    assert set(found) <= ({"no-anchor"} if name == "overoptimisation" else set())  # which is so on purpose
    assert any("asks the hub" in unchecked["why"] for unchecked in given["unchecked"]) == (name in OFFLINE)
    assert (given["verdict"] == "unchecked") == (name in OFFLINE)
