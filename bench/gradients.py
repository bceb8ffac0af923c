"""Estimators of the policy gradient, exactly: their mean and variance over every pair of responses that can be drawn.

Two responses to one prompt can be drawn in 64² ways. Each way gives a gradient through the production losses at ρ = 1;
weighed by how likely the way is, their mean is compared with the true gradient of J (`tests/oracles/tree.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tests.oracles import tree as oracle
from tests.oracles.tree import RESPONSES, STATES, STEPS, TOKENS, Array, Tree
from torch import Tensor

from assay.algorithms import advantages, kl, policy_loss

GROUP = 2
ONES, OTHERS = (grid.flatten() for grid in np.meshgrid(range(len(RESPONSES)), range(len(RESPONSES)), indexing="ij"))
PAIRS = torch.from_numpy(np.stack([ONES, OTHERS], axis=1))
PATHS, CHOSEN = torch.tensor(oracle.PATHS), torch.tensor(RESPONSES)


@dataclass(frozen=True)
class Drawn:
    """Every pair of responses, [B, T] with B = 2·64²: first and second of a pair are neighbours."""

    logprobs_BT: Tensor
    reference_BT: Tensor
    sampler_BT: Tensor
    """Under the policy that drew them: the trained one, or another."""
    scores_NG: Tensor
    values_BT: Tensor
    """Soft values of the reference: some critic, not the policy's own."""
    beta: float

    @property
    def mask_BT(self) -> Tensor:
        return torch.ones_like(self.logprobs_BT, dtype=torch.bool)

    @property
    def worth_NG(self) -> Tensor:
        """Scores less β·KL of the response: the reward where the KL is part of it."""
        kl_B = kl.sequence_kl(kl.k1(self.logprobs_BT, self.reference_BT), self.mask_BT).detach()
        return self.scores_NG - self.beta * kl_B.view(-1, GROUP)

    @property
    def weights_BT(self) -> Tensor:
        """1/G for every token of a pair."""
        pair = policy_loss.aggregation_weights(self.mask_BT[:GROUP], "constant", max_tokens=1)
        return pair.double().repeat(len(self.logprobs_BT) // GROUP, 1)


Loss = Callable[[Drawn], Tensor]
"""Loss of all pairs, summed: what a pair adds depends on that pair alone."""


@dataclass(frozen=True)
class Estimator:
    """A way to estimate ∇J from two responses."""

    name: str
    loss: Loss
    exact: bool
    """Whether it is right on average."""
    foreign: bool = False
    """Whether another policy draws the responses."""


@dataclass(frozen=True)
class Moments:
    """Mean of an estimator, beside the true gradient; variance per response, relative to the gradient's square."""

    mean: Array
    true: Array
    variance: float

    @property
    def bias(self) -> float:
        """‖E[g] − ∇J‖ / ‖∇J‖."""
        return float(np.linalg.norm(self.mean - self.true) / np.linalg.norm(self.true))

    @property
    def cosine(self) -> float:
        """1 where only the length is wrong."""
        return float((self.mean * self.true).sum() / np.linalg.norm(self.mean) / np.linalg.norm(self.true))


def moments(estimator: Estimator, tree: Tree, policy: Array, sampler: Array | None = None) -> Moments:
    """Mean and variance over every pair; `sampler` draws for estimators that allow it."""
    source = policy if sampler is None or not estimator.foreign else sampler
    drawn = every_pair(tree, policy, source)
    (coefficients_BT,) = torch.autograd.grad(estimator.loss(drawn), drawn.logprobs_BT)
    by_token = np.zeros((len(RESPONSES), STEPS, len(STATES) * TOKENS))  # ∂log π_t/∂logits of each response
    for y in range(len(RESPONSES)):
        for t, (state, token) in enumerate(zip(oracle.PATHS[y], RESPONSES[y], strict=True)):
            slope = np.zeros_like(policy)
            slope[state] = -policy[state]
            slope[state, token] += 1
            by_token[y, t] = slope.flatten()
    estimates = np.zeros((len(PAIRS), len(STATES) * TOKENS))
    for place, responses in enumerate((ONES, OTHERS)):
        coefficients = coefficients_BT.view(-1, GROUP, STEPS)[:, place].numpy()
        estimates -= np.einsum("bt,btd->bd", coefficients, by_token[responses])
    chances = oracle.responses(source)
    likely = chances[ONES] * chances[OTHERS]
    mean, true = likely @ estimates, oracle.gradient(tree, policy).flatten()
    variance = float(likely @ ((estimates - mean) ** 2).sum(axis=1))
    return Moments(mean, true, GROUP * variance / float((true**2).sum()))


def every_pair(tree: Tree, policy: Array, sampler: Array) -> Drawn:
    """All pairs as one batch."""

    def logprobs(table: Array) -> Tensor:
        return torch.from_numpy(table).log()[PATHS, CHOSEN][PAIRS.flatten()]

    values = oracle.soft_values(tree)
    value_S = torch.tensor([values[said] for said in STATES], dtype=torch.float64)
    return Drawn(
        logprobs(policy).requires_grad_(),
        logprobs(tree.reference),
        logprobs(sampler),
        torch.from_numpy(tree.scores)[PAIRS],
        value_S[PATHS[PAIRS.flatten()]],
        tree.beta,
    )


def climbing(drawn: Drawn, advantages_NG: Tensor, weights_BT: Tensor | None = None) -> Tensor:
    """The surrogate at ρ = 1 with one advantage a response."""
    advantages_BT = advantages_NG.flatten()[:, None].expand_as(drawn.logprobs_BT)
    return surrogate(drawn, advantages_BT, drawn.weights_BT if weights_BT is None else weights_BT)


def surrogate(drawn: Drawn, advantages_BT: Tensor, weights_BT: Tensor) -> Tensor:
    loss, _ = policy_loss.surrogate_loss(
        drawn.logprobs_BT,
        drawn.logprobs_BT.detach(),
        advantages_BT,
        drawn.mask_BT,
        weights_BT,
        clip_low=0.2,
        clip_high=0.2,
    )
    return loss


def greedy(drawn: Drawn) -> Tensor:
    """Score less that of one response fixed in advance, as ReMax has it."""
    return climbing(drawn, drawn.worth_NG - drawn.scores_NG[-1, -1])


def with_critic(drawn: Drawn, *, lam: float) -> Tensor:
    """PPO before its first update: rewards and KL token by token, GAE over a critic."""
    rewards_BT = advantages.shaped_rewards(
        drawn.scores_NG.flatten(),
        kl.k1(drawn.logprobs_BT, drawn.reference_BT).detach(),
        drawn.mask_BT,
        coef=drawn.beta,
    )
    advantages_BT, _ = advantages.gae(rewards_BT, drawn.values_BT, drawn.mask_BT, gamma=1.0, lam=lam)
    return surrogate(drawn, advantages_BT, drawn.weights_BT)


def kl_in_loss(drawn: Drawn, penalty: Callable[[Drawn], Tensor]) -> Tensor:
    """Leave-one-out over scores alone, and a KL term [B, T] or [B] beside it."""
    return climbing(drawn, advantages.leave_one_out(drawn.scores_NG)) + drawn.beta * penalty(drawn).sum() / GROUP


def by_token(drawn: Drawn, estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return estimator(drawn.logprobs_BT, drawn.reference_BT)


def sequence_k2(drawn: Drawn) -> Tensor:
    return kl.sequence_k2(drawn.logprobs_BT, drawn.reference_BT, drawn.mask_BT)


def imported(drawn: Drawn, *, cap: float) -> Tensor:
    """Each token weighed by its own ratio to the sampler, at most `cap`."""
    ratio_BT = policy_loss.importance_weights(drawn.logprobs_BT, drawn.sampler_BT, drawn.mask_BT, cap=cap)
    return climbing(drawn, drawn.worth_NG, drawn.weights_BT * ratio_BT)


def imported_whole(drawn: Drawn) -> Tensor:
    """Each response weighed by the ratio of the whole of it."""
    summed_BT = policy_loss.at_level(
        policy_loss.log_ratio(drawn.logprobs_BT.detach(), drawn.sampler_BT, drawn.mask_BT), drawn.mask_BT, "trajectory"
    )
    return climbing(drawn, drawn.worth_NG, drawn.weights_BT * summed_BT.exp())


ESTIMATORS = [
    Estimator("REINFORCE", lambda drawn: climbing(drawn, drawn.worth_NG), True),
    Estimator("REINFORCE, the score of a fixed response as baseline (ReMax)", greedy, True),
    Estimator("RLOO", lambda drawn: climbing(drawn, advantages.leave_one_out(drawn.worth_NG)), True),
    Estimator(
        "group mean (Dr.GRPO): (G−1)/G·∇J",
        lambda drawn: climbing(drawn, advantages.group_relative(drawn.worth_NG, scale=False)),
        False,
    ),
    Estimator(
        "group mean and std (GRPO)",
        lambda drawn: climbing(drawn, advantages.group_relative(drawn.worth_NG, scale=True)),
        False,
    ),
    Estimator("PPO at ρ = 1, λ = 1, any critic", partial(with_critic, lam=1.0), True),
    Estimator("PPO at ρ = 1, λ = 0.5, a wrong critic", partial(with_critic, lam=0.5), False),
    Estimator("KL in the loss: k2 of the response", lambda drawn: kl_in_loss(drawn, sequence_k2), True),
    Estimator(
        "KL in the loss: k1 by token", lambda drawn: kl_in_loss(drawn, partial(by_token, estimator=kl.k1)), False
    ),
    Estimator(
        "KL in the loss: k2 by token", lambda drawn: kl_in_loss(drawn, partial(by_token, estimator=kl.k2)), False
    ),
    Estimator(
        "KL in the loss: k3 by token", lambda drawn: kl_in_loss(drawn, partial(by_token, estimator=kl.k3)), False
    ),
    Estimator("another sampler, ratio of the response", imported_whole, True, foreign=True),
    Estimator("another sampler, ratio of each token", partial(imported, cap=float("inf")), False, foreign=True),
    Estimator("another sampler, ratio of each token, at most 1.5", partial(imported, cap=1.5), False, foreign=True),
    Estimator("another sampler, no ratio", lambda drawn: climbing(drawn, drawn.worth_NG), False, foreign=True),
]
