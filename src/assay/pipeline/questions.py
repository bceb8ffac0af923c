"""What the models of a stage can be asked. Each question gives its evidence, or says in one line why it cannot.

    before(stage)   of the models that it begins with
    after(stage)    of the model that it has made, and of those that it began with

A question loads its models when it is asked and not before, so that no more than one stage's are in memory; what a
large model is asked is as much as it can read in seconds. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from assay import rng
from assay.data.items import prompt_of, replies_of
from assay.data.prepared import Prepared
from assay.data.records import Item
from assay.data.render import Renderer
from assay.data.tokens import kept
from assay.doctor.data import FEWEST, evenly
from assay.doctor.detector import Evidence, Missing
from assay.doctor.labels import Scored
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import LabelProbe, Measured, RewardProbe
from assay.doctor.recipe import RewardFolder, Weights
from assay.doctor.tokens import PROBED, Endings, Tokens
from assay.models.backbone import drop_dropout
from assay.models.config import Template
from assay.models.load import load_tokenizer
from assay.models.load_reward import load_reward_model
from assay.models.policy import Policy, load_policy
from assay.models.reward_folder import missing_head
from assay.models.reward_model import RewardModel
from assay.models.roles import sampling_roles
from assay.rollout.engine import Engine
from assay.stages.causal import imitate
from assay.stages.comparisons import about
from assay.stages.config import (
    AnyStage,
    EvaluateConfig,
    GroupConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTConfig,
)
from assay.stages.preference import reference_of
from assay.types import Preference, Prompt

LARGEST = 200_000_000
"""Parameters of a model that is asked something: two cores read a few short rows with it in seconds."""
ASKED, SHORT, ANSWER = 4, 48, 16
"""Rows that a model is asked about, their tokens, and those of an answer."""
MOST = 1000
"""Held-out pairs that are scored."""
TAUGHT = 24
"""Pairs whose lots are learnt, and as many whose lots nobody can know."""
SPEED, PATIENCE = 2e10, 20.0
"""Operations a second of two cores, and seconds that one question may take of them."""


POLICY, REWARD = (Weights, PolicyProbe), (RewardFolder, RewardProbe)


@dataclass(frozen=True)
class Stage:
    """A stage whose models are asked: its settings, the folders of its roles, and what it reads."""

    where: str
    config: AnyStage
    folders: Mapping[str, Path]
    """By role: base, reward, teacher …; `made` is the stage's own model."""
    data: Prepared
    template: Template
    device: str
    seed: int = 0
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why a role has no folder."""
    cache: Path | None = None
    """Where a run keeps token rows."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that the stage has reported."""

    @property
    def roles(self) -> set[str]:
        """Those that are filled, whether or not the model is here."""
        return {*self.folders, *self.absent}

    def folder(self, role: str) -> Path:
        """Where the model of a role is; `Missing` where it is not here."""
        if role not in self.folders:
            raise Missing(self.absent.get(role, f"it has no {role} model"))
        return self.folders[role]


@dataclass(frozen=True)
class Question:
    """Something that is asked of the models of some roles, and the kinds of evidence that it gives."""

    where: str
    what: str
    """In a few words."""
    roles: tuple[str, ...]
    kinds: tuple[type, ...]
    ask: Callable[[], Sequence[Evidence]]
    """Raises `Missing`, with the reason, where it cannot be asked."""


def before(stage: Stage) -> Iterator[Question]:
    """Of the models that a stage begins with."""
    config, where = stage.config, stage.where
    if isinstance(config, RewardConfig) and not (config.trained or config.steps):
        yield Question(where, "labels drawn by lot", ("base",), (LabelProbe,), partial(lots, stage))
    if getattr(config, "trained", False):
        yield Question(where, "the model it begins with", ("base",), REWARD, partial(reward_model, stage, "base"))
    elif "base" in stage.roles:
        yield Question(where, "the model it begins with", ("base",), POLICY, partial(start, stage))
    if isinstance(config, SFTConfig):
        yield Question(where, "the gradient of a step", ("base",), (StepProbe,), partial(step, stage))
    if "teacher" in stage.roles:
        yield Question(where, "its teacher", ("teacher",), POLICY, partial(start, stage, "teacher"))
    for role in ("reward", "judge"):
        if role in stage.roles:
            yield Question(where, f"its {role}", (role,), REWARD, partial(reward_model, stage, role))


