"""Assay's side of the races: the production stages and the engine, given the same rows as the peer.

python -m bench.race.ours JOB.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from bench.peers import side
from bench.peers.side import Job, Rows
from bench.race.context import Stopwatch
from bench.race.work import A_PAIR, SAMPLING

from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer
from assay.models import precision
from assay.models.config import LoraConfig
from assay.models.roles import load_policy
from assay.rollout.engine import Engine
from assay.stages import group, ppo, preference, reward, sft
from assay.stages.config import GroupConfig, OptimConfig, PPOConfig, PreferenceConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Message, Preference, Prompt

NEVER = 10**6


def train_reward(job: Job, rows: Rows) -> dict[str, Any]:
    ctx = Stopwatch(Path(job["scratch"]))
    config = RewardConfig(**training(job), lora=lora(job), epochs=job["epochs"], centring=0.0, validate_every=NEVER)
    reward.run(config, inputs(job, preferences=pairs(rows)), ctx)
    return {"seconds": ctx.seconds}


def train_dpo(job: Job, rows: Rows) -> dict[str, Any]:
    ctx = Stopwatch(Path(job["scratch"]))
    config = PreferenceConfig(**training(job), lora=lora(job), epochs=job["epochs"], sampling=SAMPLING)
    data = Splits(pairs(rows).train)  # nothing held out: validation is no part of the race
    with mock.patch.object(preference, "reference_logprobs", ctx.timed(preference.reference_logprobs)):
        preference.run(config, inputs(job, preferences=data, prompts=Splits(test=[A_PAIR.prompt])), ctx)
    return {"seconds": ctx.seconds}


def train_sft(job: Job, rows: Rows) -> dict[str, Any]:
    ctx = Stopwatch(Path(job["scratch"]))
    texts = [Demonstration(prompt_of(row), row["chosen"]) for row in rows]
    sft.run(SFTConfig(**training(job), epochs=job["epochs"]), inputs(job, demonstrations=Splits(texts)), ctx)
    return {"seconds": ctx.seconds}


def train_group(job: Job, rows: Rows) -> dict[str, Any]:
    ctx = Stopwatch(Path(job["scratch"]))
    config = GroupConfig(
        **sampling(job), method=job["race"], group_size=job["group"], episodes=len(rows) * job["group"]
    )
    group.run(config, inputs(job, prompts=asked(rows)), ctx)
    return {"seconds": seconds_of_iterations(ctx, job)}


def train_ppo(job: Job, rows: Rows) -> dict[str, Any]:
    ctx = Stopwatch(Path(job["scratch"]))
    ppo.run(PPOConfig(**sampling(job), episodes=len(rows), value_warmup=0), inputs(job, prompts=asked(rows)), ctx)
    return {"seconds": seconds_of_iterations(ctx, job)}


def generate(job: Job, rows: Rows) -> dict[str, Any]:
    """The engine on the prompts whose last token says how long the response is (`work.count_down`)."""

    class Given(Renderer):
        def fitted(self, prompt: Prompt, *, reserve: int = 1) -> tuple[list[int], bool]:
            return ids[prompt], False

    prompts = [prompt_of(row) for row in rows]
    ids = {prompt: row["counted_ids"] for prompt, row in zip(prompts, rows, strict=True)}
    policy = load_policy(job["policy"], trainable=False)
    engine = Engine(policy, Given(policy.tokenizer, max_length=job["max_length"]), max_batch=job["batch"])
    ctx = Stopwatch(Path(job["scratch"]))
    with ctx.progress(1, "generation"):
        responses = engine.generate(prompts, SAMPLING, seeds=range(len(prompts)))
    lengths = [len(response.ids) for response in responses]
    assert lengths == [row["budget"] for row in rows], "a response did not end where the model counts to"
    return {"seconds": ctx.seconds}


def inputs(job: Job, **data: Any) -> StageInputs:
    return StageInputs(Prepared(**data), job["policy"], reward=job["reward"])


def prompt_of(row: dict[str, Any]) -> Prompt:
    return Prompt(tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]))


def pairs(rows: Rows) -> Splits[Preference]:
    """To learn from, and a tiny one that is held out, for the reward stage cannot do without."""
    return Splits([Preference(prompt_of(row), row["chosen"], row["rejected"]) for row in rows], [A_PAIR], [A_PAIR])


def asked(rows: Rows) -> Splits[Prompt]:
    return Splits([prompt_of(row) for row in rows], [A_PAIR.prompt], [A_PAIR.prompt])


def lora(job: Job) -> LoraConfig | None:
    return LoraConfig(r=job["lora"], alpha=2 * job["lora"]) if job["lora"] else None


def training(job: Job) -> dict[str, Any]:
    """Settings of every stage that trains."""
    return {
        "optim": OptimConfig(learning_rate=job["learning_rate"]),
        "batch_size": job["batch"],
        "max_length": job["max_length"],
        "checkpoint_every": NEVER,
    }


def sampling(job: Job) -> dict[str, Any]:
    """Settings of the stages that sample what they learn from."""
    return {
        **training(job),
        "lora": lora(job),
        "inner_epochs": job["inner_epochs"],
        "minibatches": job["minibatches"],
        "sampling": SAMPLING,
        "kl_coef": job["kl_coef"],
        "kl_stop": None,
        "evaluate_every": NEVER,
        "evaluation_prompts": 1,
    }


def seconds_of_iterations(ctx: Stopwatch, job: Job) -> float:
    """Sampling, scoring and updates, without the evaluation that follows the last iteration."""
    return sum(job["batch"] / metrics["train/episodes_per_s"] for metrics in ctx.logged)


RUNS = {
    "reward": train_reward,
    "reward_lora": train_reward,
    "dpo": train_dpo,
    "sft": train_sft,
    "grpo": train_group,
    "rloo": train_group,
    "ppo": train_ppo,
    "generate": generate,
    "generate_vllm": generate,
}

if __name__ == "__main__":
    precision.bf16_speedup_on_cpu = lambda: 1.0  # fp32 on both sides, also where a CPU has units for bf16
    side.run(RUNS)
