"""Several opinions of one response become one reward: the mean, the worst, or the mean less their disagreement."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregate = Literal["mean", "worst", "uncertainty"]


def aggregate(scores_BM: Tensor, how: Aggregate, *, penalty: float = 1.0) -> Tensor:
    """The reward of each response from the scores of M members.

        mean: 1/M Σ_m s_m        worst: min_m s_m        uncertainty: mean − λ·σ,   σ² = 1/M Σ_m (s_m − mean)²

    The members' scores must share an origin: what is worst depends on it, though each member's own differences do not.
    σ stands where the source has σ², so that λ (`penalty`) has no unit. Shapes: [B, M] → [B].
    Source: Coste et al. 2023 (arXiv 2310.02743), eq. 3 to 5.
    """
    if how == "worst":
        return scores_BM.amin(dim=1)
    mean_B = scores_BM.mean(dim=1)
    return mean_B if how == "mean" else mean_B - penalty * disagreement(scores_BM)


def disagreement(scores_BM: Tensor) -> Tensor:
    """σ over the members, population form, so that it is 0 where they agree. Shapes: [B, M] → [B]."""
    return scores_BM.std(dim=1, correction=0)
