"""Best-of-n: what it samples, how far that is from the policy, and what to expect of it.

    π_n(y) = F(y)^n − F⁻(y)^n        F(y) = P(score ≤ score(y)),   F⁻(y) = P(score < score(y))

Outcomes of equal score share this mass as π shares theirs: which of them is kept is chance. Shapes: `Y` outcomes of an
enumerated space; `K` answers to each of P prompts, in any order. Results are float64.
Source: Beirami et al. 2024 (arXiv 2401.01879), lemma 2.1 and theorem 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-300
"""Stands for a probability of 0 under a logarithm; its term is then multiplied by 0."""


def log_ratio(probs_Y: Tensor, scores_Y: Tensor, n: int) -> Tensor:
    """log π_n(y) − log π(y), exactly. Shapes: [Y], [Y] → [Y], nats."""
    _, class_Y = scores_Y.unique(return_inverse=True)
    mass_Y = torch.zeros_like(probs_Y, dtype=torch.float64).index_add_(0, class_Y, probs_Y.double())
    cdf_Y = mass_Y.cumsum(0).clamp(TINY, 1)
    share_Y = (mass_Y / cdf_Y).clamp(TINY, 1)
    # F^n − F⁻^n = F^n·(1 − (1 − q)^n) with q = P(class) / F: no difference of two nearly equal numbers.
    log_ratio_of_class_Y = (n - 1) * cdf_Y.log() + (_escape(share_Y, n) / share_Y).log()
    return log_ratio_of_class_Y[class_Y]


def best_of_n(probs_Y: Tensor, scores_Y: Tensor, n: int) -> Tensor:
    """π_n(y): the distribution of the best of n independent samples of π, exactly. Shapes: [Y], [Y] → [Y]."""
    return probs_Y.double() * log_ratio(probs_Y, scores_Y, n).exp()


def best_of_n_kl(probs_Y: Tensor, scores_Y: Tensor, n: int) -> Tensor:
    """KL(π_n ‖ π) exactly, nats. Shapes: [Y], [Y] → scalar."""
    ratio_Y = log_ratio(probs_Y, scores_Y, n)
    return (probs_Y.double() * ratio_Y.exp() * ratio_Y).sum()


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n ≥ KL(π_n ‖ π), nats; nearly equal where no single answer is likely."""
    return math.log(n) - (n - 1) / n


def expected_best_of_n(scores_PK: Tensor, values_PK: Tensor, n: int) -> Tensor:
    """Unbiased estimate of E[value of the best of n], from K ≥ n answers to each prompt.

        Σ_i C(i − 1, n − 1) / C(K, n) · value_(i)        value_(i): of the answer whose score is i-th from below

    The mean over all subsets of n: the best of the first n alone would waste the others. With `values_PK` the scores
    themselves it is the expected best score; with the truth, what best-of-n by a proxy is really worth.
    Shapes: [P, K], [P, K] → [P]. ValueError when n > K. Source: WebGPT (arXiv 2112.09332), appendix I.
    """
    samples = scores_PK.shape[1]
    if n > samples:
        raise ValueError(f"the best of {n} cannot be estimated from {samples} answers to a prompt")
    weights_K = torch.tensor(
        [math.comb(below, n - 1) / math.comb(samples, n) for below in range(samples)],
        dtype=torch.float64,
        device=scores_PK.device,
    )
    ascending_PK = scores_PK.argsort(dim=1, stable=True)
    return values_PK.double().gather(1, ascending_PK) @ weights_K


def sampled_kl(scores_PK: Tensor, logprobs_PK: Tensor, n: int) -> Tensor:
    """Estimate of KL(π_n ‖ π) for each prompt, nats, from K ≥ n answers and their own log-probabilities.

        KL = log n − (n − 1)/n − E_{y ~ π_n}[slack(q_y)],        q = π(y) / F(y)

    The slack of an answer is what the bound loses because the answer is an atom and not a point of a continuum
    (`_slack`). The expectation is `expected_best_of_n`; F⁻ is the share of the other answers that score less, and this
    share, right on average but inside a curved function, is the only source of bias. No estimate from finitely many
    samples is unbiased: a KL is no polynomial of the probabilities. Where every answer is unlikely, as in long text,
    the slack is nearly 0 and so are bias and variance. Distinct answers are taken to have distinct scores.
    Shapes: scores and log-probabilities of whole answers [P, K] → [P].
    """
    others = max(scores_PK.shape[1] - 1, 1)
    below_PK = (scores_PK[:, None, :] < scores_PK[:, :, None]).double().sum(2) / others
    probs_PK = logprobs_PK.double().exp()
    share_PK = (probs_PK / (below_PK + probs_PK).clamp(TINY, 1)).clamp(TINY, 1)
    return kl_bound(n) - expected_best_of_n(scores_PK, _slack(share_PK, n), n)


def rejection_sampling(probs_Y: Tensor, accept_Y: Tensor) -> tuple[Tensor, Tensor]:
    """What is accepted of samples of π with probability a(y), and its KL from π, exactly.

        π_a(y) = π(y)·a(y) / Z,   Z = Σ_y π(y)·a(y)        KL(π_a ‖ π) = E_{π_a}[log a] − log Z

    A threshold (a is 0 or 1) has KL −log Z, whatever it selects; a = exp((r − max r)/β) gives the policy that maximises
    reward − β·KL (RSO, arXiv 2309.06657, sec. 3). No stage calls it: it is the exact KL that the
    other two ways to choose among samples are held against. Shapes: [Y], [Y] → [Y], scalar in nats.
    """
    accepted_Y = probs_Y.double() * accept_Y.double()
    rate = accepted_Y.sum()
    accepted_Y = accepted_Y / rate
    return accepted_Y, torch.xlogy(accepted_Y, accept_Y.double().clamp_min(TINY)).sum() - rate.log()


def _escape(share: Tensor, n: int) -> Tensor:
    """1 − (1 − q)^n without cancellation."""
    return -torch.expm1(n * torch.log1p(-share))


def _slack(share: Tensor, n: int) -> Tensor:
    """KL of the density n·u^{n−1} from uniform, both within one atom's interval [F⁻, F] of quantiles; q = 1 − F⁻/F.

        log n + (n − 1)/n·(x/(eˣ − 1) − 1) − log((1 − e⁻ˣ)/q),   x = −n·log(1 − q);     0 at q → 0, the bound at q = 1

    Elementwise. From ∫ n·u^{n−1}·log u du = u^n·(log u − 1/n).
    """
    x = (-n * torch.log1p(-share)).clamp(max=700)  # e^700 still fits float64
    return math.log(n) + (n - 1) / n * (x / torch.expm1(x) - 1) - (_escape(share, n) / share).log()
