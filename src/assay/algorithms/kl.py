"""Estimators of KL(π‖q) from samples of π, and controllers of its weight.

All estimators take log π and log q of tokens sampled from π. On average over samples k1 and k3 equal the KL; k2 does
not. As a *loss*, differentiated through log π on one step: ∇k1 is 0 on average, ∇k2 is ∇KL(π‖q), ∇k3 is ∇KL(q‖π).
PPO puts k1 in the reward, where its gradient is right on sequences too (arXiv 2506.09477).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.algorithms.masked import zero_pads


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log π − log q, per token, in nats: unbiased, of either sign, high variance.

    Shapes: any, elementwise. Source: Schulman, "Approximating KL divergence" (2020).
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """½·(log π − log q)², per token: biased, never negative, low variance.

    Shapes: any, elementwise. Source: Schulman, "Approximating KL divergence" (2020).
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """q/π − 1 − log(q/π), per token: unbiased, never negative, low variance while q and π are close.

    Shapes: any, elementwise. Source: Schulman, "Approximating KL divergence" (2020).
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def sequence_kl(kl_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Σ_t m_t·kl_t, the KL of each whole response in nats: the unit of an adaptive controller's target.

    Shapes: [B, T] → [B].
    """
    return zero_pads(kl_BT, mask_BT).sum(dim=1)


def token_k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """k3 of every counted token, 0 elsewhere: the KL loss of GRPO as it was published.

    Shapes: [B, T] → [B, T]. Source: Shao et al. 2024 (arXiv 2402.03300), eq. 4.
    """
    return k3(zero_pads(logprobs_BT, mask_BT), zero_pads(ref_logprobs_BT, mask_BT))


def sequence_k2(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """½·(Σ_t m_t·(log π_t − log q_t))², the KL loss whose gradient on sequences is that of KL(π‖q).

    Token by token k2 and k3 are wrong as losses of sequences: they forget that a token decides what comes after it.
    Shapes: [B, T] → [B]. Source: arXiv 2506.09477; Schulman, "Approximating KL divergence" (2020).
    """
    return 0.5 * sequence_kl(k1(logprobs_BT, ref_logprobs_BT), mask_BT).square()


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A KL weight β that stays. `dataclasses.asdict` is its state as JSON; `FixedKL(**state)` restores it."""

    coef: float

    def update(self, kl: float, n: int) -> FixedKL:
        """Itself, whatever was observed."""
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A KL weight β that steers the KL per response towards `target`.

        β ← β · (1 + clip(KL / target − 1, −clip, clip) · n / horizon)

    Fields: `coef` β; `target` nats per response; `horizon` episodes; `clip` the largest relative error acted on.
    `dataclasses.asdict` is its state as JSON; `AdaptiveKL(**state)` restores it.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), sec. 2.2.
    """

    coef: float
    target: float
    horizon: float
    clip: float = 0.2

    def __post_init__(self) -> None:
        if not (self.coef >= 0 and self.target > 0 and self.horizon > 0 and self.clip > 0):
            raise ValueError(f"AdaptiveKL needs coef >= 0 and target, horizon, clip > 0; got {self}")

    def update(self, kl: float, n: int) -> AdaptiveKL:
        """The controller after n episodes whose KL, summed per response, was `kl` nats on average.

        Raises `ValueError` on a KL that is not finite: a weight made of it would poison every later reward.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the KL per response is {kl}; the adaptive weight cannot follow it")
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        return dataclasses.replace(self, coef=self.coef * (1 + error * n / self.horizon))


@dataclass(frozen=True, slots=True)
class ScheduledKL:
    """A KL weight β that goes from `coef` to `final` in equal steps, one for each of `steps` updates; then it stays."""

    coef: float
    final: float
    steps: int

    def update(self, kl: float, n: int) -> ScheduledKL:
        """The weight after one more iteration, whatever was observed."""
        if self.steps <= 0:
            return self
        moved = self.coef + (self.final - self.coef) / self.steps
        return ScheduledKL(moved, self.final, self.steps - 1)
