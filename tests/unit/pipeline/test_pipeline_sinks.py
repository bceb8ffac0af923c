"""What a run shows in a tracking tool: curves, samples, and the pictures of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import Stage, run
from assay.tracking.plots import stage_plots

from .fakes import STEPS, Fakes, workplace

RELIABILITY = {"ece": 0.04, "bins": [{"n": 5, "confidence": 0.6, "accuracy": 0.7, "low": 0.5, "high": 0.7}]}


class Measured(Fakes):
    """Fakes whose reward stage leaves a measured reliability, as the real one does."""

    def stage(self, kind: str) -> Stage:
        run_stage = super().stage(kind)

        def measured(config: Any, inputs: Any, ctx: Any) -> Mapping[str, Any]:
            if kind == "reward":
                (ctx.folder / "accuracy.json").write_text(json.dumps({"reliability": RELIABILITY}))
            return run_stage(config, inputs, ctx)

        return measured


def test_tensorboard_shows_the_curves_of_every_stage_and_the_reliability_of_the_reward_model(tmp_path: Path):
    if find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed (extra: track)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    named = load_recipe(str(workplace(tmp_path)), ("track=[tensorboard]",), {})
    summary = run(named, Measured().request())
    shown = {}
    for stage in ("sft", "reward"):
        events = EventAccumulator(str(Path(summary["dir"]) / "tensorboard" / summary["run"] / stage))
        events.Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
        shown[stage] = {name: events.Images(name) for name in events.Tags()["images"]}
    assert {stage: set(pictures) for stage, pictures in shown.items()} == {
        "sft": {"curves"},
        "reward": {"curves", "reliability"},
    }
    folder = Path(summary["dir"]).parent / "artifacts" / summary["stages"]["reward"]["artifact"]
    for name, png in stage_plots("reward", folder).items():
        (picture,) = shown["reward"][name]
        assert (picture.step, picture.encoded_image_string) == (STEPS, png)
