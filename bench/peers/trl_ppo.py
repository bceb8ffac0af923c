"""TRL's side of the PPO races: 1.10.0, the last release that has PPO. Runs in an environment of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from bench.peers import side
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    get_linear_schedule_with_warmup,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]  (another environment)


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end, less those in which it was stopped."""

    def __init__(self, job: side.Job) -> None:
        self.now = getattr(time, job.get("clock", "perf_counter"))

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self.now() - self.began


class Examination(Clock):
    """Lets the policy answer prompts after every step, the clock stopped."""

    def __init__(self, job: side.Job, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(job)
        self.job, self.tokenizer = job, tokenizer
        self.prompts: list[list[int]] = json.loads(Path(job["examination"]).read_text(encoding="utf-8"))
        self.curve: list[dict[str, Any]] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        super().on_step_end()
        self.curve.append({"seconds": self.seconds, "answers": self.answers(model.policy)})
        self.began = self.now() - self.seconds

    @torch.no_grad()
    def answers(self, policy: Any) -> list[list[int]]:
        """Ids of one sampled answer to each prompt, its end included."""
        batch = self.tokenizer.pad({"input_ids": self.prompts}, return_tensors="pt")
        drawn = policy.generate(
            **batch, max_new_tokens=self.job["new_tokens"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        return drawn[:, batch["input_ids"].shape[1] :].tolist()


def ppo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    clock = Clock(job)
    train(job, rows, clock, AutoTokenizer.from_pretrained(job["policy"], padding_side="left"))
    return {"seconds": clock.seconds}


def quality(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    """What the policy answers while it learns."""
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    clock = Examination(job, tokenizer)
    train(job, rows, clock, tokenizer)
    return {"seconds": clock.seconds, "curve": clock.curve}


def train(job: side.Job, rows: side.Rows, clock: Clock, tokenizer: PreTrainedTokenizerBase) -> None:
    config = PPOConfig(
        output_dir=job["scratch"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch"] // job["micro_batch"],
        num_mini_batches=job["minibatches"],
        num_ppo_epochs=job["inner_epochs"],
        total_episodes=len(rows),
        response_length=job["new_tokens"],
        local_rollout_forward_batch_size=job["batch"],
        kl_coef=job["kl_coef"],
        learning_rate=job["learning_rate"],
        num_sample_generations=0,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **job.get("settings", {}),
    )
    set_seed(config.seed)  # the trainer does so too late for adapters, and not for its minibatches
    adapters = {"r": job["lora"], "lora_alpha": 2 * job["lora"], "target_modules": job.get("target_modules")}
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32),
        LoraConfig(**adapters, task_type="CAUSAL_LM"),
    )
    # The trainer would train all of the value model.
    value = get_peft_model(reward_model(job), LoraConfig(**adapters, task_type="SEQ_CLS", modules_to_save=["score"]))
    PPOTrainer(
        config,
        tokenizer,
        policy,
        None,
        reward_model(job),
        Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in rows]),
        value,
        optimizers=optimizers(job, policy, value, steps=len(rows) // job["batch"]),
        callbacks=[clock],
    ).train()


def reward_model(job: side.Job) -> nn.Module:
    """The reward model, its scores in a unit of the job's where it names one: the trainer does not normalise them."""
    model = AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=torch.float32)
    if unit := job.get("unit"):
        raw, model.score = model.score.weight.detach(), nn.Linear(model.score.in_features, 1)
        model.score.load_state_dict({"weight": raw / unit["std"], "bias": torch.tensor([-unit["mean"] / unit["std"]])})
    return model


def optimizers(job: side.Job, policy: nn.Module, value: nn.Module, steps: int) -> tuple[Any, Any]:
    """The trainer's own, unless the critic has a learning rate of its own."""
    if "value_learning_rate" not in job:
        return None, None
    rates = ((policy, job["learning_rate"]), (value, job["value_learning_rate"]))
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": rate} for model, rate in rates]
    optimizer = torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)
    return optimizer, get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)


if __name__ == "__main__":
    side.run({"ppo": ppo, "quality": quality})
