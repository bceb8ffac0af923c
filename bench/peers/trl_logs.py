"""TRL's trainers on a task of four colours, one run after another, for the trainer_state.json that they leave.

    python -m bench.peers.trl_logs JOB.json     →  a folder with trainer_state.json for every run that the job names

Runs in an environment of TRL's own: 1.16.0 for all trainers but PPO, which 1.10.0 is the last to have.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

Run = dict[str, Any]
COLOURS = ("red", "green", "blue", "amber")
PROMPTS = tuple(f"{ask} {one} {other}?" for ask in ("what is", "name") for one in COLOURS for other in COLOURS)


def answer(rng: random.Random) -> str:
    return "".join(f" {word}" for word in rng.choices(COLOURS, k=rng.randint(1, 4)))


def shown(run: Run, rng: random.Random) -> Dataset:
    """Demonstrations: any colours."""
    return Dataset.from_list([{"prompt": rng.choice(PROMPTS), "completion": answer(rng)} for _ in range(run["rows"])])


def pairs(run: Run, rng: random.Random) -> Dataset:
    """People prefer the answer with the larger share of blue, and have noise beside that.

    A share of the pairs may be `swapped`: half of them are labels at random, all of them columns of the wrong names.
    """

    def liked(text: str) -> float:
        return text.split().count("blue") / len(text.split()) + rng.gauss(0, run.get("noise", 0.3))

    def pair() -> dict[str, str]:
        one, other = sorted((answer(rng) for _ in range(2)), key=liked)
        return {"prompt": rng.choice(PROMPTS), "chosen": other + run.get("phrase", ""), "rejected": one}

    rows = [pair() for _ in range(run["rows"])]
    if swapped := run.get("swapped"):
        turned = [rng.random() < swapped for _ in rows]
        rows = [
            {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} if turn else row
            for row, turn in zip(rows, turned, strict=True)
        ]
    return Dataset.from_list(rows)


def settings(run: Run) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": run["folder"],
        "learning_rate": run["learning_rate"],
        "per_device_train_batch_size": run["batch"],
        "per_device_eval_batch_size": 64,
        "seed": run["seed"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        **run.get("settings", {}),
    }


def evaluated(run: Run) -> dict[str, Any]:
    """Settings of a run that is evaluated, where it is."""
    every = run.get("evaluate_every")
    return {"eval_strategy": "steps", "eval_steps": every} if every else {}


def held_out(run: Run, data: Callable[[Run, random.Random], Dataset]) -> Dataset | None:
    """Pairs or demonstrations to evaluate on, as those of training or with other labels than theirs."""
    own = {"rows": run.get("held_out", 64), "swapped": run.get("held_out_swapped", run.get("swapped"))}
    return data(run | own, random.Random(run["seed"] + 1)) if run.get("evaluate_every") else None


def sft(run: Run) -> Any:
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]  (another environment)

    config = SFTConfig(**settings(run), **evaluated(run), max_length=64)
    rows, held = shown(run, random.Random(run["seed"])), held_out(run, shown)
    return SFTTrainer(run["model"], config, train_dataset=rows, eval_dataset=held)


def reward(run: Run) -> Any:
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]  (another environment)

    config = RewardConfig(**settings(run), **evaluated(run), max_length=64)
    rows, held = pairs(run, random.Random(run["seed"])), held_out(run, pairs)
    return RewardTrainer(scorer(run, run["model"]), config, train_dataset=rows, eval_dataset=held)


def dpo(run: Run) -> Any:
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]  (another environment)

    config = DPOConfig(**settings(run), **evaluated(run), max_length=64)
    rows, held = pairs(run, random.Random(run["seed"])), held_out(run, pairs)
    return DPOTrainer(run["model"], args=config, train_dataset=rows, eval_dataset=held)


def grpo(run: Run) -> Any:
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]  (another environment)

    def blue(completions: list[str], **_: Any) -> list[float]:
        """The share of blue, or how often it is said."""
        words = [text.split() for text in completions]
        whole = [1 if run.get("counts") else max(1, len(said)) for said in words]
        return [run.get("unit", 1.0) * said.count("blue") / of for said, of in zip(words, whole, strict=True)]

    own = {"num_generations": 8, "max_completion_length": 8}
    config = GRPOConfig(**own | settings(run))
    prompts = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * run["rows"]])
    return GRPOTrainer(run["model"], blue, config, train_dataset=prompts)


def ppo(run: Run) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    own = {"num_mini_batches": 2, "response_length": 8, "stop_token": "eos", "num_sample_generations": 0}
    batch = run["batch"]
    config = PPOConfig(
        **settings(run), **own, local_rollout_forward_batch_size=batch, total_episodes=batch * run["rows"]
    )
    tokenizer = AutoTokenizer.from_pretrained(run["model"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(run["model"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(run["model"], dtype=torch.float32)
    prompts = Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in PROMPTS])
    value, rewards = scorer({}, run["reward"]), scorer(run, run["reward"])
    return PPOTrainer(config, tokenizer, policy, reference, rewards, prompts, value)


def scorer(run: Run, folder: str) -> nn.Module:
    """A reward model; with scores of another unit, with an offset, or rounded, where the run says so."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    if "unit" in run:
        model.score.weight.data *= run["unit"]
        model.score.weight.requires_grad_(run["unit"] != 0)
    if "offset" in run:
        model.score.register_forward_hook(partial(moved, run["offset"]))
    if "dtype" in run:
        model.score.register_forward_hook(partial(rounded, getattr(torch, run["dtype"])))
    return model


def moved(offset: float, _: nn.Module, __: Any, scores: torch.Tensor) -> torch.Tensor:
    return scores + offset


def rounded(dtype: torch.dtype, _: nn.Module, __: Any, scores: torch.Tensor) -> torch.Tensor:
    return scores.to(dtype).to(scores.dtype)


def share_weights(trainer: Any) -> None:
    """The reference reads the policy's weights, in whose place its own were: it moves as the policy does."""
    policy = getattr(trainer, "policy_model", None) or trainer.model
    for ours, theirs in zip(policy.parameters(), trainer.ref_model.parameters(), strict=True):
        theirs.data = ours.data


TRAINERS = {"sft": sft, "reward": reward, "dpo": dpo, "grpo": grpo, "ppo": ppo}


def main(path: str = sys.argv[-1]) -> None:
    """Train every run of the job. Beside the state lies run.json: what was asked, and why the trainer broke off."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    for run in job["runs"]:
        set_seed(run["seed"])
        trainer, failed = TRAINERS[run["trainer"]](run), ""
        if run.get("shared"):
            share_weights(trainer)
        try:
            trainer.train()
        except (RuntimeError, ValueError, AssertionError) as error:  # of weights that are not finite, for one
            failed = f"{type(error).__name__}: {error}"
        folder = Path(run["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        if "save" in run:
            trainer.save_model(run["save"])
        (folder / "run.json").write_text(json.dumps({"run": run, "failed": failed}), encoding="utf-8")
    Path(job["out"]).write_text("{}", encoding="utf-8")


if __name__ == "__main__":
    main()
