"""What a reward model's folder holds besides a plain model, and where.

config.json, model.safetensors   the plain model; of an ensemble of adapters, its first member
heads.safetensors                all scores, where there are several
adapter/, adapter-2/ …           what was trained, where that was adapters
base/                            the trunk under an ensemble of adapters
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from assay.models.config import Template
from assay.models.load import weights_in
from assay.models.readout import Readout

HEADS = "heads.safetensors"
BASE = "base"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What Assay adds to a reward model's config.json."""

    template: Template
    base: str = ""
    """Hash of the weights that the adapters stand on; empty without an adapter."""
    readout: Readout = field(default_factory=Readout)

    @classmethod
    def read(cls, config: Mapping[str, Any], default: Template) -> Provenance:
        """From config.json; a model that somebody else trained has one score, not centred."""
        if "reward_readout" in config:
            readout = Readout.from_config(config["reward_readout"])
        else:
            readout = Readout(origins=(config["reward_mean"],)) if "reward_mean" in config else Readout()
        return cls(config.get("reward_template", default), config.get("reward_base", ""), readout)

    def write(self, model: PreTrainedModel) -> None:
        """Into the config that is saved with the model."""
        known = {"reward_template": self.template, "reward_mean": self.readout.mean, "reward_base": self.base}
        if self.readout.columns > 1 or self.readout.steps:
            known["reward_readout"] = self.readout.to_config()
            known["reward_plain_is_exact"] = self.readout.plain_is_exact
        model.config.update(known)


def adapter_name(number: int) -> str:
    """What the adapter of the n-th member is called in memory."""
    return "reward" if number == 1 else f"reward-{number}"


def adapter_folder(number: int) -> str:
    """Where it lies in the model's folder."""
    return adapter_name(number).replace("reward", "adapter")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def head_parameters(model: PreTrainedModel) -> dict[str, Parameter]:
    """Everything above the trunk: the score layer, and an encoder's pooler where it lies outside the trunk."""
    inside = f"{model.base_model_prefix}."
    return {name: p for name, p in model.named_parameters() if not name.startswith(inside) and ".lora_" not in name}


def missing_head(folder: Path) -> list[str]:
    """Weights of the head that a reward model's folder does not hold; no weight is read."""
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with weights_in(file) as weights:
            held.update(weights.keys())
    return sorted(head_parameters(model).keys() - held)
