"""A run makes what does not exist, resumes what is unfinished, and survives being killed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from assay.doctor.read import read
from assay.errors import DataError, Interrupted, StorageError, TrainingError, UsageError
from assay.pipeline.lineage import describe, lineage, lines
from assay.pipeline.lock import locked
from assay.pipeline.recipe import NamedRecipe, load_recipe
from assay.pipeline.runner import Stage, run, stop_on_signals
from assay.tracking.metrics import read_metrics

from . import fakes
from .fakes import STEPS, Fakes, workplace


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return workplace(tmp_path)


def load(recipe: Path, *overrides: str) -> NamedRecipe:
    return load_recipe(str(recipe), overrides, {})


def folder_of(summary: dict[str, Any], stage: str) -> Path:
    return Path(summary["dir"]).parent / "artifacts" / summary["stages"][stage]["artifact"]


def weights(summary: dict[str, Any]) -> list[str]:
    return [(folder_of(summary, name) / "weights.txt").read_text() for name in ("sft", "reward", "ppo")]


def test_a_run_makes_every_stage_once_in_order_and_gives_each_its_inputs(recipe: Path):
    stages = Fakes()
    summary = run(load(recipe), stages.request())
    assert stages.called == ["sft", "reward", "ppo"]
    assert list(summary["stages"]) == ["data", "sft", "reward", "ppo"]
    assert stages.inputs["sft"].base == str(recipe.parent / "model")
    assert stages.inputs["ppo"].base == stages.inputs["reward"].base == str(folder_of(summary, "sft"))
    assert stages.inputs["ppo"].reward == str(folder_of(summary, "reward"))
    prompts = stages.inputs["ppo"].data.prompts
    assert len(prompts) == len(fakes.PAIRS)
    assert stages.inputs["ppo"].truth is None  # files have no truth


def test_the_summary_on_disk_is_the_summary_returned_and_its_metrics_are_flat_json(recipe: Path):
    summary = run(load(recipe), Fakes().request())
    on_disk = json.loads((Path(summary["dir"]) / "summary.json").read_text())
    keys = {"run", "dir", "wall_s", "peak_rss_mb", "stages", "unfinished", "graph"}
    assert on_disk.keys() == summary.keys() == keys
    assert on_disk["stages"] == summary["stages"]
    assert read(Path(summary["dir"])).graph == summary["graph"]
    assert summary["graph"]["ppo"] == ["data", "sft", "reward"]
    metrics = summary["stages"]["sft"]["metrics"]
    assert (metrics["name"], metrics["loss"], metrics["none"]) == ("sft", None, None)  # NaN is no JSON
    assert "nested" not in metrics
    assert summary["stages"]["data"]["metrics"]["preferences_train"] > 0
    assert 20 < summary["peak_rss_mb"] < 20_000


def test_the_manifest_says_what_made_the_artifact(recipe: Path):
    summary = run(load(recipe, "seed=5"), Fakes().request())
    manifest = json.loads((folder_of(summary, "ppo") / "manifest.json").read_text())
    stages = summary["stages"]
    assert manifest["inputs"] == {
        "data": stages["data"]["artifact"],
        "base": stages["sft"]["artifact"],
        "reward": stages["reward"]["artifact"],
    }
    assert manifest["stage"] == manifest["kind"] == "ppo"
    assert manifest["config"]["clip"] == 0.2
    assert manifest["data"]["preferences"]
    assert manifest["environment"]["python"].startswith("3.")
    assert set(manifest["code"]) == {"version", "hash", "commit"}


def test_running_again_makes_nothing_again(recipe: Path):
    first = run(load(recipe), Fakes().request())
    again = Fakes()
    second = run(load(recipe), again.request())
    assert again.called == []
    assert second["stages"] == first["stages"]


def test_a_changed_setting_makes_that_stage_and_what_reads_it_anew(recipe: Path):
    first = run(load(recipe), Fakes().request())
    again = Fakes()
    second = run(load(recipe, "reward.margin=0.5"), again.request())
    assert again.called == ["reward", "ppo"]
    assert second["stages"]["sft"] == first["stages"]["sft"]
    assert second["dir"] != first["dir"]


def test_changed_data_make_everything_anew(recipe: Path):
    run(load(recipe), Fakes().request())
    with (recipe.parent / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "One more?", "chosen": "Yes, gladly.", "rejected": "No."}\n')
    again = Fakes()
    run(load(recipe), again.request())
    assert again.called == ["sft", "reward", "ppo"]


def test_changed_weights_of_the_base_model_make_everything_anew(recipe: Path):
    run(load(recipe), Fakes().request())
    (recipe.parent / "model" / "model.safetensors").write_bytes(b"others")
    again = Fakes()
    run(load(recipe), again.request())
    assert again.called == ["sft", "reward", "ppo"]


def test_another_seed_changes_the_weights_and_the_same_seed_does_not(recipe: Path, tmp_path: Path):
    first = run(load(recipe), Fakes().request())
    same = run(load(recipe, f"runs_dir={tmp_path / 'elsewhere'}"), Fakes().request())
    other = run(load(recipe, "seed=1"), Fakes().request())
    assert weights(first) == weights(same) != weights(other)


def test_only_runs_a_stage_and_what_it_needs(recipe: Path):
    stages = Fakes()
    summary = run(load(recipe), stages.request(only="reward"))
    assert stages.called == ["sft", "reward"]
    assert list(summary["stages"]) == ["data", "sft", "reward"]


def test_the_summary_names_what_is_unfinished_while_it_is_made(recipe: Path):
    folder = load(recipe).run_dir
    seen: list[dict[str, Any]] = []

    def look(step: int) -> None:
        if step == 1:
            seen.append(json.loads((folder / "summary.json").read_text()))

    summary = run(load(recipe), Fakes(trouble={"sft": look, "ppo": look}).request())
    assert [list(at["stages"]) for at in seen] == [["data"], ["data", "sft", "reward"]]
    assert [list(at["unfinished"]) for at in seen] == [["sft", "reward", "ppo"], ["ppo"]]
    ppo = seen[1]["unfinished"]["ppo"]
    assert (ppo["kind"], ppo["artifact"]) == ("ppo", folder_of(summary, "ppo").name)
    assert ppo["config"] == json.loads((folder_of(summary, "ppo") / "manifest.json").read_text())["config"]
    assert summary["unfinished"] == {}
    assert list(run(load(recipe, "seed=1"), Fakes().request(only="sft"))["unfinished"]) == ["reward", "ppo"]


def test_only_leaves_what_is_finished_in_the_summary(recipe: Path):
    whole = run(load(recipe), Fakes().request())
    again = Fakes()
    part = run(load(recipe), again.request(only="reward"))
    assert again.called == []
    assert part["stages"] == whole["stages"]
    assert json.loads((Path(part["dir"]) / "summary.json").read_text())["stages"] == whole["stages"]
    (recipe.parent / "model" / "model.safetensors").write_bytes(b"others")  # what stood on the old weights is outdated
    assert list(run(load(recipe), Fakes().request(only="sft"))["stages"]) == ["data", "sft"]


def test_only_finds_what_is_finished_with_a_model_of_the_hub(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []

    def download(name: str, *, local_files_only: bool, **others: object) -> str:
        asked.append(local_files_only)
        return str(recipe.parent / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    recipe.write_text(recipe.read_text().replace("- ppo", "- ppo: {judge: some/judge}"))
    whole = run(load(recipe), Fakes().request())
    assert asked == [False]
    part = run(load(recipe), Fakes().request(only="sft"))
    assert part["stages"] == whole["stages"]
    assert asked == [False, True], "a stage that is not asked for downloads nothing"


def test_from_makes_a_stage_and_what_reads_it_anew(recipe: Path):
    first = run(load(recipe), Fakes().request())
    again = Fakes()
    second = run(load(recipe), again.request(start="reward"))
    assert again.called == ["reward", "ppo"]
    assert weights(second) == weights(first)
    everything = Fakes()
    run(load(recipe), everything.request(start="data"))
    assert everything.called == ["sft", "reward", "ppo"]


@pytest.mark.parametrize("option", ["only", "start"])
def test_a_stage_that_the_recipe_has_not_is_refused_with_a_suggestion(recipe: Path, option: str):
    with pytest.raises(UsageError, match='no stage "pp0"') as error:
        run(load(recipe), Fakes().request(**{option: "pp0"}))
    assert error.value.hint == 'did you mean "ppo"?'
    assert not (recipe.parent / "runs").exists()


def test_an_interrupted_run_resumes_at_its_checkpoint_and_ends_the_same(recipe: Path, tmp_path: Path):
    whole = run(load(recipe, f"runs_dir={tmp_path / 'whole'}"), Fakes().request())
    steps: list[int] = []
    with pytest.raises(Interrupted, match="stopped after step 7 of 20"):
        run(load(recipe), Fakes(trouble={"reward": steps.append}).request(stop=lambda: len(steps) == 7))
    again = Fakes()
    summary = run(load(recipe), again.request())
    assert again.called == ["reward", "ppo"]
    assert again.began_at["reward"] == 7
    assert weights(summary) == weights(whole)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert without_time(folder_of(summary, "reward") / name) == without_time(folder_of(whole, "reward") / name)


def test_a_stage_that_saves_no_checkpoint_is_finished_before_the_run_stops(recipe: Path):
    asked: list[str] = []
    first, again = Fakes(), Fakes()

    def stage(kind: str) -> Stage:
        def interrupted(config: Any, inputs: Any, ctx: Any) -> dict[str, Any]:
            asked.append(kind)
            return {}

        return interrupted if kind == "reward" else first.stage(kind)

    with pytest.raises(Interrupted, match="stopped before ppo; what is finished is kept"):
        run(load(recipe), dataclasses.replace(first.request(stop=lambda: bool(asked)), stage=stage))
    run(load(recipe), again.request())
    assert (asked, again.called) == (["reward"], ["ppo"])


def without_time(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_a_failed_stage_keeps_what_is_finished_and_resumes_from_its_checkpoint(recipe: Path):
    def fail(step: int) -> None:
        if step == 11:
            raise TrainingError("the gradient is not finite")

    with pytest.raises(TrainingError):
        run(load(recipe), Fakes(trouble={"ppo": fail}).request())
    again = Fakes()
    summary = run(load(recipe), again.request())
    assert again.called == ["ppo"]
    assert again.began_at["ppo"] == 8
    assert [line.step for line in read_metrics(folder_of(summary, "ppo") / "metrics.jsonl")] == list(range(1, 21))


def test_a_full_disk_stops_the_run_with_one_error_and_the_same_command_resumes(recipe: Path):
    def full(step: int) -> None:
        if step == 6:
            Path("/dev/full").write_text("x")

    with pytest.raises(StorageError, match="no space left") as error:
        run(load(recipe), Fakes(trouble={"sft": full}).request())
    assert "the same command resumes" in error.value.hint
    assert not list((recipe.parent / "runs" / "artifacts").glob("sft-*"))
    again = Fakes()
    run(load(recipe), again.request())
    assert again.began_at == {"sft": 4, "reward": 0, "ppo": 0}


def test_two_runs_in_one_folder_are_refused(recipe: Path):
    named = load(recipe)
    with locked(named.run_dir / "run.lock", "x"), pytest.raises(StorageError, match="is being written by another run"):
        run(named, Fakes().request())


def test_wrong_data_are_one_error_and_leave_nothing_behind(recipe: Path):
    (recipe.parent / "pairs.jsonl").write_text("{broken\n")
    with pytest.raises(DataError):
        run(load(recipe), Fakes().request())
    assert not (recipe.parent / "runs").exists()


def test_a_damaged_manifest_stops_the_run_and_names_the_folder(recipe: Path):
    summary = run(load(recipe), Fakes().request())
    (folder_of(summary, "sft") / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged") as error:
        run(load(recipe), Fakes().request())
    assert str(folder_of(summary, "sft")) in error.value.hint


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(recipe: Path, tmp_path: Path):
    """kill -9, again and again, until a run gets to its end."""
    whole = run(load(recipe, f"runs_dir={tmp_path / 'whole'}"), Fakes().request())
    moments, exits = random.Random(2), []
    for _ in range(5):
        request = Fakes(pause=0.02).request()
        process = multiprocessing.get_context("fork").Process(target=run, args=(load(recipe), request))
        process.start()
        time.sleep(moments.uniform(0.1, 0.5))
        process.kill()
        process.join()
        exits.append(process.exitcode)
    assert exits.count(-signal.SIGKILL) >= 3
    last = Fakes()
    summary = run(load(recipe), last.request())
    assert weights(summary) == weights(whole)
    for stage in ("sft", "reward", "ppo"):
        rows = without_time(folder_of(summary, stage) / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    hidden = [entry.name for entry in (recipe.parent / "runs" / "artifacts").glob(".*") if entry.name != ".locks"]
    assert hidden == []


def test_lineage_leads_from_an_artifact_to_the_data_and_the_model(recipe: Path):
    summary = run(load(recipe), Fakes().request())
    runs = recipe.parent / "runs"
    ppo = summary["stages"]["ppo"]["artifact"]
    for what in (ppo, ppo[:8], ppo.removeprefix("ppo-"), str(runs / "artifacts" / ppo)):
        tree = lineage(what, runs)
        assert tree["id"] == ppo
    assert list(tree["inputs"]) == ["data", "base", "reward"]
    assert tree["inputs"]["reward"]["inputs"]["base"]["id"] == summary["stages"]["sft"]["artifact"]
    assert tree["inputs"]["base"]["inputs"]["base"].keys() == {"model"}
    told = [(depth, role) for depth, role, _ in lines(tree)]
    assert told[:3] == [(0, ""), (1, "data"), (1, "base")]
    assert "pairs.jsonl" in describe(tree["inputs"]["data"])
    whole = lineage(summary["run"], runs)
    assert list(whole["stages"]) == ["data", "sft", "reward", "ppo"]


def test_lineage_says_what_is_no_longer_there_and_what_never_was(recipe: Path):
    summary = run(load(recipe), Fakes().request())
    runs = recipe.parent / "runs"
    shutil.rmtree(folder_of(summary, "sft"))
    tree = lineage(summary["stages"]["reward"]["artifact"], runs)
    assert "no longer on this disk" in describe(tree["inputs"]["base"])
    with pytest.raises(UsageError, match='no artifact or run "rewrd"'):
        lineage("rewrd", runs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_stops_at_once(number: signal.Signals):
    said: list[str] = []
    before = signal.getsignal(number)
    with stop_on_signals(said.append) as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert "once more stops at once" in said[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
