"""Policy optimisation without a critic: REINFORCE, RLOO, GRPO, Dr.GRPO, DAPO, GSPO, CISPO, REINFORCE++, ReMax.

    prompts + SFT policy + reward model  →  aligned policy

    each iteration:  G responses to each prompt → score them → compare them with each other → updates

A method is a choice of baseline, scale, level of the ratio, surrogate, aggregation and place of the KL; the names are
presets (stages/config/policy.py, with their papers). Formulas: algorithms/{kl,advantages,policy_loss}.py.
Tensors are [B, R], B episodes of R response tokens, or [N, G], N prompts with G responses each; B = N·G.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms import advantages, masked
from assay.algorithms.kl import sequence_kl
from assay.errors import DataError
from assay.models.roles import Policy, sampling_roles
from assay.rollout.collect import Experience, Rollouts, joined
from assay.stages import loop
from assay.stages.config import GroupConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.online import Online
from assay.stages.policy_step import importance_weighted, policy_step


def run(config: GroupConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    if inputs.reward is None:
        raise DataError("group has no reward model", hint="put a reward stage before it, or set group.reward")
    roles = sampling_roles(
        inputs.base,
        inputs.reward,
        config.lora,
        template=inputs.template,
        max_length=config.max_length,
        device=ctx.device,
        seed=ctx.seed,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    steps = config.iterations * config.updates
    optimizer = loop.Optimizer(roles.policy.parameters_trained(), config.optim, steps)
    online = Online(config, inputs, ctx, roles, {"policy": optimizer})
    with ctx.progress(config.iterations, config.method) as progress:
        for iteration in online.iterations(progress):
            rollouts = sample_groups(online, iteration, config)
            experience, measured = estimate(rollouts, online, config)
            measured |= update(experience, roles.policy, optimizer, iteration, online.penalty.coef, config, ctx)
            online.finish(iteration, rollouts, measured)
    return online.report()


def sample_groups(online: Online, iteration: int, config: GroupConfig) -> Rollouts:
    """G responses to each of the iteration's prompts; groups whose scores are all equal make room for new prompts."""
    count = config.batch_size // config.group_size
    rounds = 1 + config.resample
    kept: list[Rollouts] = []
    missing = count
    for attempt in range(rounds):
        prompts = online.prompts(iteration * rounds + attempt, count)[:missing]
        grouped = [prompt for prompt in prompts for _ in range(config.group_size)]
        rollouts = online.sample(grouped, "episodes", iteration, *([attempt] if attempt else []))
        useful_N = advantages.informative_groups(shaped_scores(online, rollouts, config).view(-1, config.group_size))
        if attempt == rounds - 1:
            useful_N = torch.ones_like(useful_N)  # enough: what is left teaches nothing, and keeps the batch whole
        if useful_N.any():
            kept.append(rollouts.take(useful_N.repeat_interleave(config.group_size).nonzero().flatten().tolist()))
        missing -= int(useful_N.sum())
        if not missing:
            break
    return joined(kept)


def estimate(rollouts: Rollouts, online: Online, config: GroupConfig) -> tuple[Experience, dict[str, float]]:
    """Advantages of the episodes, all from before the update."""
    _, old_BR, kl_BR, measured = online.observe(rollouts)
    scores_B, mask_BR = shaped_scores(online, rollouts, config), rollouts.mask_BR
    greedy_B = online.greedy_scores(rollouts.prompts) if config.baseline == "greedy" else torch.zeros_like(scores_B)
    advantages_BR = token_advantages(
        scores_B, greedy_B, kl_BR, mask_BR, config, coef=0.0 if config.kl_loss else online.penalty.coef
    )
    groups_NG = scores_B.view(-1, config.group_size)
    measured["objective/groups_without_signal"] = 1 - advantages.informative_groups(groups_NG).float().mean().item()
    measured["objective/prompts_per_group"] = loop.mean(
        [len(set(rollouts.prompts[i : i + config.group_size])) for i in range(0, len(scores_B), config.group_size)]
    )
    advantages_BR = importance_weighted(advantages_BR, rollouts, old_BR, config)
    ones_BR, no_critic = torch.ones_like(old_BR), torch.zeros(len(rollouts.rows), 0)
    experience = Experience(
        rollouts.rows, mask_BR, old_BR, rollouts.reference_BR, advantages_BR, ones_BR, no_critic, no_critic
    )
    return experience.on_host(), measured


def shaped_scores(online: Online, rollouts: Rollouts, config: GroupConfig) -> Tensor:
    """Scores in the unit of reward, lowered for responses that come close to the longest, [B]."""
    scores_B = online.scores(rollouts)
    if config.overlong:
        longest, lengths_B = config.sampling.max_new_tokens, rollouts.mask_BR.sum(1)
        scores_B = scores_B + advantages.overlong_penalty(
            lengths_B, max_tokens=longest, buffer=config.overlong * longest
        )
    return scores_B


def token_advantages(
    scores_B: Tensor, greedy_B: Tensor, kl_BR: Tensor, mask_BR: Tensor, config: GroupConfig, *, coef: float
) -> Tensor:
    """An advantage for every token: score (less β·KL, if that is in the reward) minus baseline, over the scale.

    credit: response   every token of a response has the advantage of the whole
    credit: token      a token answers for the KL from itself onwards (rewards to go), as in REINFORCE++
    Shapes: [B], [B], [B, R] → [B, R], 0 where nothing counts.
    """
    if config.credit == "response":
        scores_B = scores_B - coef * sequence_kl(kl_BR, mask_BR)
    baselined_B = baselined(scores_B.view(-1, config.group_size), config).flatten() - greedy_B
    advantages_BR = masked.zero_pads(baselined_B[:, None].expand_as(kl_BR), mask_BR)
    if config.credit == "token":
        rewards_BR = advantages.shaped_rewards(baselined_B, kl_BR, mask_BR, coef=coef)
        advantages_BR, _ = advantages.gae(rewards_BR, torch.zeros_like(kl_BR), mask_BR, gamma=1.0, lam=1.0)
    return masked.whiten(advantages_BR, mask_BR) if config.scale == "batch" else advantages_BR


def baselined(scores_NG: Tensor, config: GroupConfig) -> Tensor:
    """Scores less what their own group says was to be expected, [N, G]."""
    if config.baseline == "leave_one_out":
        return advantages.leave_one_out(scores_NG)
    if config.baseline == "mean":
        return advantages.group_relative(scores_NG, scale=config.scale == "group")
    return scores_NG


def update(
    experience: Experience,
    policy: Policy,
    optimizer: loop.Optimizer,
    iteration: int,
    kl_coef: float,
    config: GroupConfig,
    ctx: RunContext,
) -> dict[str, float]:
    """Passes over one batch of episodes, a minibatch an optimizer step."""
    steps: list[dict[str, float]] = []
    for epoch in range(config.inner_epochs):
        noise = rng.python_rng(ctx.seed, "minibatches", iteration, epoch)
        for batch in experience.minibatches(config.minibatches, noise):
            step = iteration * config.updates + len(steps)
            measured = policy_step(batch, policy, config, kl_coef)
            measured |= loop.named("policy/", optimizer.update(step))
            steps.append(loop.read(step, measured))
        if config.kl_stop is not None and steps[-1]["policy/approxkl_avg"] > config.kl_stop:
            break
    averages = {key: loop.mean([step[key] for step in steps]) for key in steps[0]}
    return averages | {
        "policy/ratio_first_error": steps[0]["policy/ratio_error"],
        "policy/updates": float(len(steps)),
    }
