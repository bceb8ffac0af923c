"""Finished runs of a small recipe with one thing wrong, which only their data and models show when they are asked.

    with without_mask(folder) as run:
        finished.of_run(run, say)        # what `assay doctor RUN` does

The fault is in the data or settings that a run was made of, in what it has left on the disk, or in the program: that
which has made the run, that which looks at it, or both.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench.doctor_trial.broken_code import (
    CutOff,
    DeadHead,
    LastColumn,
    Patch,
    Unmasked,
    a_little_off,
    end_masked,
    in_fp16,
    mean_of_means,
    reentrant,
    with_dropout,
    with_other_ids,
)
from bench.doctor_trial.fault import SEED, Faulty, chance
from bench.doctor_trial.words import WORDS, spoken
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import AutoModelForCausalLM

from assay.doctor.detector import Evidence
from assay.doctor.read import read
from assay.document import write_yaml
from assay.models.backbone import Backbone
from assay.models.load import load_tokenizer
from assay.models.locate import locate
from assay.models.policy import Policy
from assay.models.reward_model import RewardModel
from assay.pipeline import ask_policy, ask_reward, finished
from assay.pipeline.asking import ASKED
from assay.pipeline.evidence import Gathered
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import Request, run
from assay.rollout.engine import Engine

Row = dict[str, Any]
Tensors = dict[str, torch.Tensor]
STAGES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"epochs": 30, "batch_size": 16, "max_length": 64, "lora": {"r": 16}, "optim": {"learning_rate": 3e-2}},
    "reward": {"epochs": 1, "batch_size": 8, "max_length": 64, "optim": {"learning_rate": 3e-3}},
    "ppo": {
        "episodes": 8,
        "batch_size": 8,
        "evaluation_prompts": 8,
        "max_length": 64,
        "lora": {"r": 4},
        "optim": {"learning_rate": 1e-4},
        "sampling": {"max_new_tokens": 4},
    },
}
QUIET = Request(say=lambda line: None, report=lambda folder: None, before=lambda *given: None)


# A run in which nothing is wrong.


def pairs(count: int = 160) -> list[Row]:
    """Chosen answers begin with another word than rejected ones."""
    rng = chance()
    return [
        {"prompt": f"why is {spoken(rng, rng.randint(1, 4))}?", "chosen": f"clear {end}", "rejected": f"vague {end}"}
        for end in (spoken(rng, rng.randint(1, 2)) for _ in range(count))
    ]


def made(
    folder: Path,
    rows: Sequence[Row] | None = None,
    *,
    model: Path | None = None,
    stages: Sequence[str] = tuple(STAGES),
    **settings: Mapping[str, Any],
) -> Path:
    """A run of these stages, with the settings that are given for `data` and for each of them."""
    recipe = written(folder, rows, model=model, stages=stages, **settings)
    return Path(run(load_recipe(str(recipe), environment={}), QUIET)["dir"])


def written(
    folder: Path,
    rows: Sequence[Row] | None = None,
    *,
    model: Path | None = None,
    stages: Sequence[str] = tuple(STAGES),
    **settings: Mapping[str, Any],
) -> Path:
    """The recipe of such a run."""
    file, recipe = folder / "pairs.jsonl", folder / "small.yaml"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or pairs()))
    if model is None:
        model = folder / "model"
        shutil.copytree(tiny.folder("llama", pad=True), model)
    document = {
        "model": str(model),
        "data": {"path": str(file), "validation_split": 0.1, "test_split": 0.4, **settings.get("data", {})},
        "runs_dir": str(folder / "runs"),
        "seed": SEED.get(),
        "stages": [{name: {**STAGES.get(name, {}), **settings.get(name, {})}} for name in stages],
    }
    recipe.write_text(write_yaml(document))
    return recipe


@functools.cache
def healthy(seed: int) -> Path:
    """Made once in a process for each seed, and not to be changed."""
    return made(Path(tempfile.mkdtemp(prefix="doctor-run-")))


def copied(source: Path, folder: Path) -> Path:
    """A run with all that it has made, in another place."""
    shutil.copytree(source.parent, folder / "runs")
    return folder / "runs" / source.name


def artifact(run: Path, stage: str) -> Path:
    stages = json.loads((run / "summary.json").read_text())["stages"]
    return run.parent / "artifacts" / stages[stage]["artifact"]


def weights(run: Path, stage: str, change: Callable[[Tensors], object]) -> None:
    """The weights of what a stage has made, changed."""
    rewrite(artifact(run, stage), change)


def rewrite(model: Path, change: Callable[[Tensors], object]) -> None:
    """The weights in a model's folder, changed."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def looked_at(run: Path) -> list[Evidence]:
    """All that the doctor's command looks at."""
    answers = finished.asked(run, Gathered(), QUIET.say, seconds=math.inf)
    return [*read(run).logs, *(one for answer in answers for one in answer)]


# How a fault gets into one.


