"""The roles of RLHF on as little memory as they need: adapters and heads on one frozen backbone, where they fit.

    with LoRA         one backbone: policy, value and reward are adapters on it, the reference is none of them
    full fine-tuning  copies of what is trained (policy, value); the frozen SFT model carries the reward adapter

A reward model that is no adapter on the SFT model is a model of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.data.render import Renderer
from assay.errors import ModelError
from assay.models.backbone import Backbone, drop_dropout
from assay.models.config import LoraConfig, Template
from assay.models.heads import ValueHead
from assay.models.load import context_length, fit_vocabulary, load_classifier, load_tokenizer, weights_in
from assay.models.load_reward import load_reward_model
from assay.models.locate import locate, weights_hash
from assay.models.policy import Policy, ResponseLogprobs, load_policy
from assay.models.reward_folder import HEADS, Provenance, adapter_folder, adapter_name, read_config
from assay.models.reward_model import RewardModel
from assay.models.value_model import ValueModel, load_value_model

__all__ = [
    "PPORoles",
    "Policy",
    "ResponseLogprobs",
    "RewardModel",
    "SamplingRoles",
    "ValueModel",
    "load_policy",
    "load_reward_model",
    "load_value_model",
    "ppo_roles",
    "sampling_roles",
]


@dataclass(frozen=True, slots=True)
class SamplingRoles:
    """Who takes part in a method that samples, scores and learns.

    The reference is the SFT model as it was, never the base it came from.
    """

    policy: Policy
    reference: Policy
    reward: RewardModel

    @property
    def backbones(self) -> list[Backbone]:
        """The distinct models in memory."""
        roles = [getattr(self, field.name) for field in fields(self)]
        return list({id(role.backbone): role.backbone for role in roles}.values())


@dataclass(frozen=True, slots=True)
class PPORoles(SamplingRoles):
    """PPO has a critic too."""

    value: ValueModel


def sampling_roles(
    sft: str | Path,
    reward: str | Path,
    lora: LoraConfig | None,
    *,
    trainable: bool = True,
    template: Template = "chat",
    max_length: int = 512,
    device: str = "cpu",
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> SamplingRoles:
    """Policy and reference from the SFT model, reward from the reward model; where nothing trains, they are one."""
    source, judge = locate(sft), locate(reward)
    reference = load_policy(source, trainable=False, device=device, gradient_checkpointing=gradient_checkpointing)
    shared = reference.backbone
    if stands_on(judge, source):
        rewarder = reward_adapter(judge, shared, template, max_length)
    else:
        rewarder = load_reward_model(
            judge,
            trainable=False,
            template=template,
            max_length=max_length,
            device=device,
            gradient_checkpointing=gradient_checkpointing,
        )
    if not trainable:
        policy = reference
    elif lora:
        shared.adapters.add("policy", lora, seed=seed, dropout=False)
        policy = Policy(shared, reference.tokenizer, adapter="policy", source=str(source))
    else:
        policy = load_policy(source, device=device, gradient_checkpointing=gradient_checkpointing)
    roles = SamplingRoles(policy, reference, rewarder)
    for backbone in roles.backbones:
        drop_dropout(backbone.model)
        backbone.model.train(gradient_checkpointing)  # only so that activations are recomputed; nothing is random
    return roles


def ppo_roles(
    sft: str | Path,
    reward: str | Path,
    lora: LoraConfig | None,
    *,
    template: Template = "chat",
    max_length: int = 512,
    device: str = "cpu",
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> PPORoles:
    """The roles that sample, and a value model that starts as the reward."""
    some = sampling_roles(
        sft,
        reward,
        lora,
        template=template,
        max_length=max_length,
        device=device,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
    )
    value = value_from(
        some.reward, locate(reward), some.reference, lora, seed=seed, gradient_checkpointing=gradient_checkpointing
    )
    drop_dropout(value.backbone.model)
    value.backbone.model.train(gradient_checkpointing)
    return PPORoles(some.policy, some.reference, some.reward, value)


def stands_on(reward: Path, sft: Path) -> bool:
    """True when the reward model is an adapter that was trained on exactly these SFT weights."""
    return (reward / "adapter").is_dir() and read_config(reward).get("reward_base") == weights_hash(sft)


def reward_adapter(folder: Path, backbone: Backbone, template: Template, max_length: int) -> RewardModel:
    """The reward model as adapters and a head on a backbone that is in memory anyway."""
    provenance = Provenance.read(read_config(folder), template)
    for number in range(1, provenance.readout.adapters + 1):
        backbone.adapters.load(adapter_name(number), folder / adapter_folder(number))
        for parameter in backbone.adapters.parameters(adapter_name(number)).values():
            parameter.requires_grad_(False)
    weight = load_file(folder / HEADS)["weight"] if (folder / HEADS).exists() else stored_tensor(folder, "score.weight")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=backbone.device)
    head.weight = nn.Parameter(weight.float().to(backbone.device), requires_grad=False)
    tokenizer = load_tokenizer(folder)
    length = min(max_length, context_length(backbone.model))
    renderer = Renderer(tokenizer, template=provenance.template, max_length=length)
    return RewardModel(backbone, head, tokenizer, renderer, provenance, adapter=adapter_name(1), source=folder)


def value_from(
    reward: RewardModel,
    folder: Path,
    sft: Policy,
    lora: LoraConfig | None,
    *,
    seed: int,
    gradient_checkpointing: bool,
) -> ValueModel:
    """A value model that starts as the centred reward model if that reads the policy's tokens, else as the SFT model.

    With LoRA it is an adapter (a copy of the reward's, or a new one) and copies no weights.
    """
    same_tokens = reward.causal and reward.tokenizer.get_vocab() == sft.tokenizer.get_vocab()
    width = sft.model.config.hidden_size
    head = head_from(reward) if same_tokens else ValueHead(width)
    if lora is None:
        source = folder if same_tokens else locate(sft.source)
        model, _ = load_classifier(source, device=sft.backbone.device, trained=True, seed=seed)
        fit_vocabulary(model, sft.tokenizer)
        backbone = Backbone(model, device=sft.backbone.device, gradient_checkpointing=gradient_checkpointing)
        return ValueModel(backbone, head)
    backbone = reward.backbone if same_tokens else sft.backbone
    if reward.adapter and same_tokens:
        backbone.adapters.copy(reward.adapter, "value")
    else:
        backbone.adapters.add("value", lora, seed=seed, dropout=False)
    return ValueModel(backbone, head, adapter="value", source=sft.source if backbone is sft.backbone else str(folder))


@torch.no_grad()
def head_from(reward: RewardModel) -> ValueHead:
    """V = score − mean score: what the reward function pays is centred; of several scores, what one head can say."""
    head = ValueHead(reward.head.in_features)
    head.weight.copy_(reward.plain_head(reward.head.weight)[0])
    head.bias.fill_(-reward.mean)
    return head


def stored_tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a model folder, without loading the others."""
    for file in sorted(folder.glob("*.safetensors")):
        with weights_in(file) as tensors:
            if name in tensors.keys():  # noqa: SIM118  (not a mapping)
                return tensors.get_tensor(name)
    raise ModelError(f"{folder} has no weight named {name}", hint="is it a reward model?")
