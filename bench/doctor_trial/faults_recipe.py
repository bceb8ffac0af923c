"""Faults that a recipe shows before it runs: settings, models and a machine that do not fit together.

    with recipe(sft={"epoch": 2})(folder) as path:
        looked_at(path)        # what `assay doctor RECIPE` looks at, and what it says

The recipe is that of the small finished runs (finished_runs.py) with one thing wrong, or one of those that are shipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from bench.doctor_trial.broken_code import Patch, with_other_ids
from bench.doctor_trial.fault import Fault, Faulty
from bench.doctor_trial.finished_runs import entered, rewrite, written
from tests import tiny
from transformers import AutoModelForCausalLM

from assay.doctor.detector import Evidence, examine
from assay.doctor.finding import Diagnosis
from assay.models.load import load_tokenizer
from assay.pipeline import checkup, environment, evidence
from assay.pipeline.recipe import draft, shipped


def looked_at(path: Path) -> tuple[list[Evidence], Diagnosis]:
    """All that the doctor's command looks at before a run, and what it says."""
    seen: list[Evidence] = []

    def noted(given: Sequence[Evidence], **more: Any) -> Diagnosis:
        seen.extend(given)
        return examine(given, **more)

    with patch.object(checkup, "examine", noted):
        said = checkup.of_recipe(draft(str(path), environment={})).diagnosis
    return seen, said


# How a fault gets into a recipe.


def recipe(*changes: Callable[[Path], object], program: Sequence[Patch] = (), **settings: Any) -> Faulty:
    """The small recipe with these settings, its model changed, looked at by a program with these mistakes."""

    @contextmanager
    def faulty(folder: Path) -> Iterator[Path]:
        path = written(folder, **settings)
        for change in changes:
            change(folder / "model")
        with entered(program):
            yield path

    return faulty


def as_shipped(name: str) -> Faulty:
    """A shipped recipe that writes elsewhere, its models not asked: they are those of the healthy runs."""

    @contextmanager
    def faulty(folder: Path) -> Iterator[Path]:
        path = folder / f"{name}.yaml"
        path.write_text(f"{shipped()[name].read_text()}runs_dir: {folder / 'runs'}\n")
        with patch.object(evidence, "before", lambda stage: ()):
            yield path

    return faulty


def rate(value: float) -> dict[str, Any]:
    return {"optim": {"learning_rate": value}}


# Models that do not fit.


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()


def with_nan(model: Path) -> None:
    rewrite(model, lambda tensors: next(iter(tensors.values()))[0].fill_(float("nan")))


def with_fewer_embeddings(model: Path) -> None:
    """Of its last words the model has never had one."""
    found = AutoModelForCausalLM.from_pretrained(model)
    found.resize_token_embeddings(300)
    found.save_pretrained(model)


@contextmanager
def paid_by_the_base(folder: Path) -> Iterator[Path]:
    """A language model where a reward model should stand."""
    yield written(folder, ppo={"reward": str(folder / "model")})


@contextmanager
def taught_in_other_words(folder: Path) -> Iterator[Path]:
    teacher = folder / "teacher"
    shutil.copytree(tiny.folder("llama", pad=True), teacher)
    with_other_ids(load_tokenizer(teacher)).save_pretrained(teacher)
    learns = {"teacher": str(teacher), "base": str(folder / "model"), "sequences": 64, "batch_size": 8}
    small = {"max_length": 64, "sampling": {"max_new_tokens": 4}, **rate(1e-3)}
    yield written(folder, stages=["distill"], distill={**learns, **small})


# Machines that are too small.

WIDTH, HEADS = 2048, 16


@contextmanager
def too_large(folder: Path) -> Iterator[Path]:
    """Pretraining of a model whose weights, gradient and moments take more memory than there is."""
    layer_mb = 12 * WIDTH**2 * 4 * torch.float32.itemsize / 2**20
    layers = 1 + int(environment.memory_mb() / layer_mb)
    shape = {"layers": layers, "width": WIDTH, "heads": HEADS, "max_length": 64, "batch_size": 8}
    yield written(folder, stages=["pretrain"], pretrain={**shape, **rate(1e-4)})


memory_taken = patch.object(environment, "free_mb", lambda device: 100.0)
disk_taken = patch.object(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000))

WRONG: Sequence[tuple[str, str, Faulty]] = (
    ("cannot-run", "a key is misspelt", recipe(sft={"epoch": 2})),
    ("cannot-run", "PPO is to be paid by the SFT model", recipe(ppo={"reward": "sft"})),
    ("cannot-run", "the model's folder has no weights", recipe(without_weights)),
    ("cannot-run", "the tokenizer has no chat template", recipe(without_template)),
    ("out-of-memory", "a model for which this machine is too small", too_large),
    ("out-of-memory", "the machine says that other programs leave 100 MB", recipe(program=[memory_taken])),
    ("disk-full", "the disk says that it has room for 100 kB", recipe(program=[disk_taken])),
    ("learning-rate-out-of-range", "a hundred times the learning rate", recipe(sft=rate(3.0))),
    (
        "learning-rate-out-of-range",
        "a rate for adapters, for all weights of a policy",
        recipe(ppo={"lora": None, **rate(3e-2)}),
    ),
    ("learning-rate-out-of-range", "a rate for billions of weights, for few", recipe(reward=rate(1e-6))),
    ("no-anchor", "the weight of the penalty is 0", recipe(ppo={"kl_coef": 0.0})),
    ("no-anchor", "the recipe overoptimisation, as it is shipped", as_shipped("overoptimisation")),
    ("steps-of-noise", "one pair a step", recipe(reward={"batch_size": 1})),
    ("steps-of-noise", "as many minibatches as episodes", recipe(ppo={"minibatches": 8})),
    (
        "prompts-cut-away",
        "rows are hardly longer than answers",
        recipe(ppo={"max_length": 40, "sampling": {"max_new_tokens": 32}}),
    ),
    ("head-lost", "a language model in the place of the reward model", paid_by_the_base),
    ("tokenizer-mismatch", "the teacher has the same words under other ids", taught_in_other_words),
    ("tokenizer-mismatch", "the model has fewer embeddings than its tokenizer words", recipe(with_fewer_embeddings)),
    ("not-finite", "some of the model's weights are NaN", recipe(with_nan)),
)


def shown_by(faulty: Faulty, folder: Path) -> Sequence[Evidence]:
    with faulty(folder) as path:
        return looked_at(path)[0]


FAULTS: tuple[Fault, ...] = tuple(Fault(mode, what, partial(shown_by, faulty), faulty) for mode, what, faulty in WRONG)
HEALTHY = (
    *("sandbox", "bestof", "compare", "distill", "dpo", "objectives", "online_dpo", "process", "rankings"),
    "pretrain_tiny",
)
"""Shipped recipes that need neither a hub nor data from elsewhere, and that do nothing wrong on purpose."""