def after(stage: Stage) -> Iterator[Question]:
    """Of the model that a stage has made, and of what it began with."""
    config, where = stage.config, stage.where
    if learned_from(config, stage.data):
        yield Question(where, "the rows it learnt from", ("base",), (Tokens,), partial(rows, stage))
    if isinstance(config, RewardConfig):
        yield Question(where, "the reward model", ("made",), REWARD, partial(reward_model, stage, "made"))
        if not config.steps:
            yield Question(where, "its scores of held-out pairs", ("made",), (Scored, Measured), partial(scored, stage))
    elif config.leaves_model and not isinstance(config, EvaluateConfig):
        yield Question(where, "the model it made", ("made",), POLICY, partial(trained, stage))
        yield Question(where, "prompts side by side", ("made",), (PromptBatch,), partial(padded, stage))
    if isinstance(config, SFTConfig):
        yield Question(where, "where its answers end", ("made",), (Endings,), partial(endings, stage))
    for question in before(stage):
        if question.kinds in ((LabelProbe,), (StepProbe,)) or (question.kinds == POLICY and compares(config)):
            yield question


def compares(config: AnyStage) -> bool:
    """Whether a stage holds its policy against a reference."""
    return isinstance(config, PPOConfig | GroupConfig | PreferenceConfig)


# Policies.


def start(stage: Stage, role: str = "base") -> list[Evidence]:
    """The model that a stage begins with, in the roles that the stage gives it."""
    folder = stage.folder(role)
    if not is_causal(folder):
        raise Missing("it is an encoder, which is no policy")
    if weights := broken(stage, folder):
        return weights
    policy, reference = roles(stage) if role == "base" else (_alone(stage, folder), None)
    sft = None if reference is None else sft_model(stage, folder)
    return [Weights(stage.where, str(folder), ()), policy_probe(stage, policy, reference, sft)]


def trained(stage: Stage) -> list[Evidence]:
    """The policy that a stage has made: it has moved away from its reference."""
    folder = stage.folder("made")
    return broken(stage, folder) or [
        Weights(stage.where, str(folder), ()),
        policy_probe(stage, load_policy(folder, trainable=False, device=stage.device), fresh=False),
    ]


def broken(stage: Stage, folder: Path) -> list[Evidence]:
    """Weights that are not finite, after which there is nothing to ask; `Missing` where the model is too large."""
    affordable(folder, ASKED * SHORT, most=1)
    odd = not_finite(folder)
    return [Weights(stage.where, str(folder), odd)] if odd else []


