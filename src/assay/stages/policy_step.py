"""The gradient of one optimizer step of a policy that learns from its own samples: PPO's and the group methods'.

Σ w·(surrogate + β·KL − entropy bonus)          formulas: algorithms/policy_loss.py, algorithms/kl.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.algorithms import policy_loss
from assay.algorithms.kl import sequence_k2, token_k3
from assay.models.roles import Policy
from assay.rollout.collect import Experience, Rollouts
from assay.stages import loop
from assay.stages.config.policy import SamplingStageConfig


def importance_weighted(
    advantages_BR: Tensor, rollouts: Rollouts, old_BR: Tensor, config: SamplingStageConfig
) -> Tensor:
    """Advantages times the truncated importance weight of their token, where the recipe asks for it, [B, R].

    These surrogates are proportional to their advantage, so this weighs them, and not the KL or the entropy.
    """
    if config.importance_cap is None:
        return advantages_BR
    mask_BR, cap = rollouts.mask_BR, config.importance_cap
    return advantages_BR * policy_loss.importance_weights(old_BR, rollouts.logprobs_BR, mask_BR, cap=cap)


def policy_step(batch: Experience, policy: Policy, config: SamplingStageConfig, kl_coef: float) -> dict[str, Tensor]:
    """Gradient of one optimizer step: Σ w·(surrogate + β·KL − entropy bonus), a micro-batch at a time.

    Where nothing but advantages has a gradient, episodes without one are left out, and the metrics are of the others;
    but the KL that may stop the inner epochs is that of all episodes: those are read without a gradient.
    """
    longest = config.sampling.max_new_tokens
    weights_BR = policy_loss.aggregation_weights(batch.mask_BR, config.aggregation, max_tokens=longest)
    counted = batch.mask_BR.any(1) if config.ratio == "trajectory" else batch.mask_BR
    response_weight = weights_BR.sum() / counted.sum()
    batch = batch.weighted(weights_BR)
    sums: dict[str, Tensor] = {}
    drift, drifted = torch.zeros((), device=policy.backbone.device), 0
    if config.kl_loss is None and not config.entropy_coef and config.surrogate != "penalty":
        learning = batch.with_signal()  # the others' gradient is 0, and the denominators are fixed by now
        silent = sorted(set(range(len(batch.rows))) - set(learning))
        if silent and config.kl_stop is not None and config.inner_epochs > 1:
            drift, drifted = approxkl(batch.take(silent), policy, config)
        batch = batch.take(learning)
    tokens = int(batch.mask_BR.sum())
    error = torch.zeros((), device=policy.backbone.device)
    for rows in batch.parts(policy.backbone, config.micro_batch_size):
        scored = policy.logprobs(
            rows.tokens(policy.pad_id), temperature=config.sampling.temperature, entropy=config.entropy_coef > 0
        )
        loss, measured = policy_loss.surrogate_loss(
            scored.logprobs_BR,
            rows.logprobs_BR,
            rows.advantages_BR,
            rows.mask_BR,
            rows.weights_BR,
            clip_low=config.clip,
            clip_high=config.clip_high or config.clip,
            kind=config.surrogate,
            level=config.ratio,
            bound=config.dual_clip,
            drift_coef=config.penalty_coef,
        )
        if config.kl_loss is not None:
            loss = loss + kl_coef * kl_loss(scored.logprobs_BR, rows, config, response_weight)
        if scored.entropy_BR is not None:
            bonus = policy_loss.entropy_loss(scored.entropy_BR, rows.mask_BR, rows.weights_BR)
            loss = loss + config.entropy_coef * bonus
        loss.backward()
        loop.add_to(sums, {"loss": loss.detach(), **measured})
        error = torch.maximum(error, policy_loss.ratio_error(scored.logprobs_BR, rows.logprobs_BR, rows.mask_BR))
    return {
        "policy/loss": sums["loss"],
        "policy/clipfrac_avg": sums["clipfrac"] / tokens,
        "policy/approxkl_avg": (sums["approxkl"] + drift) / (tokens + drifted),
        "policy/ratio_error": error,
    }


@torch.no_grad()
def approxkl(batch: Experience, policy: Policy, config: SamplingStageConfig) -> tuple[Tensor, int]:
    """k3 estimate of KL(old ‖ new), nats, summed over the tokens of some episodes, and how many those are."""
    total = torch.zeros((), device=policy.backbone.device)
    for rows in batch.parts(policy.backbone, config.micro_batch_size):
        scored = policy.logprobs(rows.tokens(policy.pad_id), temperature=config.sampling.temperature)
        total = total + policy_loss.approxkl(scored.logprobs_BR, rows.logprobs_BR, rows.mask_BR)
    return total, int(batch.mask_BR.sum())


def kl_loss(
    logprobs_BR: Tensor, rows: Experience, config: SamplingStageConfig, response_weight: float | Tensor
) -> Tensor:
    """KL to the reference as a loss: k2 of whole responses, or k3 token by token, on the scale of the surrogate.

    Every response's k2 counts alike, for as much as a token of the surrogate does on average: weighed by 1/|y|, as the
    surrogate may be, its gradient would not be that of the KL. A trajectory's ratio stands at each of its tokens: its
    gradient counts |y| times over, and so must the KL.
    """
    if config.kl_loss == "k2":
        return response_weight * sequence_k2(logprobs_BR, rows.reference_BR, rows.mask_BR).sum()
    weights_BR = rows.weights_BR
    if config.ratio == "trajectory":
        weights_BR = weights_BR * rows.mask_BR.sum(dim=1, keepdim=True)
    return (weights_BR * token_k3(logprobs_BR, rows.reference_BR, rows.mask_BR)).sum()
