"""Stages that take no time: they count, log, checkpoint and write a file, as the real ones do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from assay.errors import Interrupted
from assay.pipeline.runner import Request, Stage
from assay.stages.context import RunContext, StageInputs

STEPS = 20

PAIRS = [
    {"prompt": f"Question {n} about thing {n}?", "chosen": f"A good answer number {n}.", "rejected": f"Bad {n}."}
    for n in range(30)
]
RECIPE = """\
model: {model}
data: {{path: {data}}}
runs_dir: {runs}
stages:
  - sft
  - reward
  - ppo
"""


def workplace(folder: Path) -> Path:
    """A folder with data, a model and a recipe; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    (model / "model.safetensors").write_bytes(b"weights")
    recipe = folder / "mine.yaml"
    recipe.write_text(RECIPE.format(model=model, data=folder / "pairs.jsonl", runs=folder / "runs"))
    return recipe


class Fakes:
    """Fake stages by kind, and a record of what was called with what."""

    def __init__(self, *, pause: float = 0.0, trouble: Mapping[str, Callable[[int], None]] | None = None) -> None:
        self.called: list[str] = []
        self.inputs: dict[str, StageInputs] = {}
        self.began_at: dict[str, int] = {}
        self.pause, self.trouble = pause, dict(trouble or {})

    def stage(self, kind: str) -> Stage:
        def run_stage(config: Any, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
            self.called.append(config.id or kind)
            self.inputs[config.id or kind] = inputs
            saved = ctx.restore()
            start, value = (saved[0], saved[1]["value"]) if saved else (0, torch.tensor([ctx.seed % 997]))
            self.began_at[kind] = start
            for step in range(start + 1, STEPS + 1):
                time.sleep(self.pause)
                self.trouble.get(kind, lambda step: None)(step)
                value = (value * 31 + step) % 10_007
                ctx.log(step, {"train/loss": 1 / step})
                if step % 5 == 0:
                    ctx.samples(step, [{"text": str(int(value))}])
                if ctx.interrupted() or step % 4 == 0:
                    ctx.checkpoint(step, {"value": value}, {})
                if ctx.interrupted():
                    raise Interrupted(f"stopped after step {step} of {STEPS}; the checkpoint is saved")
            (ctx.folder / "weights.txt").write_text(str(int(value)))
            return {"value": int(value), "loss": float("nan"), "nested": {"left": "out"}, "name": kind, "none": None}

        return run_stage

    def request(self, **changes: Any) -> Request:
        quiet = {"report": lambda folder: None, "say": lambda line: None, "before": lambda *run: None}
        return Request(stage=self.stage, **{**quiet, **changes})
