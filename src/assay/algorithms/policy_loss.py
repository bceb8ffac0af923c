"""Policy losses, per token, by composition: ratio level × surrogate × aggregation.

    log_ratio → token | sequence | trajectory level → surrogate → Σ weights·loss

Every method of the policy-gradient family is a choice of each (docs/concepts.md lists them). Aggregation is a weight
for each token, computed once over the rows of a whole optimizer step: its micro-batches then simply add up.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from assay.algorithms.kl import k3
from assay.algorithms.masked import masked_mean, zero_pads

RatioLevel = Literal["token", "sequence", "trajectory"]
Surrogate = Literal["clip", "plain", "cispo", "penalty"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]

MAX_LOG_RATIO = 20.0
"""e^20 ≈ 5e8: no sane update gets here, and beyond it float32 would soon overflow to inf and then NaN."""


def log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log π_t − log π_old,t, and 0 where the token does not count (there the ratio is 1).

    Shapes: [B, T] → [B, T]. The gradient flows through `logprobs_BT` at counted tokens only.
    """
    return zero_pads(logprobs_BT, mask_BT) - zero_pads(old_logprobs_BT, mask_BT)


def clipped_surrogate(log_ratio_BT: Tensor, advantages_BT: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Pessimistic clipped policy loss, per token.

    L_t = max(−A_t·ρ_t, −A_t·clip(ρ_t, 1 − clip_low, 1 + clip_high)),   ρ_t = exp(log_ratio_t)

    The gradient vanishes exactly where A > 0 and ρ > 1 + clip_high, or A < 0 and ρ < 1 − clip_low
    (and beyond |log ρ| = MAX_LOG_RATIO, where ρ saturates).
    Shapes: [B, T] → [B, T]; no reduction, so any aggregation applies.
    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; asymmetric bounds, DAPO (arXiv 2503.14476), eq. 8.
    """
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)


def at_level(log_ratio_BT: Tensor, mask_BT: Tensor, level: RatioLevel) -> Tensor:
    """The log-ratio that each token is weighted by.

        token        log ρ_t                          PPO, GRPO
        sequence     (1/|y|)·Σ_s log ρ_s              GSPO: the geometric mean, one number for all tokens of a row
        trajectory   Σ_s log ρ_s                      RLOO: the likelihood ratio of the whole response

    Shapes: [B, T] → [B, T], 0 where a token does not count. The gradient flows through every counted token of a row.
    Source: GSPO, Zheng et al. 2025 (arXiv 2507.18071), eq. 7; RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), sec. 3.
    """
    if level == "token":
        return log_ratio_BT
    summed_B = zero_pads(log_ratio_BT, mask_BT).sum(dim=1, keepdim=True)
    lengths_B = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return zero_pads((summed_B / lengths_B if level == "sequence" else summed_B).expand_as(log_ratio_BT), mask_BT)


def plain_surrogate(log_ratio_BT: Tensor, advantages_BT: Tensor) -> Tensor:
    """−A_t·ρ_t: the policy gradient itself, importance-weighted; REINFORCE where ρ = 1.

    Shapes: [B, T] → [B, T]. Source: Williams 1992; Kakade & Langford 2002.
    """
    return -advantages_BT * log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def dual_clip(loss_BT: Tensor, advantages_BT: Tensor, *, bound: float) -> Tensor:
    """A loss kept below −bound·A where A < 0: a bad token that became far likelier cannot dominate the step.

    Shapes: [B, T] → [B, T]; bound > 1. Source: Ye et al. 2020 (arXiv 1912.09729), eq. 5.
    """
    return torch.where(advantages_BT < 0, torch.minimum(loss_BT, -bound * advantages_BT), loss_BT)


def cispo_surrogate(
    log_ratio_BT: Tensor, logprobs_BT: Tensor, advantages_BT: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """−sg(clip(ρ_t, 1 − clip_low, 1 + clip_high))·A_t·log π_t: the weight is clipped, no token loses its gradient.

    Shapes: [B, T] → [B, T]. Source: MiniMax-M1 (arXiv 2506.13585), eq. 4–5.
    """
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return -ratio_BT.clamp(1 - clip_low, 1 + clip_high).detach() * advantages_BT * logprobs_BT


def penalised_surrogate(log_ratio_BT: Tensor, advantages_BT: Tensor, *, drift_coef: float) -> Tensor:
    """−A_t·ρ_t + drift_coef·KL(π_old‖π): the old policy holds the step back instead of a clip.

    The KL is estimated by k3 of tokens that π_old sampled, whose gradient is exact on average.
    Shapes: [B, T] → [B, T]. Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 8.
    """
    drift_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return plain_surrogate(log_ratio_BT, advantages_BT) + drift_coef * k3(torch.zeros_like(drift_BT), drift_BT)


def token_mean(loss_BT: Tensor, mask_BT: Tensor, *, total: int | Tensor) -> Tensor:
    """Sum over counted tokens, divided by `total`.

    `total` is the number of counted tokens of the whole optimizer step, over all micro-batches and ranks: splitting
    a batch then cannot change its gradient.
    Shapes: [B, T], [B, T] → scalar. Source: DAPO (arXiv 2503.14476), eq. 12.
    """
    return masked_mean(loss_BT, mask_BT, total=total)


def aggregation_weights(mask_BT: Tensor, how: Aggregation, *, max_tokens: int) -> Tensor:
    """The weight of every token in the loss of one optimizer step, 0 where a token does not count.

        token_mean      1 / Σ_i |y_i|          every token alike; a long response counts for more (DAPO, eq. 12)
        sequence_mean   1 / (B·|y_i|)          every response alike; a token of a long one counts for less (GRPO)
        constant        1 / (B·max_tokens)     neither: the gradient of Σ_t, up to a constant (Dr.GRPO)

    B counts the rows that have a counted token. Call it on the whole step's rows, then slice: micro-batches add up.
    Shapes: [B, T] → [B, T]. Source: Liu et al. 2025 (arXiv 2503.20783), sec. 3; DAPO (arXiv 2503.14476), sec. 3.3.
    """
    counted_BT = mask_BT.float()
    lengths_B = counted_BT.sum(dim=1, keepdim=True)
    rows = (lengths_B > 0).sum()
    match how:
        case "token_mean":
            return counted_BT / lengths_B.sum()
        case "sequence_mean":
            return counted_BT / lengths_B.clamp(min=1) / rows
        case "constant":
            return counted_BT / (rows * max_tokens)


def importance_weights(old_logprobs_BT: Tensor, sampled_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """min(π_old,t / π_sampler,t, cap), detached: what a sampler that differs from the trainer owes each token.

    Shapes: [B, T] → [B, T], 1 where a token does not count. Multiply the advantages by it: KL and entropy then keep
    their weight.
    Source: truncated importance sampling, Ionides 2008; for samplers apart from trainers, Yao et al. 2025.
    """
    return log_ratio(old_logprobs_BT, sampled_logprobs_BT, mask_BT).detach().exp().clamp(max=cap)


def surrogate_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    weights_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kind: Surrogate = "clip",
    level: RatioLevel = "token",
    bound: float | None = None,
    drift_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ weights·surrogate, with what tells whether the step was too long.

    Shapes: [B, T] each → scalar. `weights_BT` from `aggregation_weights`; `bound` adds the dual clip.
    Metrics, summed over counted tokens (divide by their number):
        approxkl   k3 estimate of KL(π_old‖π), the KL that stops the inner epochs, nats
        clipfrac   tokens whose gradient the clip, or the dual clip, has cut; with cispo, whose weight it has cut
    """
    tokens_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    ratio_BT = at_level(tokens_BT, mask_BT, level)
    match kind:
        case "clip":
            loss_BT = clipped_surrogate(ratio_BT, advantages_BT, clip_low=clip_low, clip_high=clip_high)
        case "plain":
            loss_BT = plain_surrogate(ratio_BT, advantages_BT)
        case "cispo":
            logprobs_BT = zero_pads(logprobs_BT, mask_BT)
            loss_BT = cispo_surrogate(ratio_BT, logprobs_BT, advantages_BT, clip_low=clip_low, clip_high=clip_high)
        case "penalty":
            loss_BT = penalised_surrogate(ratio_BT, advantages_BT, drift_coef=drift_coef)
    if bound is not None:
        loss_BT = dual_clip(loss_BT, advantages_BT, bound=bound)
    with torch.no_grad():
        rho_BT = ratio_BT.exp()
        match kind:
            case "clip":
                cut_BT = clip_binds(ratio_BT, advantages_BT, clip_low=clip_low, clip_high=clip_high)
            case "cispo":
                cut_BT = (rho_BT > 1 + clip_high) | (rho_BT < 1 - clip_low)
            case _:
                cut_BT = torch.zeros_like(mask_BT)
        if bound is not None:
            cut_BT = cut_BT | ((advantages_BT < 0) & (rho_BT > bound))
        metrics = {
            "approxkl": approxkl(logprobs_BT, old_logprobs_BT, mask_BT),
            "clipfrac": (cut_BT & mask_BT).to(loss_BT.dtype).sum(),
        }
    return (weights_BT * zero_pads(loss_BT, mask_BT)).sum(), metrics


