"""The whole pipeline by its command: one JSON object, resumable whatever kills it, the same weights in the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import Command

RECIPE = """\
# Every stage on the world, very small.
data: {world: frontdesk, documents: 200, demonstrations: 60, preferences: 80}
stages:
  - pretrain: {layers: 1, width: 32, heads: 2, vocabulary: 400, batch_size: 16, max_length: 136, checkpoint_every: 3}
  - sft: {epochs: 2, batch_size: 8, max_length: 136, checkpoint_every: 2}
  - reward: {batch_size: 8, max_length: 136, checkpoint_every: 2}
  - ppo:
      lora: {r: 4}
      episodes: 96
      batch_size: 16
      inner_epochs: 1
      max_length: 136
      checkpoint_every: 1
      evaluate_every: 2
      evaluation_prompts: 8
      sampling: {max_new_tokens: 8}
  - evaluate: {prompts: 16, max_length: 136, sampling: {max_new_tokens: 8}}
"""
STAGES = ("pretrain", "sft", "reward", "ppo", "evaluate")
REWARD_METRICS = """
    accuracy accuracy_low accuracy_high n ties truth_accuracy ece reward_gap chosen_mean rejected_mean
"""
POLICY_METRICS = """
    win_rate win_rate_low win_rate_high truth_before truth_after kl kl_target entropy_before entropy_after
    value_loss_first value_loss_last explained_variance first_ratio_error harmful_refusal_before harmful_refusal_after
    over_refusal_before over_refusal_after repetition_before repetition_after episodes episodes_per_s
"""


INTERRUPTED = """\
# An `assay` command that gets one Ctrl-C in the middle of a rollout: with the third token of all answers.
import os, signal, sys
from assay.cli.main import app
from assay.rollout.engine import Engine
from assay.stages.online import Online

sample, step = Online.sample, Engine._step

def sampled(self, prompts, *purpose):
    def interrupted(engine, slots, *settings):
        step(engine, slots, *settings)
        if "/".join(map(str, purpose)) == sys.argv[1] and len(slots.samples[0].ids) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            Engine._step = step
    Engine._step = interrupted
    return sample(self, prompts, *purpose)

