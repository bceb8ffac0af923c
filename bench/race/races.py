"""The table of races: what is raced, against whom, with which settings, and what must be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.race.work import LORA_RANK, NEW_TOKENS


@dataclass(frozen=True)
class Race:
    """One job that both sides do."""

    name: str
    title: str
    peer: str
    script: str
    """A module of bench.peers; runs in the environment that ENVIRONMENTS gives it."""
    settings: str
    """The peer's, and why."""
    required: Mapping[str, float]
    """Shape → ratio of rates that must be reached."""
    steps: int
    batch: int
    """Optimizer step: rows, or responses; in the generation race, prompts at once."""
    micro_batch: int = 4
    """The peer's rows in a forward pass; Assay cuts its batches itself."""
    epochs: int = 1
    inner_epochs: int = 1
    minibatches: int = 1
    group: int = 1
    lora: int = 0
    samples: bool = False
    share: Mapping[str, float] = field(default_factory=dict)
    """Shape → share of the matrix-product peak that must be reached."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Shape → share of the peer's memory that must not be exceeded."""

    @property
    def generates(self) -> bool:
        """Whether it samples and does nothing else."""
        return self.name.startswith("generate")

    @property
    def prompts(self) -> int:
        """Rows that one step takes."""
        return self.batch // self.group

    def job(self) -> dict[str, Any]:
        """What both sides are told about it."""
        names = ("steps", "batch", "micro_batch", "prompts", "epochs", "inner_epochs", "minibatches", "group", "lora")
        return {"race": self.name, **{name: getattr(self, name) for name in names}}

    def work(self) -> str:
        """In words: what both sides do, and the peer's micro-batch."""
        unit = "prompts" if self.generates else "responses" if self.samples else "rows"
        counts = {
            "a group": self.group,
            "epochs": self.epochs,
            "inner epochs": self.inner_epochs,
            "minibatches": self.minibatches,
        }
        more = [f"{count} {name}" for name, count in counts.items() if count > 1]
        more += [f"r = {self.lora}"] * bool(self.lora) + [f"peer: {self.micro_batch} at once"] * (not self.generates)
        return ", ".join([f"{self.steps} × {self.batch} {unit}", *more])

    def useful_tokens(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Tokens that the work is about: sampled ones; else a prompt once, and its responses. No pads, no repeats."""
        if self.generates:
            return sum(row["budget"] for row in rows)
        if self.samples:
            return len(rows) * self.group * NEW_TOKENS
        responses = ("chosen_ids",) if self.name == "sft" else ("chosen_ids", "rejected_ids")
        return self.epochs * sum(len(row[name]) for row in rows for name in ("prompt_ids", *responses))

    def useful_flops(self, rows: Sequence[Mapping[str, Any]], weights: Mapping[str, int]) -> float:
        """Operations in the products of useful tokens with matrices; attention's own come to a few percent more.

        For every weight a token costs 2 in a forward pass and, in a backward pass, 2 for the activations and 2 for the
        weights, which are frozen under LoRA. A prompt is read once for all its answers; the head is at labels alone.
        """
        train = 4 if self.lora else 6
        prompts = sum(len(row["prompt_ids"]) for row in rows)
        answered = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
        match self.name:
            case "sft":
                labels = sum(len(row["chosen_ids"]) for row in rows)
                trunk, head = train * (prompts + labels), train * labels
            case "reward" | "reward_lora":
                trunk, head = train * (prompts + answered), 0
            case "dpo":  # the reference once
                trunk, head = (2 + train * self.epochs) * (prompts + answered), (2 + train * self.epochs) * answered
            case "generate" | "generate_vllm":
                sampled = sum(row["budget"] for row in rows)
                trunk, head = 2 * (prompts + sampled), 2 * sampled
            case _:  # sampling, reward model and reference; for PPO the critic too, before the updates and in them
                sampled, roles = self.useful_tokens(rows), 2 if self.name == "ppo" else 1
                trunk = (6 + 2 * (roles - 1) + train * self.inner_epochs * roles) * (prompts + sampled)
                head = (4 + train * self.inner_epochs) * sampled
        return trunk * weights["trunk"] + head * weights["head"]

    def decoding(self, rows: Sequence[Mapping[str, Any]], weights: Mapping[str, int]) -> dict[str, float]:
        """Operations among `useful_flops` in steps of a token a row, and the fewest bytes that such steps read.

        The first token comes with the prompt. A step reads all weights, be it for all rows, and the keys and values of
        what stands before its tokens; a prompt's may serve all its answers.
        """
        if not self.samples:
            return {"flops": 0.0, "bytes": 0.0}
        own = [[row["budget"]] if self.generates else [NEW_TOKENS] * self.group for row in rows]
        steps = sum(length - 1 for lengths in own for length in lengths)
        seen = sum(
            (max(lengths) - 1) * len(row["prompt_ids"]) + sum(n * (n - 1) // 2 for n in lengths)
            for row, lengths in zip(rows, own, strict=True)
        )
        batches = len(rows) // self.prompts
        read = batches * (max(map(max, own)) - 1) * (weights["trunk"] + weights["head"])
        return {
            "flops": 2 * steps * (weights["trunk"] + weights["head"]),
            "bytes": 4 * (read + seen * weights["cached"]),
        }


COMMON = "fp32, no activation checkpointing (default: on), rows sorted by length (group_by_length in the limit)"
TRL = "TRL 1.16.0"
SHARE = {"gpt2": 0.6}

RACES = (
    Race(
        "reward", "reward model, full fine-tune", TRL, "trl_races", COMMON,
        required={"gpt2": 2.2}, share=SHARE, steps=8, batch=4,
    ),
    Race(
        "reward_lora", "reward model, LoRA", TRL, "trl_races", COMMON,
        required={"gpt2": 2.2}, share=SHARE, steps=8, batch=4, lora=LORA_RANK,
    ),
    Race(
        "dpo", "DPO, LoRA, 2 epochs", TRL, "trl_races",
        f"{COMMON}; precompute_ref_log_probs, so that the reference runs once (counted on both sides)",
        required={"gpt2": 4.0}, steps=4, batch=4, epochs=2, lora=LORA_RANK,
    ),
    Race(
        "sft", "SFT, completion only, ragged", TRL, "trl_races",
        f"{COMMON}; packing and padding_free need FlashAttention, which a CPU has not",
        required={"gpt2": 1.7}, share=SHARE, steps=4, batch=8, micro_batch=8,
    ),
    Race(
        "generate", "generation, 8–64 new tokens", "transformers generate", "generate",
        "the best of batches of 8, 16, 32 and 64 in the first round; prompts sorted by length; a batch runs until its "
        "longest response has ended",
        required={"gpt2": 2.5, "llama": 6.0}, steps=1, batch=64, samples=True,
    ),
    Race(
        "generate_vllm", "the same, against vLLM", "vLLM 0.32.0", "vllm_generate",
        "its build for CPUs, compiled; prefix caching on; 2 GB for keys and values, all of which count as its memory; "
        "without torchvision and what comes with it, which are built for another torch",
        required={}, steps=1, batch=64, samples=True,
    ),
    Race(
        "grpo", "GRPO, LoRA, G = 8", TRL, "trl_races",
        f"{COMMON}; one generation batch for one optimizer step, so that no old log-probabilities are computed",
        required={"gpt2": 2.5}, steps=2, batch=32, micro_batch=16, group=8, lora=LORA_RANK, samples=True,
    ),
    Race(
        "rloo", "RLOO, LoRA, G = 8", TRL, "trl_races",
        f"{COMMON}; one generation batch for one optimizer step, so that no old log-probabilities are computed",
        required={}, steps=2, batch=32, micro_batch=16, group=8, lora=LORA_RANK, samples=True,
    ),
    Race(
        "ppo", "PPO, LoRA, 4 inner epochs", "TRL 1.10.0", "trl_ppo",
        "fp32, no activation checkpointing; the reference is the policy without its adapter; the value model has "
        "adapters too (the trainer would train all of it); sampling in one batch, a minibatch in one forward pass",
        required={"gpt2": 3.0, "llama": 6.0}, memory={"gpt2": 0.35}, steps=2, batch=16, micro_batch=16, minibatches=2,
        inner_epochs=4, lora=LORA_RANK, samples=True,
    ),
)  # fmt: skip
