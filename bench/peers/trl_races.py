"""TRL's side of the races. Runs in TRL's own environment; settings are its fastest documented ones that a CPU can take.

What they are and why: `settings` of bench/race/races.py, which the page shows.
"""

from __future__ import annotations

import time
from typing import Any

from bench.peers import side
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import (  # pyright: ignore[reportMissingImports]  (another environment)
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


class PreparedDPO(DPOTrainer):
    """Takes the ids as they are, so that both sides read the same ones; counts the time of the reference pass."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        began = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args)
        self.reference_seconds = time.perf_counter() - began
        return dataset


def reward(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    names = ("chosen_ids", "rejected_ids")
    texts = [{name: row["prompt_ids"] + row[name] for name in names} for row in by_length(rows)]
    config = RewardConfig(**common(job), max_length=job["max_length"])
    return train(RewardTrainer(job["policy"], config, train_dataset=Dataset.from_list(texts), peft_config=lora(job)))


def dpo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    texts = [{name: row[name] for name in names} for row in by_length(rows)]
    config = DPOConfig(**common(job), max_length=job["max_length"], precompute_ref_log_probs=True)
    trainer = PreparedDPO(job["policy"], args=config, train_dataset=Dataset.from_list(texts), peft_config=lora(job))
    return {"seconds": train(trainer)["seconds"] + trainer.reference_seconds}


def sft(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    texts = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in by_length(rows)
    ]
    config = SFTConfig(**common(job), max_length=job["max_length"])
    return train(SFTTrainer(job["policy"], config, train_dataset=Dataset.from_list(texts)))


def grpo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    config = GRPOConfig(**groups(job), loss_type="grpo")
    return train(GRPOTrainer(job["policy"], job["reward"], config, train_dataset=asked(rows), peft_config=lora(job)))


def rloo(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    config = RLOOConfig(**groups(job))
    return train(RLOOTrainer(job["policy"], job["reward"], config, train_dataset=asked(rows), peft_config=lora(job)))


def groups(job: side.Job) -> dict[str, Any]:
    """Arguments of the trainers that sample groups."""
    return {
        **common(job),
        "num_generations": job["group"],
        "generation_batch_size": job["batch"],
        "max_completion_length": job["new_tokens"],
        "shuffle_dataset": False,
        "beta": job["kl_coef"],
    }


def asked(rows: side.Rows) -> Dataset:
    prompts = sorted(rows, key=lambda row: len(row["prompt_ids"]))
    return Dataset.from_list([{"prompt": row["prompt"]} for row in prompts])


def train(trainer: Any) -> dict[str, Any]:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"seconds": clock.seconds}


def by_length(rows: side.Rows) -> side.Rows:
    """Neighbours of like length, so that little is padded; with `sequential` that is group_by_length in a long run."""
    return sorted(rows, key=lambda r: len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])))


def common(job: side.Job) -> dict[str, Any]:
    """Arguments of every trainer."""
    return {
        "output_dir": job["scratch"],
        "use_cpu": True,
        "bf16": False,  # a CPU without bf16 units is many times slower with it
        "gradient_checkpointing": False,
        "per_device_train_batch_size": job["micro_batch"],
        "gradient_accumulation_steps": job["batch"] // job["micro_batch"],
        "num_train_epochs": job["epochs"],
        "learning_rate": job["learning_rate"],
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }


def lora(job: side.Job) -> LoraConfig | None:
    """Adapters on PEFT's usual layers; a reward model trains its head as well."""
    if not job["lora"]:
        return None
    head = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if job["race"].startswith("reward") else {}
    return LoraConfig(r=job["lora"], lora_alpha=2 * job["lora"], **(head or {"task_type": "CAUSAL_LM"}))


if __name__ == "__main__":
    side.run({"reward": reward, "reward_lora": reward, "dpo": dpo, "sft": sft, "grpo": grpo, "rloo": rloo})
