"""What PPO makes of sampled episodes: advantages, returns and a critic's warmup, against the definitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench.climb import BETA, CONTEXT, Critic, World, online, rollouts
from tests.oracles import episodes
from torch import Tensor

from assay.rollout.collect import Rollouts
from assay.stages import loop, ppo
from assay.stages.config import OptimConfig, PPOConfig


def world_of_ppo(**changes: Any) -> tuple[PPOConfig, Any, Rollouts, World]:
    """A policy that has left its reference, a critic that believes something, and episodes."""
    world, critic = World.new("table", 1), Critic()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(2)
        for parameter in (*world.policy.parameters_trained().values(), critic.table):
            parameter += 0.5 * torch.randn(parameter.shape, generator=noise)
    config = PPOConfig.model_validate({"gamma": 0.9, "lam": 0.5, **changes})
    return config, SimpleNamespace(policy=world.policy, value=critic), rollouts(world), world


def test_advantages_and_returns_are_those_of_each_episode_alone() -> None:
    config, roles, sampled, world = world_of_ppo()
    experience, _ = ppo.estimate(sampled, roles, online(world), config)
    kl_BR: Tensor = sampled.logprobs_BR - sampled.reference_BR
    assert kl_BR.abs().mean() > 0.1
    plain, returns = [], []
    for score, kl, values in zip(sampled.scores_B.tolist(), kl_BR.tolist(), experience.values_BR.tolist(), strict=True):
        found = episodes.advantages(episodes.shaped_rewards(score, kl, BETA), values, 0.9, 0.5)
        plain += found
        returns.append([a + v for a, v in zip(found, values, strict=True)])
    white = torch.tensor(episodes.whitened(plain, True, 1e-8)).view_as(experience.advantages_BR)
    torch.testing.assert_close(experience.advantages_BR, white, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(experience.returns_BR, torch.tensor(returns), rtol=1e-4, atol=1e-5)


def test_the_critic_learns_returns() -> None:
    config, roles, sampled, world = world_of_ppo()
    experience, _ = ppo.estimate(sampled, roles, online(world), config)
    measured = ppo.value_step(experience, roles, config)
    off_BR = experience.values_BR - experience.returns_BR
    assert measured["val/loss"] == pytest.approx(off_BR.square().mean().item() / 2, rel=1e-5)
    assert (off_BR + experience.advantages_BR).abs().mean() > 0.1  # advantages are no returns less values: whitened


@pytest.mark.parametrize("iteration", [0, 1])
def test_during_its_warmup_the_critic_alone_learns(iteration: int) -> None:
    config, roles, sampled, world = world_of_ppo(value_warmup=1)
    experience, _ = ppo.estimate(sampled, roles, online(world), config)
    before = [roles.policy.logits.detach().clone(), roles.value.table.detach().clone()]
    optim = OptimConfig(learning_rate=0.1, schedule="constant", warmup=0.0)
    optimizers = {
        "policy": loop.Optimizer({"logits": roles.policy.logits}, optim, 100),
        "value": loop.Optimizer({"table": roles.value.table}, optim, 100),
    }
    ppo.update(experience, roles, optimizers, iteration, BETA, config, CONTEXT)
    moved = [not torch.equal(a, b) for a, b in zip(before, (roles.policy.logits, roles.value.table), strict=True)]
    assert moved == [iteration == 1, True]
