"""A stage that breaks is told of, stopped with a checkpoint that can be gone on from, or corrected; killed or not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.doctor.examination import examination
from assay.doctor.finding import Finding
from assay.doctor.sft import LOSS_BLOW_UP
from assay.errors import Interrupted, TrainingError
from assay.models.checkpoint import load_checkpoint
from assay.pipeline.artifacts import CHECKPOINT
from assay.pipeline.recipe import NamedRecipe, load_recipe
from assay.pipeline.runner import Request, Stage, run
from assay.pipeline.steps import steps
from assay.pipeline.watch import START as NO_CHECKPOINT
from assay.pipeline.watch import Again, Watch
from assay.stages.context import Remedy, RunContext, StageInputs
from assay.tracking.metrics import read_json_lines, read_metrics

from .fakes import workplace

STEPS = 48
START = 1.0


class Learner:
    """A stage of one weight that its loss follows. It goes wrong after `breaks` steps, until it was `mended` times."""

    def __init__(self, *, breaks: int = STEPS, mended: int = 1, gone: float = 9.0, every: int = 3) -> None:
        self.breaks, self.mended, self.gone, self.every = breaks, mended, gone, every
        self.began: list[int] = []
        self.kill: Callable[[int], None] = lambda step: None

    def stage(self, kind: str) -> Stage:
        def run_stage(config: Any, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
            saved = ctx.restore()
            done, weight = (saved[0], saved[1]["weight"]) if saved else (0, torch.tensor([START]))
            self.began.append(done)
            with ctx.progress(STEPS, kind):
                for step in range(done + 1, STEPS + 1):
                    self.kill(step)
                    broken = step > self.breaks and ctx.remedy.times < self.mended
                    weight = weight * 0 + self.gone if broken else weight * (1 - 0.01 * ctx.remedy.rate)
                    ctx.log(step, {"train/loss": float(weight) if math.isfinite(float(weight)) else 0.5})
                    if step == STEPS:
                        break
                    trouble, interrupted = ctx.trouble(), ctx.interrupted()
                    if trouble or interrupted or step % self.every == 0:
                        ctx.checkpoint(step, {"weight": weight}, {})
                    if trouble:
                        raise trouble
                    if interrupted:
                        raise Interrupted("stopped")
            (ctx.folder / "weights.txt").write_text(str(float(weight)))
            return {"weight": float(weight)}

        return run_stage


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = workplace(tmp_path)
    path.write_text(path.read_text().replace("  - reward\n  - ppo\n", ""))
    return path


def load(recipe: Path, *overrides: str) -> NamedRecipe:
    return load_recipe(str(recipe), overrides, {})


class Said(list[str]):
    def request(self, learner: Learner, **changes: Any) -> Request:
        quiet = {"report": lambda folder: None, "before": lambda *run: None}
        return Request(stage=learner.stage, say=self.append, **{**quiet, **changes})

    def about(self, words: str) -> list[str]:
        return [line for line in self if words in line]


def partial(recipe: Path) -> Path:
    (folder,) = (recipe.parent / "runs" / "artifacts").glob(".sft-*.partial")
    return folder


def artifact(summary: dict[str, Any]) -> Path:
    return Path(summary["dir"]).parent / "artifacts" / summary["stages"]["sft"]["artifact"]


def actions(folder: Path) -> list[tuple[str, str]]:
    return [(row["action"], row["mode"]) for row in read_json_lines(folder / "findings.jsonl")]


def test_a_healthy_stage_says_nothing_and_leaves_no_findings(recipe: Path) -> None:
    said = Said()
    summary = run(load(recipe), said.request(Learner()))
    assert said.about("sft step") == []
    assert not (artifact(summary) / "findings.jsonl").exists()


def test_a_broken_stage_stops_once_with_a_checkpoint_and_can_be_made_to_go_on(recipe: Path) -> None:
    said, learner = Said(), Learner(breaks=10)
    with pytest.raises(TrainingError, match=r"sft stopped after step \d+: the training loss rises") as error:
        run(load(recipe), said.request(learner))
    assert len(said.about("sft step")) == 1
    for word in ("sft.optim.learning_rate=", "doctor.act=warn", "doctor.act=correct", "docs/doctor/loss-blow-up.md"):
        assert word in error.value.hint
    assert error.value.exit_code == 1
    folder = partial(recipe)
    assert actions(folder) == [("said", "loss-blow-up"), ("stopped", "loss-blow-up")]
    at = read_metrics(folder / "metrics.jsonl")[-1].step
    _, state = load_checkpoint(folder / CHECKPOINT) or ({}, {})
    assert state["step"] == at < STEPS

    with pytest.raises(TrainingError, match=f"stopped after step {at + 1}"):  # nothing has changed
        run(load(recipe), said.request(learner))
    summary = run(load(recipe, "doctor.act=warn"), said.request(learner))
    assert learner.began == [0, at, at + 1]
    assert len(said.about("sft step")) == 1, "what was said is not said again"
    assert (artifact(summary) / "weights.txt").read_text() == "9.0"
    told = " ".join(examination(Path(summary["dir"])).notes)
    assert f"sft was stopped at step {at}: The training loss rises above where it began" in told


def test_weights_that_are_not_finite_never_replace_a_checkpoint(recipe: Path) -> None:
    said, learner = Said(), Learner(breaks=10, gone=math.nan)
    for act in ("stop", "warn"):
        with pytest.raises(TrainingError, match="1 of 1 tensors to save are not finite, first weight") as error:
            run(load(recipe, f"doctor.act={act}"), said.request(learner))
        assert "the checkpoint of step 9 is kept" in error.value.hint
        tensors, state = load_checkpoint(partial(recipe) / CHECKPOINT) or ({}, {})
        assert state["step"] == 9
        assert tensors["weight"].isfinite().all()
    assert actions(partial(recipe))[-1] == ("stopped", "not-finite")


@pytest.mark.parametrize("gone", [9.0, math.nan], ids=["blow-up", "nan"])
def test_a_corrected_stage_goes_back_before_the_trouble_and_ends_well(recipe: Path, gone: float) -> None:
    said, learner = Said(), Learner(breaks=20, gone=gone)
    summary = run(load(recipe, "doctor.act=correct"), said.request(learner))
    folder = artifact(summary)
    back = learner.began[1]
    assert learner.began == [0, back]
    assert 9 <= back <= 20
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line.step for line in lines] == list(range(1, STEPS + 1))
    assert [line.step for line in lines if "doctor/lr_factor" in line.values] == list(range(back + 1, STEPS + 1))
    assert lines[-1].values["doctor/lr_factor"] == pytest.approx(1 / 3)
    assert lines[-1].values["train/loss"] == pytest.approx(START * 0.99**back * (1 - 0.01 / 3) ** (STEPS - back))
    assert actions(folder)[-1][0] == "corrected"
    assert len(said.about("Correction 1 of 3")) == 1
    assert any("sft was corrected at step" in note for note in examination(Path(summary["dir"])).notes)
    assert not (folder / CHECKPOINT).exists()


def test_a_stage_without_a_checkpoint_before_the_trouble_begins_anew(recipe: Path) -> None:
    learner = Learner(breaks=4, every=6)
    summary = run(load(recipe, "doctor.act=correct"), Said().request(learner))
    assert learner.began == [0, 0]
    assert float((artifact(summary) / "weights.txt").read_text()) == pytest.approx(START * (1 - 0.01 / 3) ** STEPS)


def test_what_three_corrections_do_not_mend_is_stopped(recipe: Path) -> None:
    said, learner = Said(), Learner(breaks=10, mended=9)
    with pytest.raises(TrainingError, match="sft stopped after step"):
        run(load(recipe, "doctor.act=correct"), said.request(learner))
    assert len(learner.began) == 4
    assert [action for action, _ in actions(partial(recipe)) if action != "said"] == ["corrected"] * 3 + ["stopped"]


def test_a_correction_stays_on_record_however_far_back_a_later_one_goes(tmp_path: Path) -> None:
    """From step 12 to step 4 to the start: three corrections, each a third of the rate, and β raised for each."""
    (tmp_path / CHECKPOINT).mkdir()
    (tmp_path / CHECKPOINT / "state.json").write_text("{}")
    said: list[str] = []

    def begun(step: int, knows: int = 0) -> Watch:
        watch = Watch(tmp_path, kind="sft", where="sft", config={}, act="correct", say=said.append)
        watch.resume(step, corrections=knows)
        return watch

    fatal = Finding(LOSS_BLOW_UP, "sft", "loss 9", fatal=True)
    for number, (back, seen) in enumerate(((12, 20), (4, 16), (NO_CHECKPOINT, 9))):
        watch = begun(20 if number == 0 else seen - 1, number)
        watch.monitor.sound = lambda step, mode, most=back: step <= most
        watch.see(seen, {"train/loss": 1.0})
        watch.saved(back if back != NO_CHECKPOINT else 4)
        watch.monitor.fatal = fatal
        with pytest.raises(Again):
            watch.trouble()
        watch.close()
        assert begun(back).remedy == Remedy(number + 1, number + 1), "the checkpoint knows of no correction"
        assert begun(back, number).remedy == Remedy(number + 1, 1), "the checkpoint knows of the earlier ones"
    assert [row["action"] for row in read_json_lines(tmp_path / "findings.jsonl")] == ["corrected"] * 3
    assert [re.findall(r"Correction \d of 3: back to (?:step \d+|the start)", line)[0] for line in said] == [
        "Correction 1 of 3: back to step 12",
        "Correction 2 of 3: back to step 4",
        "Correction 3 of 3: back to the start",
    ]


@pytest.mark.parametrize(
    "killed_at", [pytest.param(4, marks=pytest.mark.slow), 21, pytest.param(30, marks=pytest.mark.slow)]
)
def test_a_corrected_run_that_was_killed_ends_as_if_it_had_not_been(recipe: Path, killed_at: int) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    elsewhere = load(recipe, "doctor.act=correct", f"runs_dir={recipe.parent / 'whole'}")
    whole = run(elsewhere, Said().request(Learner(breaks=20)))
    learner, left = Learner(breaks=20), [None]

    def kill(step: int) -> None:
        if step == killed_at and left:
            left.pop()
            raise Killed

    learner.kill = kill
    with pytest.raises(Killed):
        run(load(recipe, "doctor.act=correct"), Said().request(learner))
    again = run(load(recipe, "doctor.act=correct"), Said().request(learner))
    for name in ("metrics.jsonl", "findings.jsonl"):
        rows = [list(read_json_lines(artifact(one) / name)) for one in (whole, again)]
        assert [{**row, "time": 0} for row in rows[0]] == [{**row, "time": 0} for row in rows[1]]
    assert (artifact(whole) / "weights.txt").read_text() == (artifact(again) / "weights.txt").read_text()


def test_a_run_that_may_only_stop_shares_what_one_that_may_only_warn_has_made(recipe: Path) -> None:
    ids = {act: [s.identity.id for s in steps(load(recipe, f"doctor.act={act}"), ["sft"])] for act in ACTS}
    folders = {act: load(recipe, f"doctor.act={act}").run_dir for act in ACTS}
    assert ids["stop"] == ids["warn"]
    assert ids["stop"][0] == ids["correct"][0], "data are prepared alike"
    assert ids["stop"][1] != ids["correct"][1]
    assert folders["stop"] == folders["warn"] == load(recipe).run_dir != folders["correct"]


ACTS = ("warn", "stop", "correct")


def test_the_summary_of_a_run_is_written_as_json_whatever_was_found(recipe: Path) -> None:
    summary = run(load(recipe, "doctor.act=warn"), Said().request(Learner(breaks=10)))
    row = json.loads((artifact(summary) / "findings.jsonl").read_text().splitlines()[0])
    assert {"step", "action", "mode", "severity", "evidence", "cure", "change", "page"} <= row.keys()
