"""Every stage learns its toy task, in seconds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.unit.stages.toy import QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights

from assay.data.render import Renderer, Row
from assay.models.config import LoraConfig
from assay.models.roles import load_policy, load_reward_model
from assay.rollout import collect
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.stages import ppo, reward, sft
from assay.stages.causal import imitate
from assay.stages.config import OptimConfig, PPOConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs

SAMPLING = SamplingParams(max_new_tokens=4)
LORA = LoraConfig(r=8, alpha=16, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))


def answers(folder: Path, samples: int = 20) -> Counter[str]:
    policy = load_policy(folder, trainable=False)
    engine = Engine(policy, Renderer(policy.tokenizer, max_length=32), max_batch=64)
    return Counter(g.text for g in collect.sample(engine, QUESTIONS * samples, SAMPLING, seed=1))


def ppo_config(**changes: object) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "episodes": 960,
            "batch_size": 48,
            "inner_epochs": 2,
            "max_length": 32,
            "optim": {"learning_rate": 1e-2, "schedule": "constant"},
            "kl_coef": 0.1,
            "value_warmup": 1,
            "evaluate_every": 5,
            "checkpoint_every": 3,
            "sampling": SAMPLING,
            "lora": LORA,
            **changes,
        }
    )


def test_sft_learns_the_distribution_of_its_demonstrations(sft_folder: Path) -> None:
    counts = answers(sft_folder)
    shown = {"red", "green", "blue", "amber"}
    assert sum(counts[colour] for colour in shown) / counts.total() > 0.95
    assert all(0.1 < counts[colour] / counts.total() < 0.4 for colour in shown)


def test_reward_model_orders_the_answers_as_people_do(reward_folder: Path) -> None:
    model = load_reward_model(reward_folder, trainable=False, max_length=32)
    for question in QUESTIONS:
        blue, green, red, amber = model.score_texts([question] * 4, ["blue", "green", "red", "amber"])
        assert blue > green > max(red, amber)


@pytest.mark.parametrize(
    # So small a base has hardly any features for an adapter to turn: full training is held to more.
    ("lora", "rate", "least_share"),
    [(LORA, 5e-3, 0.36), (None, 1e-3, 0.8)],
    ids=["lora", "full"],
)
def test_ppo_moves_the_policy_to_the_preferred_answer(
    sft_folder: Path,
    reward_folder: Path,
    tmp_path: Path,
    lora: LoraConfig | None,
    rate: float,
    least_share: float,
) -> None:
    config = ppo_config(lora=lora, optim={"learning_rate": rate, "schedule": "constant"})
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    metrics = ppo.run(config, inputs, Memory(tmp_path))
    before, after = answers(sft_folder), answers(tmp_path)
    assert after["blue"] / after.total() > least_share > 0.33 > before["blue"] / before.total()
    assert metrics["first_ratio_error"] < 1e-5
    assert metrics["sampler_error"] < 1e-4
    assert metrics["kl"] > 0


@pytest.mark.parametrize("micro", [8, 2, 1])
def test_sft_does_not_depend_on_how_a_batch_is_split(base: Path, tmp_path: Path, micro: int) -> None:
    def train(size: int | None, name: str) -> Path:
        folder = tmp_path / name
        config = SFTConfig(epochs=1, batch_size=8, micro_batch_size=size, max_length=32)
        sft.run(config, StageInputs(toy_data(), str(base)), Memory(folder))
        return folder

    whole, parts = weights(train(None, "whole")), weights(train(micro, "parts"))
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-5


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_a_step_of_imitation_is_the_mean_surprise_of_its_answers_tokens_however_it_is_split(
    base: Path, micro: int | None
) -> None:
    """Answers of different length: a micro-batch's own denominator would weigh their tokens differently."""
    policy = load_policy(base)
    rows = [Row([5, 6, 7, 8], 2), Row([9, 10, 11], 1), Row([12, 13, 14, 15, 16, 17], 1)]
    loss = imitate(policy, rows, micro, "cpu")
    found = {name: p.grad.clone() for name, p in policy.parameters_trained().items() if p.grad is not None}
    policy.model.zero_grad()
    surprises = [
        -torch.log_softmax(policy.model(torch.tensor([row.ids])).logits[0], -1)[place - 1, row.ids[place]]
        for row in rows
        for place in range(row.prompt_length, len(row.ids))
    ]
    expected = torch.stack(surprises).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, policy.parameters_trained()[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_an_interrupted_sft_ends_with_the_same_weights(base: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    config = SFTConfig(epochs=1, batch_size=16, max_length=32, lora=lora, optim=OptimConfig(learning_rate=1e-2))
    inputs = StageInputs(toy_data(), str(base))
    sft.run(config, inputs, Memory(tmp_path / "whole"))
    run_in_two_parts(sft.run, config, inputs, Memory(tmp_path / "parts"), stop_at=3)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_an_interrupted_reward_training_ends_with_the_same_weights(sft_folder: Path, tmp_path: Path) -> None:
    config = RewardConfig(epochs=1, batch_size=10, max_length=32, lora=LORA)
    inputs = StageInputs(toy_data(), str(sft_folder))
    reward.run(config, inputs, Memory(tmp_path / "whole"))
    run_in_two_parts(reward.run, config, inputs, Memory(tmp_path / "parts"), stop_at=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_an_interrupted_ppo_ends_with_the_same_weights(sft_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    config = ppo_config(episodes=240, kl_target=1.0, kl_horizon=200)
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    whole = ppo.run(config, inputs, Memory(tmp_path / "whole"))
    parts = run_in_two_parts(ppo.run, config, inputs, Memory(tmp_path / "parts"), stop_at=3)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert {k: v for k, v in whole.items() if k != "episodes_per_s"} | {"seconds": 0} == {
        k: v for k, v in parts.items() if k != "episodes_per_s"
    } | {"seconds": 0}
