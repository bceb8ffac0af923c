"""`assay doctor RUN`: a fault put into what a run has made is named; the run itself shows none of them."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.doctor_trial.faults_data import spoken
from safetensors.torch import load_file, save_file
from tests import tiny

from assay.pipeline import finished
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import Request, run

PROBED = {
    "eos-not-learned",
    "label-noise",
    "swapped-labels",
    "accumulation-bias",
    "right-padded-prompts",
    "head-lost",
    "boundary-tokens",
    "tokenizer-mismatch",
    "kl-before-training",
    "wrong-reference",
    "reward-at-chance",
}
RECIPE = """\
model: {model}
data: {{path: {data}, validation_split: 0.1, test_split: 0.4}}
runs_dir: {runs}
stages:
  - sft: {{epochs: 30, batch_size: 16, max_length: 64, lora: {{r: 16}}, optim: {{learning_rate: 3.0e-2}}}}
  - reward: {{epochs: 1, batch_size: 8, max_length: 64, optim: {{learning_rate: 3.0e-3}}}}
  - ppo:
      episodes: 8
      batch_size: 8
      evaluation_prompts: 8
      max_length: 64
      lora: {{r: 4}}
      optim: {{learning_rate: 1.0e-4}}
      sampling: {{max_new_tokens: 4}}
"""


def made(folder: Path) -> Path:
    """A small run; its chosen answers begin with another word than the rejected ones."""
    rng = random.Random(0)
    rows = [
        {"prompt": f"why is {spoken(rng, rng.randint(1, 4))}?", "chosen": f"good {end}", "rejected": f"poor {end}"}
        for end in (spoken(rng, rng.randint(1, 2)) for _ in range(160))
    ]
    data, model = folder / "pairs.jsonl", folder / "model"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny.folder("llama", pad=True), model)
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE.format(model=model, data=data, runs=folder / "runs"))
    quiet = Request(say=lambda line: None, report=lambda folder: None, before=lambda *given: None)
    return Path(run(load_recipe(str(recipe), environment={}), quiet)["dir"])


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def again(healthy: Path, tmp_path: Path) -> Path:
    """A copy of the run and of all that it made."""
    shutil.copytree(healthy.parent, tmp_path / "runs")
    return tmp_path / "runs" / healthy.name


def named(folder: Path) -> dict[str, str]:
    """Every mode that is found, and where."""
    found = finished.of_run(folder, lambda line: None, seconds=math.inf).diagnosis.findings
    return {finding.mode.name: finding.where for finding in found}


def artifact(folder: Path, stage: str) -> Path:
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return folder.parent / "artifacts" / stages[stage]["artifact"]


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_healthy_run_shows_nothing_when_its_models_are_asked(healthy: Path) -> None:
    given = finished.of_run(healthy, lambda line: None, seconds=math.inf)
    assert not {finding.mode.name for finding in given.diagnosis.findings} & PROBED
    asked = {(mode.name, where) for mode, where in given.diagnosis.checked}
    assert {
        ("eos-not-learned", "sft"),
        ("accumulation-bias", "sft"),
        ("label-noise", "reward"),
        ("reward-at-chance", "reward"),
        ("head-lost", "reward"),
        ("too-good-to-be-true", "reward"),
        ("kl-before-training", "ppo"),
        ("wrong-reference", "ppo"),
        ("right-padded-prompts", "ppo"),
        ("sampler-differs", "ppo"),
    } <= asked


def head_drawn_anew(folder: Path) -> None:
    torch.manual_seed(0)
    weights(artifact(folder, "reward"), lambda tensors: tensors["score.weight"].normal_(0, 1))


def without_head(folder: Path) -> None:
    weights(artifact(folder, "reward"), lambda tensors: tensors.pop("score.weight"))


def padded_on_the_right(folder: Path) -> None:
    path = artifact(folder, "ppo") / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "right"}))


def labels_shifted(folder: Path) -> None:
    """Every row that is kept counts the prompt's last token among the labels."""
    (cache,) = (folder.parent / "cache").glob("*")
    for path in cache.glob("*.rows"):
        kept = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint16).to(torch.int64)
        with np.load(path.with_suffix(".npz")) as index:
            starts = np.cumsum([0, *index["sizes"][:-1]]) // 2
        kept[torch.from_numpy(starts)] -= 1
        path.write_bytes(kept.to(torch.uint16).numpy().tobytes())


def bare_base(folder: Path) -> None:
    """The SFT folder holds the base's weights, and its adapter lies beside them unmerged."""
    recipe = load_recipe(str(folder / "recipe.yaml"), environment={}).recipe
    shutil.copy(Path(recipe.model.path) / "model.safetensors", artifact(folder, "sft") / "model.safetensors")


@pytest.mark.parametrize(
    ("fault", "mode", "where"),
    [
        (head_drawn_anew, "head-lost", "reward"),
        (without_head, "head-lost", "reward"),
        (padded_on_the_right, "right-padded-prompts", "ppo"),
        (labels_shifted, "boundary-tokens", "reward"),
        (bare_base, "wrong-reference", "ppo"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_in_what_was_made_is_named(again: Path, fault: Callable[[Path], None], mode: str, where: str) -> None:
    fault(again)
    assert named(again).get(mode) == where


def test_what_the_logs_cannot_tell_stays_told_when_the_models_have_answered(again: Path) -> None:
    """Without a stage's log there is no verdict, whatever its model says; and stages keep their order of making."""
    (artifact(again, "sft") / "metrics.jsonl").unlink()
    given = finished.of_run(again, lambda line: None, seconds=0)
    assert given.verdict in ("unchecked", "red")
    assert any("metrics.jsonl" in line for line in given.unread)
    assert given.diagnosis.places["ppo"] == ["data", "sft", "reward"]