def roles(stage: Stage) -> tuple[Policy, Policy | None]:
    """Policy and reference as the stage itself loads them; no reference where it has none, or not all is here."""
    config, base = stage.config, stage.folder("base")
    if isinstance(config, PPOConfig | GroupConfig) and "reward" in stage.folders:
        given = sampling_roles(
            base,
            stage.folders["reward"],
            config.lora,
            template=stage.template,
            max_length=config.max_length,
            device=stage.device,
            seed=stage.seed,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        return given.policy, given.reference
    policy = _alone(stage, base)
    if not isinstance(config, PreferenceConfig):
        policy.eval()
        return policy, None
    drop_dropout(policy.model)
    policy.model.train(config.gradient_checkpointing)
    return policy, reference_of(policy, stage.device)


def _alone(stage: Stage, folder: Path) -> Policy:
    lora = getattr(stage.config, "lora", None)
    checkpointing = getattr(stage.config, "gradient_checkpointing", False)
    return load_policy(folder, lora=lora, device=stage.device, gradient_checkpointing=checkpointing, seed=stage.seed)


def sft_model(stage: Stage, folder: Path) -> Policy | None:
    """The model in a folder by another way than its reference came: as its adapter on its base, or as it lies there.

    None where the reference is loaded from the folder itself, for then there are no two models to compare.
    """
    adapter = folder / "adapter"
    if adapter.is_dir() and (base := Path(adapter_base(adapter))).is_dir():
        policy = load_policy(base, trainable=False, device=stage.device)
        policy.backbone.adapters.load("sft", adapter)
        policy.adapter = "sft"
        return policy
    if getattr(stage.config, "lora", None):
        return load_policy(folder, trainable=False, device=stage.device)
    return None


def adapter_base(adapter: Path) -> str:
    """The folder that an adapter was trained on."""
    return str(peft.LoraConfig.from_pretrained(str(adapter)).base_model_name_or_path)


def policy_probe(
    stage: Stage, policy: Policy, reference: Policy | None = None, sft: Policy | None = None, *, fresh: bool = True
) -> PolicyProbe:
    """A few short rows of the data, and a sampler."""
    items = texts(stage.data)
    renderer = policy.renderer(stage.template, SHORT)
    found = [row for prompt, text in items if (row := renderer.row(prompt, text))]
    sampler = Engine(policy, policy.renderer(stage.template, SHORT + ANSWER), max_batch=ASKED)
    prompts = [prompt for prompt, _ in items]
    return PolicyProbe(policy, found, reference, sft, sampler, prompts, fresh=fresh, where=stage.where)


def padded(stage: Stage) -> list[Evidence]:
    """Prompts as transformers pads them for this model: by the tokenizer in its folder."""
    folder = stage.folder("made")
    affordable(folder, ASKED * SHORT, most=1)
    policy = load_policy(folder, trainable=False, device=stage.device)
    renderer = policy.renderer(stage.template, getattr(stage.config, "max_length", SHORT))
    asked = sorted((renderer.prompt(prompt) for prompt in evenly(stage.data.prompts.train, 64)), key=len)
    if not asked or len(asked[0]) == len(asked[-1]):
        raise Missing("prompts of unequal length are needed: none is padded")
    batch = load_tokenizer(folder).pad({"input_ids": [asked[0], *asked[-ASKED:]]}, return_tensors="pt")
    return [PromptBatch(batch["input_ids"], batch["attention_mask"], policy, where=stage.where)]


def step(stage: Stage) -> list[Evidence]:
    """One optimizer step of SFT on a few rows, with the trainer's own gradient."""
    folder = stage.folder("base")
    affordable(folder, 6 * ASKED * SHORT, most=1)
    policy = _alone(stage, folder)
    renderer = policy.renderer(stage.template, SHORT)
    shown = evenly(stage.data.demonstrations.train, ASKED)
    found = [row for one in shown if (row := renderer.row(one.prompt, one.response))]
    if len({len(row.ids) - row.prompt_length for row in found}) < 2:
        raise Missing("answers of unequal length are needed: every split divides by the same number")
    drop_dropout(policy.model)  # noise of two passes is no difference of two splits
    gradient = partial(imitate, policy, found, device=stage.device)
    return [StepProbe(gradient, policy.parameters_trained(), where=stage.where)]


def endings(stage: Stage) -> list[Evidence]:
    """The policy that SFT made, where its demonstrations end."""
    folder, length = stage.folder("made"), getattr(stage.config, "max_length", SHORT)
    count = affordable(folder, length, most=PROBED, least=2)
    policy = load_policy(folder, trainable=False, device=stage.device)
    renderer = policy.renderer(stage.template, length)
    return [Endings.of(stage.where, policy, renderer, evenly(stage.data.demonstrations.train, count))]


def rows(stage: Stage) -> list[Evidence]:
    """The rows that a stage has learnt from: as the run keeps them, or made anew where it has not kept them."""
    folder, items = stage.folder("base"), learned_from(stage.config, stage.data)
    length = getattr(stage.config, "max_length", SHORT)
    renderer = Renderer(load_tokenizer(folder), template=stage.template, max_length=length)
    return [Tokens(stage.where, renderer, items, kept=kept(renderer, items, stage.cache))]


# Reward models.


def reward_model(stage: Stage, role: str) -> list[Evidence]:
    """A finished reward model: its head, and how it scores and learns a few pairs."""
    folder = stage.folder(role)
    missing = missing_head(folder)
    if missing:
        return [RewardFolder(stage.where, str(folder), missing)]
    affordable(folder, 12 * ASKED * SHORT, most=1)
    model = load_reward_model(folder, template=stage.template, max_length=2 * SHORT, device=stage.device)
    pairs = [pair for pair in evenly(stage.data.preferences.train, 8 * ASKED) if unlike(model, pair)][: 2 * ASKED]
    if not pairs:
        raise Missing("there is no short pair to ask it about")
    return [RewardFolder(stage.where, str(folder), ()), RewardProbe(model, pairs, folder, where=stage.where)]


def unlike(model: RewardModel, pair: Preference) -> bool:
    """Whether a pair's answers still differ as the model reads them, cut to a few tokens."""
    chosen, rejected = (model.row(pair.prompt, text) for text in (pair.chosen, pair.rejected))
    return bool(chosen and rejected and chosen.ids != rejected.ids)


def scored(stage: Stage) -> list[Evidence]:
    """Held-out pairs as the finished reward model orders them."""
    folder, config = stage.folder("made"), stage.config
    assert isinstance(config, RewardConfig)
    count = affordable(folder, 2 * config.max_length, most=MOST, least=FEWEST)
    model = _reward(stage, folder, trainable=False)
    objectives = model.readout.objectives
    if len(objectives) > 1:
        raise Missing("it has several objectives, and each pair was asked about one of them")
    every, train = about(stage.data.preferences.test, objectives), about(stage.data.preferences.train, objectives)
    given: list[float] = []

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        given.extend(found := model.score_texts(prompts, answers))
        return found

    asked = Scored.of(stage.where, score, evenly(every, count), train)
    return [asked, Measured(stage.where, np.asarray(given), stage.report, whole=len(asked.pairs) == len(every))]


def lots(stage: Stage) -> list[Evidence]:
    """A new reward model, to learn labels that mean nothing; its pairs are those likeliest to have a copy held out."""
    folder, held_out = stage.folder("base"), evenly(stage.data.preferences.test, TAUGHT)
    if len(held_out) < FEWEST:
        raise Missing(f"{len(held_out)} held-out pairs are too few to tell")
    affordable(folder, 240 * 6 * TAUGHT * SHORT, most=1)
    there = {answer for pair in held_out for answer in (pair.chosen, pair.rejected)}
    alike: list[Preference] = [p for p in stage.data.preferences.train if {p.chosen, p.rejected} <= there]
    learnt = [*alike, *evenly(stage.data.preferences.train, TAUGHT)][:TAUGHT]
    model = _reward(stage, folder, head_seed=rng.derive(stage.seed, "lots") % 2**31)
    return [LabelProbe(model, learnt, held_out, where=stage.where)]


def _reward(stage: Stage, folder: Path, *, trainable: bool = True, head_seed: int | None = None) -> RewardModel:
    return load_reward_model(
        folder,
        trainable=trainable,
        head_seed=head_seed,
        template=stage.template,
        max_length=getattr(stage.config, "max_length", 2 * SHORT),
        device=stage.device,
    )


# What all of them need.


def learned_from(config: AnyStage, data: Prepared) -> Sequence[Item]:
    """What a stage makes rows of; nothing for those that learn from what they sample."""
    if isinstance(config, SFTConfig):
        return data.demonstrations.train
    if isinstance(config, RewardConfig) and not config.trained:
        return data.steps.train if config.steps else data.preferences.train
    if isinstance(config, PreferenceConfig) and not config.rounds:
        return data.preferences.train if config.paired else data.preferences.train or data.verdicts.train
    return ()


def texts(data: Prepared) -> list[tuple[Prompt, str]]:
    """A few prompts with an answer; `Missing` where there are none."""
    items = evenly(data.demonstrations.train, ASKED) or evenly(data.preferences.train, ASKED)
    found = [(prompt, replies_of(item)[0]) for item in items if (prompt := prompt_of(item))]
    if not found:
        raise Missing("there is no text to ask it about")
    return found


def affordable(folder: Path, tokens: int, *, most: int, least: int = 1) -> int:
    """How many rows of so many tokens a model reads in `PATIENCE` seconds; `Missing` where that is too few."""
    parameters = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 4
    count = int(min(most, PATIENCE * SPEED / (2 * max(1, parameters) * tokens)))
    if count < least or parameters > LARGEST:
        raise Missing(f"the model is too large to be asked in seconds ({parameters / 1e6:,.0f} M parameters)")
    return count


def is_causal(folder: Path) -> bool:
    """Whether a model reads from left to right: every such architecture names its head for scores alike."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    return isinstance(getattr(model, "score", None), nn.Linear)


def not_finite(folder: Path) -> list[str]:
    """Names of the weights in a model's folder that are not finite; one tensor at a time is in memory."""
    odd: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            odd += [name for name in weights.keys() if not weights.get_tensor(name).isfinite().all()]  # noqa: SIM118
    return odd
