"""A diagnosis of another trainer's log in that trainer's words: its metrics in evidence, its options in cures.

in_terms(diagnosis, logs)     the same findings, said to a user of TRL
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.doctor.finding import Diagnosis, Finding
from assay.doctor.foreign import theirs_of
from assay.doctor.log import Log

TRAINERS: Mapping[str, str] = {
    "ppo": "PPOTrainer",
    "group": "GRPOTrainer",
    "preference": "DPOTrainer",
    "reward": "RewardTrainer",
    "sft": "SFTTrainer",
}
"""By the kind of stage."""
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "ppo": {
        "kl_coef": "kl_coef",
        "inner_epochs": "num_ppo_epochs",
        "minibatches": "num_mini_batches",
        "clip": "cliprange",
        "missing_eos_penalty": "missing_eos_penalty",
        "max_new_tokens": "response_length",
    },
    "group": {
        "kl_coef": "beta",
        "inner_epochs": "num_iterations",
        "clip": "epsilon",
        "clip_high": "epsilon_high",
        "entropy_coef": "entropy_coef",
        "group_size": "num_generations",
        "importance_cap": "vllm_importance_sampling_clip_max",
        "max_new_tokens": "max_completion_length",
        "max_grad_norm": "max_grad_norm",
    },
    "preference": {"beta": "beta", "max_grad_norm": "max_grad_norm"},
    "reward": {"centring": "center_rewards_coefficient", "max_grad_norm": "max_grad_norm"},
    "sft": {"max_grad_norm": "max_grad_norm"},
}
"""Ours → TRL's, by the kind of stage; what is not here, that trainer has not."""
SHARED = {
    "learning_rate": "learning_rate",
    "warmup": "warmup_steps",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
}

CURES: Mapping[str, Mapping[str, str]] = {
    "ppo": {
        "kl-blow-up": "Raise `kl_coef` (twice what it is; TRL's default is 0.05), lower `learning_rate` tenfold, and "
        "take fewer `num_ppo_epochs`.",
        "ratio-spikes": "Lower `learning_rate` tenfold and take fewer `num_ppo_epochs`.",
        "never-stops": "See that the end token is among the labels of the SFT stage and is the tokenizer's "
        "`eos_token`; set `stop_token: eos` and a `missing_eos_penalty` of 1 or more, or raise `response_length` if "
        "good answers are that long.",
        "kl-before-training": "Give `ref_model` a frozen copy of the SFT model that the policy starts from, and switch "
        "dropout off in both.",
    },
    "group": {
        "kl-blow-up": "Raise `beta` (0.04 is a start; TRL's default of 0 holds nothing), and lower `learning_rate` "
        "tenfold.",
        "ratio-spikes": "Lower `learning_rate` tenfold, and keep `num_iterations` and `max_grad_norm` at 1.",
        "never-stops": "See that the end token is among the labels of the SFT stage and is the tokenizer's "
        "`eos_token`; raise `max_completion_length` if good answers are that long, or leave the others out of the loss "
        "with `mask_truncated_completions: true`.",
        "empty-answers": "Score an empty answer with the reward function: it must be the worst.",
        "groups-without-signal": "Filter prompts that are always or never solved, and raise `num_generations` (16).",
        "sampler-differs": "Keep `vllm_importance_sampling_correction: true`, and compute in vLLM in the precision of "
        "the trainer.",
    },
    "preference": {
        "loss-blow-up": "Lower `learning_rate` to a third, keep `max_grad_norm` at 1 and some `warmup_steps`, and look "
        "at the rows of the step where it began.",
        "chosen-falls": "Lower `learning_rate` tenfold, raise `beta`, or keep the chosen answers likely with "
        "`loss_type: [sigmoid, sft]`; and read some samples.",
    },
    "reward": {
        "reward-at-chance": "Start from the SFT model, let the head train (`modules_to_save: [score]` with an "
        "adapter), raise `learning_rate`, and see whether 32 pairs can be learnt by heart: if not, the code is at "
        "fault, else the data.",
        "fluctuating-accuracy": "Evaluate on at least 1,000 fixed pairs with dropout off, and show the interval; if it "
        "still jumps, lower `learning_rate`.",
        "score-drift": "Centre the scores: `center_rewards_coefficient: 0.01`, and subtract the mean score before PPO.",
        "loss-blow-up": "Lower `learning_rate` to a third, keep `max_grad_norm` at 1 and some `warmup_steps`, and look "
        "at the rows of the step where it began.",
    },
    "sft": {
        "loss-blow-up": "Lower `learning_rate` to a third, keep `max_grad_norm` at 1 and some `warmup_steps`, and look "
        "at the rows of the step where it began.",
    },
}
"""Cures of modes whose own speak of what TRL has not, or calls otherwise."""


def in_terms(given: Diagnosis, logs: Sequence[Log]) -> Diagnosis:
    """Findings with cures that their trainer knows, each mode once, by the surest."""
    kinds = {log.where: log.kind for log in logs if log.foreign}
    surest: dict[tuple[str, str], Finding] = {}
    for found in sorted(given.findings, key=lambda found: found.weight):
        surest[found.mode.name, found.where] = found
    findings = [
        told(found, kinds[found.where]) if found.where in kinds else found
        for found in given.findings
        if found.where not in kinds or surest[found.mode.name, found.where] is found
    ]
    unchecked = [
        replace(one, why=measured(one.why, kinds[one.where])) if one.where in kinds else one for one in given.unchecked
    ]
    return replace(given, findings=findings, unchecked=unchecked)


def told(found: Finding, kind: str) -> Finding:
    """A finding to a user of the trainer that TRL has for this kind of stage."""
    cure = possible(found.cure or CURES[kind].get(found.mode.name, found.mode.cure), kind)
    seen, cause, cure = (renamed(measured(said, kind), kind) for said in (found.evidence, found.explanation, cure))
    return replace(found, evidence=seen, cause=cause, cure=cure, change=changed(found.change, kind))


def possible(cure: str, kind: str) -> str:
    """A cure without the sentences about options of ours that this trainer has not; whole, if nothing else is said."""
    here = {**SHARED, **OPTIONS[kind]}
    lacks = {name for options in OPTIONS.values() for name in options} - {*here, *here.values()}
    option = rf"`({'|'.join(sorted(lacks))})\b"
    return " ".join(said for said in re.split(r"(?<=\.) (?=[A-Z])", cure) if not re.search(option, said)) or cure


def measured(text: str, kind: str) -> str:
    """Our metrics in a text by TRL's names."""
    return re.sub(r"\w+/\w+", lambda found: theirs_of(kind, found[0]) or found[0], text)


def renamed(text: str, kind: str) -> str:
    """Our options in a text by TRL's names: dotted, in backticks or with an underscore; other words are English."""
    options = {**SHARED, **OPTIONS[kind]}
    name = "|".join(sorted(options, key=len, reverse=True))

    def theirs(found: re.Match[str]) -> str:
        option = found[0]
        return options[found[1]] if re.search("[`._]", text[max(0, found.start() - 1)] + option) else option

    return re.sub(rf"\b(?:{kind}\.)?(?:(?:optim|sampling)\.)?({name})\b", theirs, text)


def changed(change: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Settings by TRL's names; without those that depend on what a log does not tell, or that TRL has not."""
    options = {**SHARED, **OPTIONS[kind]}
    found = {options.get(key.rpartition(".")[2]): value for key, value in change.items()}
    return {
        name: value for name, value in found.items() if name and name not in (options.get("kl_coef"), "learning_rate")
    }
