"""Proximal policy optimisation against a reward model.

    prompts + SFT policy + reward model  →  aligned policy + value model

    each iteration:  sample episodes → score them → penalise KL per token → GAE → clipped updates

Sources: PPO (arXiv 1707.06347); RLHF as in InstructGPT (2203.02155), sec. 3.5; details of N+ (2403.17031).
Formulas: algorithms/{kl,advantages,policy_loss}.py. Tensors are [B, R]: B episodes, R response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms import advantages, masked, policy_loss
from assay.errors import DataError
from assay.models.roles import PPORoles, ppo_roles
from assay.rollout import collect
from assay.rollout.collect import Experience, Rollouts
from assay.stages import loop
from assay.stages.config import PPOConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.online import Online
from assay.stages.policy_step import importance_weighted, policy_step


def run(config: PPOConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    if inputs.reward is None:
        raise DataError("ppo has no reward model", hint="put a reward stage before it, or set ppo.reward")
    roles = ppo_roles(
        inputs.base,
        inputs.reward,
        config.lora,
        template=inputs.template,
        max_length=config.max_length,
        device=ctx.device,
        seed=ctx.seed,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    optimizers = build_optimizers(roles, config)
    online = Online(config, inputs, ctx, roles, optimizers)
    with ctx.progress(config.iterations, "ppo") as progress:
        for iteration in online.iterations(progress):
            rollouts = online.sample(online.prompts(iteration, config.batch_size), "episodes", iteration)
            experience, measured = estimate(rollouts, roles, online, config)
            measured |= update(experience, roles, optimizers, iteration, online.penalty.coef, config, ctx)
            online.finish(iteration, rollouts, measured)
    roles.value.save(ctx.folder / "value")
    return online.report() | {
        "value_loss_first": online.state.value_loss_first,
        "value_loss_last": online.state.last["val/loss_first"],
        "explained_variance": online.state.last["val/explained_variance"],
    }


def estimate(
    rollouts: Rollouts, roles: PPORoles, online: Online, config: PPOConfig
) -> tuple[Experience, dict[str, float]]:
    """Rewards per token, values and advantages of the episodes, all from before the update."""
    new_unit = online.state.reward_mean is None
    scores_B, old_BR, kl_BR, measured = online.observe(rollouts)
    if new_unit and online.state.reward_mean is not None:  # the critic was a reward model: it moves to the new unit
        roles.value.rescale(1 / online.state.reward_std, -online.state.reward_mean / online.state.reward_std)
    mask_BR = rollouts.mask_BR
    with torch.no_grad():
        values_BR = collect.over_rows(
            roles.value.values, rollouts.rows, roles.value.backbone, roles.policy.pad_id, config.micro_batch_size
        )
    coef = 0.0 if config.kl_loss else online.penalty.coef
    rewards_BR = advantages.shaped_rewards(scores_B, kl_BR, mask_BR, coef=coef)
    advantages_BR, returns_BR = advantages.gae(rewards_BR, values_BR, mask_BR, gamma=config.gamma, lam=config.lam)
    measured["val/explained_variance"] = advantages.explained_variance(values_BR, returns_BR, mask_BR).item()
    experience = Experience(
        rollouts.rows,
        mask_BR,
        old_BR,
        rollouts.reference_BR,
        importance_weighted(masked.whiten(advantages_BR, mask_BR), rollouts, old_BR, config),
        torch.ones_like(old_BR),
        values_BR,
        returns_BR,
    )
    return experience.on_host(), measured


def update(
    experience: Experience,
    roles: PPORoles,
    optimizers: Mapping[str, loop.Optimizer],
    iteration: int,
    kl_coef: float,
    config: PPOConfig,
    ctx: RunContext,
) -> dict[str, float]:
    """Several passes of clipped updates over one batch of episodes; during warmup the value model alone learns."""
    train_policy = iteration >= config.value_warmup
    steps: list[dict[str, float]] = []
    for epoch in range(config.inner_epochs):
        noise = rng.python_rng(ctx.seed, "minibatches", iteration, epoch)
        for batch in experience.minibatches(config.minibatches, noise):
            step = iteration * config.updates + len(steps)
            measured = value_step(batch, roles, config)
            measured |= loop.named("val/", optimizers["value"].update(step))
            if train_policy:
                measured |= policy_step(batch, roles.policy, config, kl_coef)
                moved = optimizers["policy"].update(step - config.value_warmup * config.updates)
                measured |= loop.named("policy/", moved)
            steps.append(loop.read(step, measured))
        if train_policy and config.kl_stop is not None and steps[-1]["policy/approxkl_avg"] > config.kl_stop:
            break
    averages = {key: loop.mean([step[key] for step in steps]) for key in steps[0]}
    averages |= {"val/loss_first": steps[0]["val/loss"], "policy/updates": float(len(steps) if train_policy else 0)}
    return averages | ({"policy/ratio_first_error": steps[0]["policy/ratio_error"]} if train_policy else {})


def value_step(batch: Experience, roles: PPORoles, config: PPOConfig) -> dict[str, Tensor]:
    """Gradient of the clipped value loss over one minibatch; what is logged as loss is not clipped."""
    total = int(batch.mask_BR.sum())
    sums: dict[str, Tensor] = {}
    for rows in batch.parts(roles.value.backbone, config.micro_batch_size):
        loss, measured = policy_loss.ppo_value_loss(
            roles.value.values(rows.tokens(roles.policy.pad_id)),
            rows.values_BR,
            rows.returns_BR,
            rows.mask_BR,
            clip=config.value_clip,
            total=total,
        )
        loss.backward()
        loop.add_to(sums, measured)
    return {"val/loss": sums["error"] / 2, "val/clipfrac_avg": sums["clipfrac"]}


def build_optimizers(roles: PPORoles, config: PPOConfig) -> dict[str, loop.Optimizer]:
    """One AdamW for the policy and one for the value model: neither clips the other's gradient."""
    updates, warmup = config.iterations * config.updates, config.value_warmup * config.updates
    value = config.optim.model_copy(update={"learning_rate": config.value_learning_rate or config.optim.learning_rate})
    return {
        "policy": loop.Optimizer(roles.policy.parameters_trained(), config.optim, max(1, updates - warmup)),
        "value": loop.Optimizer(roles.value.parameters_trained(), value, updates),
    }
