"""Proximal policy optimisation against a reward model.

    prompts + SFT policy + reward model  →  aligned policy + value model

    each iteration:  sample episodes → score them → penalise KL per token → GAE → clipped updates

Sources: PPO (arXiv 1707.06347); RLHF as in InstructGPT (2203.02155), sec. 3.5; details of N+ (2403.17031).
Formulas: algorithms/{kl,advantages,policy_loss}.py. Tensors are [B, R]: B episodes, R response tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms import advantages, masked, policy_loss
from assay.algorithms.kl import AdaptiveKL, FixedKL, k1, sequence_kl
from assay.data.render import Renderer
from assay.errors import DataError, Interrupted
from assay.models.roles import PPORoles, ppo_roles
from assay.rewards.learned import LearnedReward
from assay.rollout import collect
from assay.rollout.collect import Experience, Rollouts
from assay.rollout.engine import Engine
from assay.stages import compared, loop
from assay.stages.config import PPOConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Prompt


@dataclass
class State:
    """What a checkpoint keeps besides weights and optimizer moments."""

    kl_coef: float
    reward_mean: float | None = None
    """Mean and deviation of the SFT policy's own scores: training sees (score - mean) / deviation."""
    reward_std: float = 1.0
    seconds: float = 0.0
    episodes: int = 0
    entropy_before: float = 0.0
    value_loss_first: float = 0.0
    first_ratio_error: float | None = None
    """Before any policy update there is none."""
    sampler_error: float = 0.0
    kl_z_min: float = 0.0

    def remember(self, measured: Mapping[str, float], kl_coef: float, episodes: int) -> None:
        """Take note of one iteration."""
        if self.episodes == 0:
            self.entropy_before, self.value_loss_first = measured["objective/entropy"], measured["val/loss_first"]
        self.kl_coef = kl_coef
        self.episodes += episodes
        self.seconds += episodes / measured["train/episodes_per_s"]
        if "policy/ratio_first_error" in measured:
            self.first_ratio_error = max(self.first_ratio_error or 0.0, measured["policy/ratio_first_error"])
        self.sampler_error = max(self.sampler_error, measured["val/sampler_error"])
        self.kl_z_min = min(self.kl_z_min, measured["objective/kl_z"])


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
    renderer = Renderer(roles.policy.tokenizer, template=inputs.template, max_length=config.max_length)
    engine = Engine(roles.policy, renderer, max_batch=config.batch_size)
    reward = LearnedReward(roles.reward, batch_size=config.batch_size)

    def sample(prompts: Sequence[Prompt], *purpose: str | int) -> Rollouts:
        return collect.collect(
            engine,
            prompts,
            config.sampling,
            seed=rng.derive(ctx.seed, *purpose),
            reward=reward,
            reference=roles.reference,
            device=ctx.device,
            micro_batch_size=config.micro_batch_size or config.batch_size,
        )

    validation, test = inputs.data.prompts.validation[: config.evaluation_prompts], inputs.data.prompts.test
    before = sample(validation, "validation")  # the policy still is the SFT model
    before_test = sample(test, "test")

    iterations = max(1, config.episodes // config.batch_size)
    optimizers = build_optimizers(roles, config, iterations)
    start, best, saved = loop.restore(ctx, optimizers)
    state = State(**saved) if saved else State(kl_coef=config.kl_coef)
    measured: dict[str, float] = {}
    penalty = FixedKL(config.kl_coef)
    if config.kl_target is not None:
        penalty = AdaptiveKL(state.kl_coef, config.kl_target, config.kl_horizon)

    with ctx.progress(iterations, "ppo") as progress:
        for iteration in range(start, iterations):
            began = time.perf_counter()
            prompts = loop.pick(inputs.data.prompts.train, config.batch_size, iteration, ctx.seed)
            rollouts = sample(prompts, "episodes", iteration)
            experience, measured = estimate(rollouts, roles, state, penalty.coef, config)
            measured |= update(experience, roles, optimizers, iteration, config, ctx)
            penalty = penalty.update(measured["objective/kl"], len(rollouts.rows))
            measured["train/episodes_per_s"] = len(rollouts.rows) / (time.perf_counter() - began)
            state.remember(measured, penalty.coef, len(rollouts.rows))
            if inputs.truth:
                measured["objective/truth"] = loop.mean(inputs.truth(rollouts.prompts, rollouts.texts))

            done = iteration + 1
            if done % config.evaluate_every == 0 or done == iterations:
                after = sample(validation, "validation")
                measured |= loop.numbers(compared.compare(before, after, inputs), prefix="eval/")
                gain = (measured["eval/reward_after"] - measured["eval/reward_before"]) / state.reward_std
                objective = gain - config.kl_coef * measured["eval/kl"]
                best.offer(objective, done, roles.policy.parameters_trained())
            ctx.log(done, measured)
            progress.update(done, f"reward {measured['objective/reward']:+.2f}, KL {measured['objective/kl']:.2f}")

            if done == iterations or (config.patience and best.evaluations_since >= config.patience):
                break
            interrupted = ctx.interrupted()
            if interrupted or done % config.checkpoint_every == 0:
                loop.save(ctx, done, optimizers, best, asdict(state))
            if interrupted:
                raise Interrupted(f"stopped after iteration {done} of {iterations}; the checkpoint is saved")

    best.put_back(roles.policy.parameters_trained())
    roles.policy.save(ctx.folder)
    roles.value.save(ctx.folder / "value")
    after_test = sample(test, "test")
    ctx.samples(iterations, compared.side_by_side(before_test, after_test, inputs))
    return {
        **compared.compare(before_test, after_test, inputs),
        "kl_target": config.kl_target,
        "kl_z_min": state.kl_z_min,
        "entropy_before": state.entropy_before,
        "entropy_after": measured["objective/entropy"],
        "value_loss_first": state.value_loss_first,
        "value_loss_last": measured["val/loss_first"],
        "explained_variance": measured["val/explained_variance"],
        "first_ratio_error": state.first_ratio_error,
        "sampler_error": state.sampler_error,
        "best_iteration": best.iteration,
        "reward_mean": state.reward_mean,
        "reward_std": state.reward_std,
        "episodes": state.episodes,
        "episodes_per_s": state.episodes / state.seconds,
    }


def estimate(
    rollouts: Rollouts, roles: PPORoles, state: State, kl_coef: float, config: PPOConfig
) -> tuple[Experience, dict[str, float]]:
    """Rewards per token, values and advantages of the episodes, all from before the update."""
    if state.reward_mean is None:  # the SFT policy's own scores set the unit of reward; the critic moves along
        state.reward_mean = rollouts.scores_B.mean().item()
        state.reward_std = max(rollouts.scores_B.std(correction=0).item(), 1e-3)
        roles.value.rescale(1 / state.reward_std, -state.reward_mean / state.reward_std)
    mask_BR = rollouts.mask_BR
    scores_B = advantages.missing_eos_scores(
        (rollouts.scores_B - state.reward_mean) / state.reward_std,
        rollouts.finished_B & ~rollouts.empty_B,
        rule=config.missing_eos,
        penalty=config.missing_eos_penalty,
    )
    with torch.no_grad():
        size = config.micro_batch_size or len(rollouts.rows)
        pad_id, device = roles.policy.pad_id, mask_BR.device
        values_BR = collect.over_rows(roles.value.values, rollouts.rows, pad_id, device, size)
        # Once more by the path that is trained: the sampler's cache adds its own rounding, which is measured here.
        scored = partial(roles.policy.logprobs, temperature=config.sampling.temperature)
        old_BR = collect.over_rows(lambda batch: scored(batch).logprobs_BR, rollouts.rows, pad_id, device, size)
    kl_BR = k1(old_BR, rollouts.reference_BR)
    kl_B = sequence_kl(kl_BR, mask_BR)
    rewards_BR = advantages.shaped_rewards(scores_B, kl_BR, mask_BR, coef=kl_coef)
    advantages_BR, returns_BR = advantages.gae(rewards_BR, values_BR, mask_BR, gamma=config.gamma, lam=config.lam)
    measured = {
        "objective/reward": scores_B.mean().item(),
        "objective/score": rollouts.scores_B.mean().item(),
        "objective/kl": kl_B.mean().item(),
        "objective/kl_z": (kl_B.mean() / (kl_B.std() / len(kl_B) ** 0.5).clamp_min(1e-9)).item(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": -masked.masked_mean(old_BR, mask_BR).item(),  # E[−log π] is the entropy
        "val/sampler_error": policy_loss.ratio_error(old_BR, rollouts.logprobs_BR, mask_BR).item(),
        "val/explained_variance": advantages.explained_variance(values_BR, returns_BR, mask_BR).item(),
        "lengths/response_mean": mask_BR.sum(1).float().mean().item(),
        "lengths/truncated": 1 - rollouts.finished_B.float().mean().item(),
        "text/repetition": rollouts.repetition(),
        "lengths/empty": rollouts.empty_B.float().mean().item(),
    }
    whitened_BR = masked.whiten(advantages_BR, mask_BR)
    return Experience(rollouts.rows, mask_BR, old_BR, values_BR, whitened_BR, returns_BR), measured


def update(
    experience: Experience,
    roles: PPORoles,
    optimizers: Mapping[str, loop.Optimizer],
    iteration: int,
    config: PPOConfig,
    ctx: RunContext,
) -> dict[str, float]:
    """Several passes of clipped updates over one batch of episodes; during warmup the value model alone learns."""
    count = len(experience.rows)
    size = -(-count // config.minibatches)
    train_policy = iteration >= config.value_warmup
    steps: list[dict[str, float]] = []
    for epoch in range(config.inner_epochs):
        order = list(range(count))
        rng.python_rng(ctx.seed, "minibatches", iteration, epoch).shuffle(order)
        for index, minibatch in enumerate(loop.micro_batches(order, size)):
            step = (iteration * config.inner_epochs + epoch) * config.minibatches + index
            batch = experience.take(minibatch)
            measured = value_step(batch, roles, config)
            measured |= loop.numbers(optimizers["value"].update(step), prefix="val/")
            if train_policy:
                measured |= policy_step(batch, roles, config)
                moved = optimizers["policy"].update(step - config.value_warmup * updates_of(config))
                measured |= loop.numbers(moved, prefix="policy/")
            steps.append(measured)
        if train_policy and config.kl_stop is not None and steps[-1]["policy/approxkl_avg"] > config.kl_stop:
            break
    averages = {key: loop.mean([step[key] for step in steps]) for key in steps[0]}
    averages |= {"val/loss_first": steps[0]["val/loss"], "policy/updates": float(len(steps) if train_policy else 0)}
    return averages | ({"policy/ratio_first_error": steps[0]["policy/ratio_error"]} if train_policy else {})


def policy_step(batch: Experience, roles: PPORoles, config: PPOConfig) -> dict[str, float]:
    """Gradient of the clipped surrogate, and of the entropy bonus where there is one, over one minibatch."""
    total = int(batch.mask_BR.sum())
    sums: dict[str, Tensor] = {}
    error = torch.zeros((), device=batch.mask_BR.device)
    for rows in batch.parts(config.micro_batch_size):
        scored = roles.policy.logprobs(
            rows.tokens(roles.policy.pad_id), temperature=config.sampling.temperature, entropy=config.entropy_coef > 0
        )
        loss, measured = policy_loss.ppo_policy_loss(
            scored.logprobs_BR,
            rows.logprobs_BR,
            rows.advantages_BR,
            rows.mask_BR,
            clip_low=config.clip,
            clip_high=config.clip,
            total=total,
        )
        if scored.entropy_BR is not None:
            loss = loss + config.entropy_coef * policy_loss.entropy_loss(scored.entropy_BR, rows.mask_BR, total=total)
        loss.backward()
        loop.add_to(sums, {"loss": loss.detach(), **measured})
        error = torch.maximum(error, policy_loss.ratio_error(scored.logprobs_BR, rows.logprobs_BR, rows.mask_BR))
    return {
        "policy/loss": sums["loss"].item(),
        "policy/clipfrac_avg": sums["clipfrac"].item(),
        "policy/approxkl_avg": sums["approxkl"].item(),
        "policy/ratio_error": error.item(),
    }


def value_step(batch: Experience, roles: PPORoles, config: PPOConfig) -> dict[str, float]:
    """Gradient of the clipped value loss over one minibatch."""
    total = int(batch.mask_BR.sum())
    sums: dict[str, Tensor] = {}
    for rows in batch.parts(config.micro_batch_size):
        loss, measured = policy_loss.ppo_value_loss(
            roles.value.values(rows.tokens(roles.policy.pad_id)),
            rows.values_BR,
            rows.returns_BR,
            rows.mask_BR,
            clip=config.value_clip,
            total=total,
        )
        loss.backward()
        loop.add_to(sums, {"loss": loss.detach(), **measured})
    return {"val/loss": sums["error"].item() / 2, "val/clipfrac_avg": sums["clipfrac"].item()}


def updates_of(config: PPOConfig) -> int:
    """Optimizer steps of one iteration."""
    return config.inner_epochs * config.minibatches


def build_optimizers(roles: PPORoles, config: PPOConfig, iterations: int) -> dict[str, loop.Optimizer]:
    """One AdamW for the policy and one for the value model: neither clips the other's gradient."""
    updates, warmup = iterations * updates_of(config), config.value_warmup * updates_of(config)
    value = config.optim.model_copy(update={"learning_rate": config.value_learning_rate or config.optim.learning_rate})
    return {
        "policy": loop.Optimizer(roles.policy.parameters_trained(), config.optim, max(1, updates - warmup)),
        "value": loop.Optimizer(roles.value.parameters_trained(), value, updates),
    }