def clip_binds(log_ratio_BT: Tensor, advantages_BT: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """True where the clip cuts the gradient: A > 0 and ρ > 1 + clip_high, or A < 0 and ρ < 1 − clip_low.

    Shapes: [B, T] → [B, T] bool. A token whose ratio is outside the bounds on the *other* side is not cut.
    Source: Schulman et al. 2017 (arXiv 1707.06347), fig. 1.
    """
    ratio_BT = log_ratio_BT.exp()
    too_likely_BT = (advantages_BT > 0) & (ratio_BT > 1 + clip_high)
    too_unlikely_BT = (advantages_BT < 0) & (ratio_BT < 1 - clip_low)
    return too_likely_BT | too_unlikely_BT


@torch.no_grad()
def approxkl(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Σ over counted tokens of the k3 estimate of KL(π_old‖π), nats. Shapes: [B, T] each → scalar."""
    drift_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return zero_pads(k3(torch.zeros_like(drift_BT), drift_BT), mask_BT).sum()


@torch.no_grad()
def ratio_error(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """max |ρ_t − 1| over counted tokens: about 1e-6 before the first update in float32, or the roles disagree.

    Shapes: [B, T] → scalar. Over micro-batches take the maximum, not the sum.
    """
    return torch.expm1(log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)).abs().max()


@torch.no_grad()
def mismatch(sampled_logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """How far the sampler is from the policy that is trained, over counted tokens. Shapes: [B, T] each → scalars.

    kl         KL(π_sampler‖π_old) per token, by k3, nats
    log_ratio  max |log π_old,t − log π_sampler,t|, nats
    error      max |π_old,t / π_sampler,t − 1|
    """
    ratio_BT = log_ratio(old_logprobs_BT, sampled_logprobs_BT, mask_BT)
    return {
        "kl": masked_mean(k3(torch.zeros_like(ratio_BT), ratio_BT), mask_BT),
        "log_ratio": ratio_BT.abs().max(),
        "error": ratio_error(old_logprobs_BT, sampled_logprobs_BT, mask_BT),
    }


def clipped_value_loss(values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, *, clip: float) -> Tensor:
    """Pessimistic clipped value loss, per token.

    L_t = ½·max((V_t − R_t)², (clip(V_t, V_old,t − clip, V_old,t + clip) − R_t)²)

    The gradient vanishes where V has left the interval on the side of R: the step towards R is already long enough.
    `returns_BT` are constants fixed before the update. Shapes: [B, T] → [B, T]; no reduction.
    Source: OpenAI Baselines' PPO2; Engstrom et al. 2020 (arXiv 2005.12729), sec. 3; N+ details (arXiv 2403.17031).
    """
    clipped_BT = values_BT.clamp(old_values_BT - clip, old_values_BT + clip)
    return 0.5 * torch.maximum((values_BT - returns_BT).square(), (clipped_BT - returns_BT).square())


def ppo_value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    total: int | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token mean of the clipped value loss.

    Shapes: [B, T] each → scalar. Metrics, as shares of `total`:
        clipfrac   share of tokens where the clipped term is the larger one, so the clip decides
        error      mean squared error (V − R)², unclipped
    Source: see `clipped_value_loss`.
    """
    values_BT = zero_pads(values_BT, mask_BT)  # so that no gradient, and no NaN, reaches a pad
    loss_BT = clipped_value_loss(values_BT, old_values_BT, returns_BT, clip=clip)
    with torch.no_grad():
        error_BT = (values_BT - returns_BT).square()
        metrics = {
            "clipfrac": token_mean((2 * loss_BT > error_BT).to(loss_BT.dtype), mask_BT, total=total),
            "error": token_mean(error_BT, mask_BT, total=total),
        }
    return token_mean(loss_BT, mask_BT, total=total), metrics


def entropy_loss(entropy_BT: Tensor, mask_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """−Σ weights·entropy, nats: *add* coef × this to the loss and entropy is rewarded.

    Shapes: [B, T] (entropies from `token_logprobs(..., with_entropy=True)`) → scalar.
    Source: Mnih et al. 2016 (arXiv 1602.01783), sec. 4; Schulman et al. 2017 (arXiv 1707.06347), eq. 9.
    """
    return -(weights_BT * zero_pads(entropy_BT, mask_BT)).sum()
