"""Runs in which nothing is wrong, with all that the doctor can be shown of them.

Two tasks: the stages' toy with models of four sizes, and the embedded world through `assay run`. Each gives one run of
SFT, reward model, PPO, GRPO and DPO, the toy of best-of-n and distillation, too; and a sentence on what it has learnt:
a run that learns nothing is not healthy. Besides, the small run that faults are put into is looked at by the doctor's
command, and so are shipped recipes before they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.doctor_trial import faults_data, faults_recipe, finished_runs
from bench.doctor_trial.case import Case, by_command, in_memory
from bench.doctor_trial.fault import SEED, log_of, memory
from bench.doctor_trial.faults_models import ASKED, inputs_of
from tests.unit.stages.toy import toy_data, toy_model

from assay.data.prepared import Prepared
from assay.doctor.data import Data, evenly
from assay.doctor.detector import Evidence
from assay.doctor.labels import Scored
from assay.doctor.machine import Machine, Settings
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import LabelProbe, RewardProbe
from assay.doctor.read import read
from assay.doctor.tokens import Endings, Tokens
from assay.document import read_yaml
from assay.models.config import LoraConfig
from assay.models.policy import Policy, load_policy
from assay.models.roles import load_reward_model
from assay.pipeline.recipe import Recipe
from assay.rollout.engine import Engine
from assay.stages import bestof, causal, distill, group, ppo, preference, reward, sft
from assay.stages.config import (
    BestOfConfig,
    DistillConfig,
    GroupConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTConfig,
)

Runs = dict[str, Sequence[Evidence]]
RECIPE = Path(__file__).with_name("healthy.yaml")
LORA = LoraConfig(r=16, alpha=32, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
ROWS, PAIRS = 24, 8
"""That a model is asked about."""


def cases() -> list[Case]:
    """The longest first."""
    worlds = [
        Case("healthy", "world", (), "the embedded world; 4 layers of 128", seed, in_memory(world)) for seed in (2, 3)
    ]
    sizes = ((2, 32, 48), (2, 64, 32), (3, 96, 48), (4, 128, 64))
    toys = [
        Case(
            "healthy",
            f"toy-{layers}x{width}",
            (),
            f"the toy; {layers} layers of {width}, batches of {batch}",
            seed,
            in_memory(partial(toy, layers=layers, width=width, batch=batch)),
        )
        for seed, (layers, width, batch) in enumerate(sizes)
    ]
    what = "the small run that faults are put into, by the doctor's command"
    whole = [Case("healthy", "finished", (), what, seed, by_command(finished_runs.changed())) for seed in range(2)]
    recipes = [
        Case("recipe", name, (), f"recipes/{name}.yaml", 0, by_command(faults_recipe.as_shipped(name)))
        for name in faults_recipe.HEALTHY
    ]
    return [*worlds, *toys, *whole, *recipes]


# The toy.


def toy(folder: Path, *, layers: int, width: int, batch: int) -> Runs:
    """One-word answers, of which blue is the best."""
    base = toy_model(folder / "base", layers=layers, width=width, seed=SEED.get())
    data = toy_data()
    data = replace(data, prompts=replace(data.prompts, test=ASKED))
    runs: Runs = {}
    for kind, (stage, schema, settings) in stages_of(width, batch).items():
        config = schema.model_validate(settings)
        inputs = inputs_of(data, base if kind == "sft" else folder / "sft")
        if kind in ("ppo", "group", "bestof"):
            inputs = replace(inputs, reward=str(folder / "reward"))
        if kind == "distill":
            inputs = replace(inputs, teacher=str(folder / "sft"), base=str(base))
        ctx = memory(folder / kind)
        log = log_of(kind, config, ctx, stage.run(config, inputs, ctx))
        runs[kind] = [log, *beside(kind, folder / kind, folder / "sft", data, 32)]
    rows = faults_data.of_rows(faults_data.pairs(), folder)
    return runs | {"sft": [*runs["sft"], *rows, *faults_data.resumed(folder / "resumed", lost=False)]}


def stages_of(width: int, batch: int) -> Mapping[str, tuple[Any, Any, dict[str, Any]]]:
    """Each with its settings; rates fall with the width, as Adam moves a state by rate · width."""
    slow, shared = 64 / width, {"max_length": 32}
    online = {
        "batch_size": batch,
        "minibatches": 2,
        "episodes": 24 * batch,
        "kl_coef": 0.1,
        "evaluate_every": 6,
        "sampling": {"max_new_tokens": 4},
        "optim": {"learning_rate": 1e-3 * slow, "schedule": "constant"},
    }
    stages = {
        "sft": (
            sft,
            SFTConfig,
            {"epochs": 10, "batch_size": 16, "validate_every": 8, "optim": {"learning_rate": 6e-3 * slow}},
        ),
        "reward": (
            reward,
            RewardConfig,
            {"epochs": 8, "batch_size": 10, "validate_every": 8, "optim": {"learning_rate": 1e-3 * slow}},
        ),
        "ppo": (ppo, PPOConfig, {**online, "inner_epochs": 2, "value_warmup": 1}),
        "group": (group, GroupConfig, {**online, "method": "grpo", "group_size": 8}),
        "preference": (
            preference,
            PreferenceConfig,
            {
                "epochs": 2,
                "batch_size": 16,
                "validate_every": 3,
                "sampling": {"max_new_tokens": 12},
                "optim": {"learning_rate": 3e-4 * slow, "schedule": "constant"},
            },
        ),
        "bestof": (
            bestof,
            BestOfConfig,
            {
                "rounds": 3,
                "prompts": 96,
                "answers": 8,
                "epochs": 2,
                "batch_size": 16,
                "sampling": {"max_new_tokens": 4},
                "optim": {"learning_rate": 3e-3 * slow, "schedule": "constant"},
            },
        ),
        "distill": (
            distill,
            DistillConfig,
            {
                "sequences": 960,
                "batch_size": 16,
                "sampling": {"max_new_tokens": 4},
                "optim": {"learning_rate": 6e-3 * slow},
            },
        ),
    }
    return {kind: (stage, schema, shared | own) for kind, (stage, schema, own) in stages.items()}


# The embedded world.


def world(folder: Path) -> Runs:
    """By `assay run`, and read from what it leaves on the disk."""
    said = common.run_assay(str(RECIPE), f"seed={SEED.get()}", f"runs_dir={folder}")
    found = read(folder / Path(said.summary["dir"]).name)
    data = Prepared.load(said.artifact("data"))
    settings = Settings.of(read_yaml(RECIPE.read_text(encoding="utf-8"), RECIPE.name), Recipe)
    runs: Runs = {
        log.kind: [log, *beside(log.kind, said.artifact(log.where), said.artifact("sft"), data, 128)]
        for log in found.logs
        if log.where != "data"
    }
    (made,) = (log for log in found.logs if log.where == "data")
    return runs | {"sft": [*runs["sft"], settings, Machine.of("sft", torch.float32), Data("data", data), made]}


# Both.


def beside(kind: str, made: Path, start: Path, data: Prepared, length: int) -> list[Evidence]:
    """What can be shown of a stage besides its log: the model that it made, and the one that it started from.

    `length` is the longest row, in tokens.
    """
    if kind == "sft":
        policy = load_policy(made)
        renderer = policy.renderer("chat", length)
        shown = evenly(data.demonstrations.train, ROWS)
        rows = [row for one in shown if (row := renderer.row(one.prompt, one.response))]
        step = StepProbe(lambda size: causal.imitate(policy, rows, size, "cpu"), policy.parameters_trained())
        return [
            Endings.of("sft", policy, renderer, data.demonstrations.train),
            Tokens("sft", renderer, data.demonstrations.train),
            step,
        ]
    if kind == "reward":
        test, train = data.preferences.test, data.preferences.train
        model = load_reward_model(made, max_length=length)
        fresh = load_reward_model(start, head_seed=SEED.get(), max_length=length)
        return [
            Scored.of("reward", model.score_texts, test, train),
            RewardProbe(model, evenly(test, PAIRS)),
            *([LabelProbe(fresh, evenly(train, ROWS), evenly(test, ROWS))] if apart(data) else []),
        ]
    if kind in ("bestof", "distill"):
        return []  # they begin with the models of the others
    policy = load_policy(start, lora=LORA)
    frozen = load_policy(start, trainable=False)
    return [policy_probe(policy, frozen, data, length), prompt_batch(frozen, data)]


def apart(data: Prepared) -> bool:
    """Whether held-out pairs are others than those of training; the toy has one set for all."""
    return not {pair.prompt.id for pair in data.preferences.train} & {p.prompt.id for p in data.preferences.test}


def policy_probe(policy: Policy, frozen: Policy, data: Prepared, length: int) -> PolicyProbe:
    renderer = policy.renderer("chat", length)
    pairs = evenly(data.preferences.train, ROWS)
    rows = [row for pair in pairs if (row := renderer.row(pair.prompt, pair.chosen))]
    return PolicyProbe(
        policy, rows, frozen, frozen, Engine(policy, renderer, max_batch=ROWS), evenly(data.prompts.test, ROWS)
    )


def prompt_batch(policy: Policy, data: Prepared) -> PromptBatch:
    policy.tokenizer.padding_side = "left"
    asked = [prompt.text for prompt in evenly(data.prompts.test, ROWS)]
    batch = policy.tokenizer(asked, padding=True, return_tensors="pt")
    return PromptBatch(batch["input_ids"], batch["attention_mask"], policy)