@contextmanager
def entered(program: Sequence[Patch]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in program:
            stack.enter_context(one)
        yield


def changed(*changes: Callable[[Path], object], program: Sequence[Patch] = ()) -> Faulty:
    """A healthy run, of which something is changed afterwards, looked at by a program with these mistakes."""

    @contextmanager
    def faulty(folder: Path) -> Iterator[Path]:
        found = copied(healthy(SEED.get()), folder)
        for change in changes:
            change(found)
        with entered(program):
            yield found

    return faulty


def made_with(*program: Patch, stages: Sequence[str]) -> Faulty:
    """A run that a program with these mistakes has made, and looks at."""

    @contextmanager
    def faulty(folder: Path) -> Iterator[Path]:
        with entered(program):
            yield made(folder, stages=stages)

    return faulty


def loading(module: Any, name: str, change: Callable[[Any], object]) -> Patch:
    """What a loader gives is changed in memory."""
    own = getattr(module, name)

    def load(*given: Any, **more: Any) -> Any:
        loaded = own(*given, **more)
        change(loaded)
        return loaded

    return patch.object(module, name, load)


# What is changed on the disk.


def without_head(run: Path) -> None:
    weights(run, "reward", lambda tensors: tensors.pop("score.weight"))


def with_another_head(run: Path) -> None:
    """As a library leaves it that draws what is missing, and saves that."""
    noise = torch.Generator().manual_seed(SEED.get())
    weights(run, "reward", lambda tensors: tensors["score.weight"].normal_(0, 1, generator=noise))


def padded_on_the_right(run: Path) -> None:
    path = artifact(run, "ppo") / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "right"}))


def bare_base(run: Path) -> None:
    """The SFT folder holds the base's weights, and its adapter lies beside them unmerged."""
    recipe = load_recipe(str(run / "recipe.yaml"), environment={}).recipe
    shutil.copy(Path(recipe.model.path) / "model.safetensors", artifact(run, "sft") / "model.safetensors")


def token_added(run: Path) -> None:
    """A marker is added to the vocabulary, its row left at zero, and every prompt begins with it."""
    folder = artifact(run, "ppo")
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "<|turn|>" + tokenizer.chat_template
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight")[-1] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# What it is made of.


@contextmanager
def learnt_before(folder: Path) -> Iterator[Path]:
    """Five comparisons, each thirty-two times under another system turn, by which the splits are made.

    The prompts of PPO have a file of their own, and so none of them is a held-out one that was learnt.
    """
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"why is {word}?"}) + "\n" for word in WORDS))

    def under(system: str, row: Row) -> Row:
        turns = ("system", system), ("user", row["prompt"])
        return {**row, "prompt": [{"role": role, "content": text} for role, text in turns]}

    rows = [under(f"Answer {number}.", row) for row in pairs(5) for number in range(32)]
    chance(1).shuffle(rows)
    yield made(folder, rows, stages=["reward"], data={"prompts": {"path": str(prompts)}})


@contextmanager
def other_ids(folder: Path) -> Iterator[Path]:
    """The embedded model beside a tokenizer that gives its words other ids."""
    model = folder / "embedded"
    shutil.copytree(locate("embedded"), model)
    with_other_ids(load_tokenizer(model)).save_pretrained(model)
    barely = {"epochs": 1, "lora": None, "optim": {"learning_rate": 1e-6}}
    yield made(folder, model=model, stages=["sft"], sft=barely)


# What the program does.

mask_dropped = patch.object(Backbone, "hidden", Unmasked.hidden)
gradient_lost = loading(ask_policy, "sampling_roles", lambda roles: reentrant(roles.policy.model))


def overflowing(policy: Policy) -> None:
    if Path(policy.source).name.startswith("ppo"):
        in_fp16(policy.model)


def of_another(policy: Policy, *given: Any, **named: Any) -> Engine:
    """A sampler whose weights are not those of its policy."""
    return Engine(a_little_off(policy.source), *given, **named)


# The faults, by name.

head_lost = changed(without_head)
head_drawn_anew = changed(with_another_head)
right_padded = changed(padded_on_the_right)
wrong_reference = changed(bare_base)
untrained_token = changed(token_added)
policy_overflows = changed(program=[loading(ask_policy, "load_policy", overflowing)])
reward_overflows = changed(
    program=[loading(ask_reward, "load_reward_model", lambda model: in_fp16(model.backbone.model))]
)
mask_ignored = changed(program=[mask_dropped])
reads_a_pad = changed(program=[patch.object(RewardModel, "scores", LastColumn.scores)])
scored_with_dropout = changed(
    program=[loading(ask_reward, "load_reward_model", lambda model: with_dropout(model.backbone.model))]
)
learnt_with_dropout = changed(
    program=[loading(ask_policy, "sampling_roles", lambda roles: with_dropout(roles.policy.model))]
)
frozen_blocks = changed(program=[gradient_lost])
mask_ignored_and_frozen_blocks = changed(program=[mask_dropped, gradient_lost])
sampler_differs = changed(program=[patch.object(ask_policy, "Engine", of_another)])
accumulation_bias = changed(program=[mean_of_means(ASKED)])
no_gradient = made_with(patch.object(RewardModel, "scores", CutOff.scores), stages=["reward"])
dead_head = made_with(patch.object(RewardModel, "scores", DeadHead.scores), stages=["reward"])
ends_masked = made_with(patch("assay.stages.causal.collate", end_masked), stages=["sft"])
