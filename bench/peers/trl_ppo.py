"""TRL's side of the PPO race: 1.10.0, the last release that has PPO. Runs in an environment of its own."""

from __future__ import annotations

import time
from typing import Any

import torch
from bench.peers import side
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]  (another environment)


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def ppo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    adapters = {"r": job["lora"], "lora_alpha": 2 * job["lora"]}
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
    )
    clock = Clock()
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
    return {"seconds": clock.seconds}


if __name__ == "__main__":
    side.run({"ppo": ppo})
