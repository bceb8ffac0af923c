"""Losses that turn preferences into a scalar reward: Bradley–Terry pairs and K-way rankings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.algorithms.masked import zero_pads


def bradley_terry(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    margin: float | Tensor = 0.0,
    centring: float = 0.0,
    smoothing: float = 0.0,
    total: int | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood that the chosen response beats the rejected one by more than a margin.

        L = 1/total · Σ_p [ softplus(−z_p) + ε·z_p + λ·(r_c + r_r)²_p ],    z = r_c − r_r − m

    With label smoothing (ε) a label counts as right with chance 1 − ε: softplus(−z) + ε·z is the cross-entropy
    (1 − ε)·softplus(−z) + ε·softplus(z), whose optimum is z = logit(1 − ε) instead of infinity.
    The centring term (λ) ties down the free constant of the scores; without it L depends on r_c − r_r only.
    Shapes: [P], [P], margin scalar or [P] (graded preferences), in reward units → scalar.
    `total` is the number of pairs of the whole optimizer step; this batch's if left out.
    Metrics, as shares of `total`: accuracy (ties count ½), ties, reward_gap, chosen_mean, rejected_mean.
    Source: Bradley–Terry in InstructGPT (arXiv 2203.02155), eq. 1; margin, Llama 2 (arXiv 2307.09288), eq. 2;
    centring, Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2; label smoothing, Szegedy et al. 2015 (arXiv 1512.00567),
    sec. 7.
    """
    gap_P = chosen_P - rejected_P
    loss_P = _pair_loss(gap_P - margin, chosen_P + rejected_P, centring, smoothing)
    total = gap_P.numel() if total is None else total
    with torch.no_grad():
        metrics = {
            "accuracy": wins(gap_P).sum() / total,
            "ties": (gap_P == 0).to(gap_P.dtype).sum() / total,
            "reward_gap": gap_P.sum() / total,
            "chosen_mean": chosen_P.sum() / total,
            "rejected_mean": rejected_P.sum() / total,
        }
    return loss_P.sum() / total, metrics


def ranking_loss(
    scores_PK: Tensor,
    mask_PK: Tensor,
    *,
    margin: float | Tensor = 0.0,
    centring: float = 0.0,
    smoothing: float = 0.0,
    weight_P: Tensor | None = None,
    total: int | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley–Terry over all pairs of a ranking, each prompt weighted once however many responses it has.

        L = 1/total · Σ_p w_p/C(K_p, 2) · Σ_{i<j} [ softplus(−z) + ε·z + λ·(s_i + s_j)² ],    z = s_i − s_j − m_p

    Column i is the response ranked i-th, best first; `mask_PK` is True where a prompt has such a response, so
    rankings of different length share a batch. All pairs of a prompt stay in one batch: split, they overfit.
    With K = 2 this is `bradley_terry`. A ranking of one response has no pair: it adds nothing and is not counted.
    Shapes: [P, K], [P, K], margin scalar or [P], weights [P] (1 if left out; how often a bootstrap sample drew it)
    → scalar. `total` is the weight of all rankings of the whole optimizer step; of this batch's rankings with a pair
    if left out. Metrics, as shares of `total`: accuracy (mean over prompts, ties count ½), ties.
    Source: InstructGPT (arXiv 2203.02155), eq. 1; the other terms as in `bradley_terry`.
    """
    scores_PK = zero_pads(scores_PK, mask_PK)
    better_Q, worse_Q = torch.triu_indices(scores_PK.shape[1], scores_PK.shape[1], offset=1, device=scores_PK.device)
    pairs_PQ = mask_PK[:, better_Q] & mask_PK[:, worse_Q]
    gap_PQ = scores_PK[:, better_Q] - scores_PK[:, worse_Q]
    sum_PQ = scores_PK[:, better_Q] + scores_PK[:, worse_Q]
    margin_PQ = margin[:, None] if isinstance(margin, Tensor) else margin
    loss_PQ = _pair_loss(gap_PQ - margin_PQ, sum_PQ, centring, smoothing)

    count_P = pairs_PQ.sum(dim=1)
    weight_P = torch.ones_like(scores_PK[:, 0]) if weight_P is None else weight_P
    total = zero_pads(weight_P, count_P > 0).sum() if total is None else total

    def mean(x_PQ: Tensor) -> Tensor:
        return (weight_P * zero_pads(x_PQ, pairs_PQ).sum(dim=1) / count_P.clamp(min=1)).sum() / total

    with torch.no_grad():
        metrics = {"accuracy": mean(wins(gap_PQ)), "ties": mean((gap_PQ == 0).to(gap_PQ.dtype))}
    return mean(loss_PQ), metrics


def _pair_loss(logit: Tensor, both: Tensor, centring: float, smoothing: float) -> Tensor:
    """softplus(−z) + ε·z + λ·(s + s′)², pair by pair."""
    return -F.logsigmoid(logit) + smoothing * logit + centring * both.square()


def wins(gap: Tensor) -> Tensor:
    """1 where the gap is positive, ½ at a tie, 0 where it is negative. Shapes: any, elementwise."""
    return 0.5 + 0.5 * gap.sign()