Online.sample = sampled
app(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(runs_dir, stdout) of an uninterrupted `assay run --json`."""
    runs = tmp_path_factory.mktemp("whole")
    words = ["run", str(recipe), f"runs_dir={runs}", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from assay.cli.main import app; app()", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return runs, done.stdout


def weights(runs: Path) -> dict[str, bytes]:
    """Every file of weights and every result of every artifact; their folders' names are part of it."""
    kept = [file for end in ("safetensors", "samples.jsonl") for file in (runs / "artifacts").glob(f"**/*{end}")]
    return {str(file.relative_to(runs)): file.read_bytes() for file in kept}


def test_json_prints_one_object_and_nothing_else(whole: tuple[Path, str]):
    runs, out = whole
    summary = json.loads(out)
    assert summary.keys() == {"run", "dir", "wall_s", "peak_rss_mb", "stages", "unfinished", "graph", "before"}
    assert summary["before"]["verdict"] in ("green", "amber")
    assert [stage["kind"] for stage in summary["stages"].values()] == ["data", *STAGES]
    assert summary["dir"] == str(runs / summary["run"])
    assert set(REWARD_METRICS.split()) <= summary["stages"]["reward"]["metrics"].keys()
    assert set(POLICY_METRICS.split()) <= summary["stages"]["ppo"]["metrics"].keys()
    on_disk = json.loads((runs / summary["run"] / "summary.json").read_text())
    assert on_disk["stages"] == summary["stages"]


def test_a_run_leaves_a_report_a_resolved_recipe_and_whole_artifacts(whole: tuple[Path, str]):
    runs, out = whole
    summary = json.loads(out)
    folder = Path(summary["dir"])
    written = ["before.json", "recipe.yaml", "report.html", "run.lock", "summary.json"]
    assert sorted(file.name for file in folder.iterdir()) == written
    assert (folder / "report.html").stat().st_size > 10_000
    for stage in summary["stages"].values():
        artifact = runs / "artifacts" / stage["artifact"]
        manifest = json.loads((artifact / "manifest.json").read_text())
        assert manifest["metrics"] == stage["metrics"]
        assert not list(artifact.glob("**/*.tmp"))
    hidden = [entry.name for entry in (runs / "artifacts").glob(".*")]
    assert hidden == [".locks"]


def finished(command: Command) -> Any:
    """What a command with --json prints, once it ended well."""
    assert command.wait() == 0, command.err
    return json.loads(command.out)


def test_the_same_command_again_makes_nothing_and_prints_the_same(
    whole: tuple[Path, str], recipe: Path, tmp_path: Path
):
    runs, out = whole
    before = weights(runs)
    again = finished(Command(tmp_path, "run", str(recipe), f"runs_dir={runs}", "--json"))
    assert again["stages"] == json.loads(out)["stages"]
    assert weights(runs) == before


def test_lineage_and_report_speak_about_the_run(whole: tuple[Path, str], tmp_path: Path):
    runs, out = whole
    summary = json.loads(out)
    policy = summary["stages"]["ppo"]["artifact"]
    tree = finished(Command(tmp_path, "lineage", policy, "--runs-dir", str(runs), "--json"))
    assert tree["inputs"]["reward"]["inputs"]["base"]["id"] == summary["stages"]["sft"]["artifact"]
    assert tree["inputs"]["base"]["inputs"]["base"]["kind"] == "pretrain"
    assert Path(finished(Command(tmp_path, "report", summary["dir"], "--json"))["report"]).is_file()


def test_a_dry_run_counts_without_writing(recipe: Path, whole: tuple[Path, str], tmp_path: Path):
    plan = finished(
        Command(tmp_path / "log", "run", str(recipe), f"runs_dir={tmp_path / 'runs'}", "--dry-run", "--json")
    )
    assert not (tmp_path / "runs").exists()
    summary = json.loads(whole[1])
    stages = {stage["id"]: stage for stage in plan["stages"]}
    assert plan["data"]["preferences_train"] == summary["stages"]["data"]["metrics"]["preferences_train"]
    assert [stage["state"] for stage in plan["stages"]] == ["new"] * 5
    for name in STAGES:  # the plan knows the artifacts by name, before they exist
        assert stages[name]["artifact"] == summary["stages"][name]["artifact"]
    assert stages["pretrain"]["parameters"] == summary["stages"]["pretrain"]["metrics"]["parameters"]
    assert stages["sft"]["steps"] == summary["stages"]["sft"]["metrics"]["steps"]
    assert stages["ppo"]["steps"] == 96 // 16 * 1 * 2
    assert stages["ppo"]["trained"] == 1 * 2 * 4 * (32 + 32)  # one block; query and value, r·(in + out) each
    assert 0.75 < plan["memory_mb"] / summary["peak_rss_mb"] < 1.25
    assert all(stage["wall_s"] > 0 for stage in plan["stages"])
    assert plan["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in plan["stages"]), abs=0.1)


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_bit_identical(
    recipe: Path, whole: tuple[Path, str], tmp_path: Path, kills: int
):
    """One Ctrl-C and `kills` times kill -9, then to the end: weights and samples equal those of a run left alone."""
    words = ["run", str(recipe), f"runs_dir={tmp_path / 'runs'}", "--json"]
    first = Command(tmp_path / "log", *words)
    first.wait_for("pretrain: 1/")
    assert first.process.pid
    os.kill(first.process.pid, signal.SIGINT)
    assert (first.wait(), first.out) == (130, "")
    assert "the checkpoint is saved" in first.err
    assert f"hint: resume with: assay run {recipe} runs_dir={tmp_path / 'runs'}" in first.err

    moments = random.Random(kills)
    for stage in sorted(moments.choices(["pretrain", "sft", "reward", "ppo"], k=kills), key=STAGES.index):
        killed = Command(tmp_path / "log", *words)
        killed.wait_for(f"{stage}: ")
        time.sleep(moments.uniform(0, 1))
        killed.kill()

    summary = finished(Command(tmp_path / "log", *words))
    assert artifacts(summary) == artifacts(json.loads(whole[1]))
    assert weights(tmp_path / "runs") == weights(whole[0])


@pytest.mark.parametrize(
    ("rollout", "stopped"),
    [("episodes/2", "stopped after 3 of 6; the checkpoint is saved"), ("test", "stopped before the stage learnt")],
)
def test_an_interrupt_amid_a_rollout_ends_cleanly_and_the_run_goes_on_bit_identical(
    recipe: Path, whole: tuple[Path, str], tmp_path: Path, rollout: str, stopped: str
):
    runs, made = tmp_path / "runs", json.loads(whole[1])["stages"]
    for name in ("data", "pretrain", "sft", "reward"):
        shutil.copytree(*(folder / "artifacts" / made[name]["artifact"] for folder in (whole[0], runs)))
    words = ["run", str(recipe), f"runs_dir={runs}", "--only", "ppo", "--json"]
    first = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, rollout, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (first.returncode, first.stdout) == (130, "")
    assert first.stderr.count("stopping where nothing is lost: after this step") == 1
    assert f"error: {stopped}" in first.stderr
    assert f"hint: resume with: assay run {recipe} runs_dir={runs} --only ppo" in first.stderr

    finished(Command(tmp_path / "log", *words))
    policy = f"artifacts/{made['ppo']['artifact']}/"
    expected = {file: data for file, data in weights(whole[0]).items() if file.startswith(policy)}
    assert {file: data for file, data in weights(runs).items() if file.startswith(policy)} == expected


def test_a_prompt_longer_than_the_context_is_cut_and_its_response_still_learned(
    whole: tuple[Path, str], tmp_path: Path
):
    runs, out = whole
    model = runs / "artifacts" / json.loads(out)["stages"]["pretrain"]["artifact"]
    rows = [{"prompt": f"Question {n} about {n}?", "completion": f"Answer {n}."} for n in range(30)]
    rows += [{"prompt": f"And {n}? " + "I wonder why. " * 500, "completion": "Short."} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "long.yaml"
    recipe.write_text(
        f"model: {model}\ndata: {{path: {tmp_path / 'rows.jsonl'}}}\nruns_dir: {tmp_path / 'runs'}\n"
        "stages:\n  - sft: {epochs: 1, max_length: 64}\n"
    )
    metrics = finished(Command(tmp_path / "log", "run", str(recipe), "--json"))["stages"]
    sft = metrics["sft"]["metrics"]
    assert sft["rows"] + sft["dropped"] == metrics["data"]["metrics"]["demonstrations_train"]
    assert sft["dropped"] == 0
    assert sft["loss_last"] > 0


def artifacts(summary: dict[str, Any]) -> dict[str, str]:
    return {name: stage["artifact"] for name, stage in summary["stages"].items()}


def test_a_second_run_in_the_same_folder_gets_one_error(recipe: Path, tmp_path: Path):
    words = ["run", str(recipe), f"runs_dir={tmp_path / 'runs'}"]
    first = Command(tmp_path / "log", *words)
    first.wait_for("pretrain: 1/")
    second = Command(tmp_path / "log", *words)
    assert (second.wait(), second.out) == (1, "")
    first.kill()
    assert f"is being written by another run (process {first.process.pid})" in second.err
    assert "Traceback" not in second.err


def test_a_disk_that_fills_up_stops_the_run_with_one_error_and_it_resumes(recipe: Path, tmp_path: Path):
    """The limit on file size makes the kernel refuse real writes of real weights, as a full disk does."""
    words = ["run", str(recipe), f"runs_dir={tmp_path / 'runs'}", "--only", "pretrain", "--json"]
    full = Command(tmp_path / "log", *words, file_limit=2_000_000)
    assert full.wait() == 0, full.err  # the data fit
    words[1:2] = [str(recipe), "pretrain.width=256"]
    full = Command(tmp_path / "log", *words, file_limit=2_000_000)
    assert (full.wait(), full.out) == (1, "")
    assert "Traceback" not in full.err
    errors = [line for line in full.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(errors) == 2
    assert "space" in errors[1]
    assert len(list((tmp_path / "runs" / "artifacts").glob("pretrain-*"))) == 1
    finished(Command(tmp_path / "log", *words))
