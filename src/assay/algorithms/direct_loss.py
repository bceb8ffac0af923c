"""Losses that turn preferences into a policy directly: DPO and its family. (Scalar rewards: preference_loss.py.)

They compose: a *link* turns log-ratios into rewards, a *loss* judges the difference h of two rewards.

    x = log π(y|x) − log π_ref(y|x)  →  r = link(x)  →  h = r(chosen) − r(rejected)  →  loss(h) + nll_weight·NLL

    log-ratio   summed or per token, against a reference or without one (`sequence_log_ratio`)
    link        an f-divergence's (`reverse_kl`, `forward_kl`, `jensen_shannon`, `alpha_divergence`), or `log_odds`
    loss        `logistic`, `robust`, `squared`, `hinge`

KTO needs no pairs: `kto_loss` judges every answer on its own. Rewards and h are in nats, β·h in units of reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.algorithms.masked import masked_sum, zero_pads
from assay.algorithms.policy_loss import MAX_LOG_RATIO
from assay.algorithms.preference_loss import wins

Link = Callable[[Tensor], Tensor]
"""Log-ratios to rewards up to β, elementwise; 0 at 0, so a policy that equals its reference has reward 0."""

PairLoss = Callable[[Tensor], Tensor]
"""Differences of rewards h to losses, elementwise."""


def sequence_log_ratio(
    logprobs_BT: Tensor, mask_BT: Tensor, reference_B: Tensor | float = 0.0, *, length_normalised: bool = False
) -> Tensor:
    """x = Σ_t m_t·log π_t − log π_ref, divided by Σ m_t where `length_normalised`.

    `reference_B` is the *summed* log-probability under the reference, a constant; 0 where the method has none.
    Shapes: [B, T], [B, T], [B] → [B], nats (per token where normalised).
    Source: DPO (arXiv 2305.18290), eq. 7 sums; Tülu 3 (arXiv 2411.15124), sec. 5.1, and SimPO (2405.14734), eq. 4,
    divide by the length.
    """
    ratio_B = zero_pads(logprobs_BT, mask_BT).sum(dim=1) - reference_B
    return ratio_B / mask_BT.sum(dim=1) if length_normalised else ratio_B


def reverse_kl(x: Tensor) -> Tensor:
    """r = x: the link of KL(π‖π_ref), which makes DPO. Source: DPO (arXiv 2305.18290), eq. 5."""
    return x


def forward_kl(x: Tensor) -> Tensor:
    """r = 1 − e^{−x}: f′(u) = −1/u of KL(π_ref‖π), plus the constant that makes r(0) = 0.

    Source: f-DPO (arXiv 2309.16240), table 1.
    """
    return -torch.expm1(-x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def alpha_divergence(x: Tensor, *, alpha: float) -> Tensor:
    """r = (1 − e^{−αx})/α, 0 < α < 1: between `reverse_kl` (α → 0) and `forward_kl` (α → 1).

    Source: f-DPO (arXiv 2309.16240), table 1.
    """
    return forward_kl(alpha * x) / alpha


def jensen_shannon(x: Tensor) -> Tensor:
    """r = log(2u/(1 + u)), u = e^x: bounded above by log 2, so no answer pays for ever.

    Source: f-DPO (arXiv 2309.16240), table 1.
    """
    return math.log(2) + F.logsigmoid(x)


def log_odds(x: Tensor) -> Tensor:
    """log(p/(1 − p)), p = e^x < 1 the probability per token; finite, with its gradient, as p → 1.

    Source: ORPO (arXiv 2403.07691), eq. 4.
    """
    return x - log1mexp(x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0 without cancellation at either end; x ≥ 0 is read as the largest number below 0.

    Source: Mächler, "Accurately computing log(1 − exp(−|a|))" (2012), eq. 7.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)  # each branch sees only arguments where its own derivative is finite
    return torch.where(
        near, torch.log(-torch.expm1(x.where(near, -1.0))), torch.log1p(-torch.exp(x.where(~near, -1.0)))
    )


def logistic(h: Tensor, *, beta: float, margin: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """−(1 − ε)·log σ(z) − ε·log σ(−z),   z = β·h − margin.

    ε = `smoothing` is the probability that a label is wrong: 0 is DPO (arXiv 2305.18290, eq. 7), more is cDPO
    (Mitchell 2023), whose optimum is z = logit(1 − ε) instead of infinity. A margin is SimPO's (2405.14734, eq. 6).
    ∂/∂h = −β·(σ(−z) − ε). Shapes: any, elementwise.
    """
    z = beta * h - margin
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def robust(h: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """(−(1 − ε)·log σ(βh) + ε·log σ(−βh))/(1 − 2ε): under labels flipped with probability ε < ½ it is DPO on average.

    Shapes: any, elementwise. Source: robust DPO (Chowdhury et al. 2024, arXiv 2403.00409), sec. 3.
    """
    right, flipped = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    return ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)


def squared(h: Tensor, *, beta: float) -> Tensor:
    """(h − 1/(2β))²: h has a finite target, whatever the labels. Shapes: any, elementwise.

    Source: IPO (arXiv 2310.12036), eq. 17, on *summed* log-ratios; some libraries average over tokens instead.
    """
    return (h - 1 / (2 * beta)).square()


def hinge(h: Tensor, *, beta: float, margin: float = 0.0) -> Tensor:
    """max(0, 1 + margin − β·h): no gradient once a pair is well apart. Shapes: any, elementwise.

    Source: SLiC-HF (arXiv 2305.10425) without a reference; RSO (arXiv 2309.06657), "hinge-norm", with one.
    """
    return F.relu(1 + margin - beta * h)


def pair_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    link: Link,
    loss: PairLoss,
    beta: float,
    total: int | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """1/total · Σ_p loss(link(x_chosen) − link(x_rejected)).

    Shapes: log-ratios [P], [P] → scalar. `total` is the number of pairs of the whole optimizer step. Metrics, as
    shares of `total`: accuracy (ties count ½), and in units of reward chosen_reward, rejected_reward, reward_margin.
    Source: f-DPO (arXiv 2309.16240), theorem 1.
    """
    good_P, bad_P = link(chosen_P), link(rejected_P)
    h_P = good_P - bad_P
    with torch.no_grad():
        metrics = {
            "accuracy": wins(h_P).sum() / total,
            "reward_margin": beta * h_P.sum() / total,
            "chosen_reward": beta * good_P.sum() / total,
            "rejected_reward": beta * bad_P.sum() / total,
        }
    return loss(h_P).sum() / total, metrics


def kto_loss(
    log_ratio_B: Tensor,
    good_B: Tensor,
    *,
    baseline: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    total: int | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """1/total · Σ_b w_b·(1 − σ(±β·(x_b − z₀))), + and `desirable_weight` for a good answer, − and 1 for a bad one.

    `baseline` is z₀ (`kto_baseline`): gains and losses are felt against what the policy does anyway.
    Shapes: [B], good_B [B] bool → scalar. `total` is the number of answers of the whole optimizer step. Metrics, as
    shares of `total`: accuracy (good above z₀, bad below; ties ½), and reward_margin, the mean of ±β·(x − z₀).
    Source: KTO (arXiv 2402.01306), sec. 4.1.
    """
    good_B = good_B.to(log_ratio_B.dtype)
    gain_B = (2 * good_B - 1) * (log_ratio_B - baseline)
    weight_B = 1 + (desirable_weight - 1) * good_B
    with torch.no_grad():
        metrics = {
            "accuracy": wins(gain_B).sum() / total,
            "reward_margin": beta * gain_B.sum() / total,
        }
    return (weight_B * torch.sigmoid(-beta * gain_B)).sum() / total, metrics


@torch.no_grad()
def kto_baseline(mismatched_B: Tensor) -> Tensor:
    """z₀ = max(0, mean log-ratio of answers to *other* prompts): a shared estimate of KL(π‖π_ref), without gradient.

    Shapes: [B] → scalar; over the whole optimizer step, so that micro-batches share it.
    Source: KTO (arXiv 2402.01306), sec. 4.1.
    """
    return mismatched_B.mean().clamp(min=0)


def response_nll(logprobs_BT: Tensor, mask_BT: Tensor, *, total: int | Tensor) -> Tensor:
    """1/total · Σ_b −log π(y_b)/|y_b|: the term that keeps chosen answers likely, each answer weighing once.

    Shapes: [B, T], [B, T] → scalar. `total` is the number of answers of the whole optimizer step.
    Source: iterative RPO (arXiv 2404.19733), eq. 1; ORPO (arXiv 2403.07691), eq. 6.
    """
    return masked_sum(-logprobs_BT / mask_BT.sum(dim=1, keepdim=True), mask_BT) / total
