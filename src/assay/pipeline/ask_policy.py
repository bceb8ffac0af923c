"""What policies are asked: the one that a stage begins with, the one that it has made, and a step between them.

Each question gives its evidence, or raises `Missing` with the reason why it cannot.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from assay.data.items import prompt_of, replies_of
from assay.data.prepared import Prepared
from assay.doctor.data import evenly
from assay.doctor.detector import Evidence, Missing
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probing import exact
from assay.doctor.recipe import Weights
from assay.doctor.tokens import PROBED, Endings
from assay.models.backbone import drop_dropout
from assay.models.load import load_tokenizer, weights_in
from assay.models.policy import Policy, load_policy
from assay.models.roles import sampling_roles
from assay.pipeline.asking import ASKED, SHORT, Stage, affordable
from assay.rollout.engine import Engine
from assay.stages.causal import imitate
from assay.stages.config import GroupConfig, PPOConfig, PreferenceConfig
from assay.stages.preference import reference_of
from assay.types import Prompt

ANSWER = 16
"""Tokens of an answer that is sampled."""


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
    return [StepProbe(gradient, policy.parameters_trained(), where=stage.where, exact=exact(policy.backbone))]


def endings(stage: Stage) -> list[Evidence]:
    """The policy that SFT made, where its demonstrations end."""
    folder, length = stage.folder("made"), getattr(stage.config, "max_length", SHORT)
    count = affordable(folder, length, most=PROBED, least=2)
    policy = load_policy(folder, trainable=False, device=stage.device)
    renderer = policy.renderer(stage.template, length)
    return [Endings.of(stage.where, policy, renderer, evenly(stage.data.demonstrations.train, count))]


def texts(data: Prepared) -> list[tuple[Prompt, str]]:
    """A few prompts with an answer; `Missing` where there are none."""
    items = evenly(data.demonstrations.train, ASKED) or evenly(data.preferences.train, ASKED)
    found = [(prompt, replies_of(item)[0]) for item in items if (prompt := prompt_of(item))]
    if not found:
        raise Missing("there is no text to ask it about")
    return found


def is_causal(folder: Path) -> bool:
    """Whether a model reads from left to right: every such architecture names its head for scores alike."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    return isinstance(getattr(model, "score", None), nn.Linear)


def not_finite(folder: Path) -> list[str]:
    """Names of the weights in a model's folder that are not finite; one tensor at a time is in memory."""
    odd: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with weights_in(file) as weights:
            odd += [name for name in weights.keys() if not weights.get_tensor(name).isfinite().all()]  # noqa: SIM118
    return odd
