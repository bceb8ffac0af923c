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
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]  (another environment)


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end, less those in which it was stopped."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


class Examination(Clock):
    """Lets the policy answer prompts after every `every` steps, the clock stopped."""

    def __init__(self, job: side.Job, tokenizer: PreTrainedTokenizerBase) -> None:
        self.job, self.tokenizer = job, tokenizer
        self.prompts: list[list[int]] = json.loads(Path(job["examination"]).read_text(encoding="utf-8"))
        self.curve: list[dict[str, Any]] = []

    def on_step_end(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
        super().on_step_end()
        if state.global_step % self.job["every"] == 0:
            self.curve.append({"seconds": self.seconds, "answers": self.answers(model.policy)})
            self.began += time.perf_counter() - self.began - self.seconds

    @torch.no_grad()
    def answers(self, policy: Any) -> list[list[int]]:
        """Ids of one sampled answer to each prompt, its end included."""
        batch = self.tokenizer.pad({"input_ids": self.prompts}, return_tensors="pt")
        drawn = policy.generate(
            **batch, max_new_tokens=self.job["new_tokens"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        return drawn[:, batch["input_ids"].shape[1] :].tolist()


def ppo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    clock = Clock()
    train(job, rows, clock, AutoTokenizer.from_pretrained(job["policy"], padding_side="left"))
    return {"seconds": clock.seconds}


def quality(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    """What the policy answers while it learns."""
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    clock = Examination(job, tokenizer)
    train(job, rows, clock, tokenizer)
    return {"seconds": clock.seconds, "curve": clock.curve}


def train(job: side.Job, rows: side.Rows, clock: Clock, tokenizer: PreTrainedTokenizerBase) -> None:
    policy = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    adapters = {"r": job["lora"], "lora_alpha": 2 * job["lora"], "target_modules": job.get("target_modules")}
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
    PPOTrainer(
        config,
        tokenizer,
        policy,
        None,
        reward,
        Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in rows]),
        # The trainer gives the policy adapters, and would train all of the value model.
        get_peft_model(value, LoraConfig(**adapters, task_type="SEQ_CLS", modules_to_save=["score"])),
        callbacks=[clock],
        peft_config=LoraConfig(**adapters, task_type="CAUSAL_LM"),
    ).train()


if __name__ == "__main__":
    side.run({"ppo": ppo, "quality": quality})
