"""The pieces together: on a tree of all responses, PPO's first step follows the exact gradient of what PPO maximises.

J = E[score] − β·KL(π‖ref), enumerated over every response (oracles.md 3, 5; correctness.md 17, 19, 20, 22, 25).
"""

from __future__ import annotations

import math

import pytest
import torch
from tests.unit.algorithms.batches import assert_same
from torch import Tensor

from assay.algorithms.advantages import gae, shaped_rewards
from assay.algorithms.kl import k1
from assay.algorithms.policy_loss import clipped_surrogate, log_ratio

BETA = 1.0
END = 0  # of three tokens; a response ends there, or after two
RESPONSES = [(END,), (1, END), (1, 1), (1, 2), (2, END), (2, 1), (2, 2)]
STATES = [(), (1,), (2,)]  # what may have been said before a token
MASK_BT = torch.tensor([[True, len(response) == 2] for response in RESPONSES])
SCORES_B = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.3, 0.8], dtype=torch.float64)


def tables() -> tuple[Tensor, Tensor]:
    """Logits of the policy and of the reference: one row a state."""
    generator = torch.Generator().manual_seed(4)
    policy, reference = (torch.randn(len(STATES), 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), reference


def logprobs(logits: Tensor) -> Tensor:
    """log p of every token of every response, NaN where a response has ended: [7, 2]."""
    table = logits.log_softmax(-1)
    rows = []
    for response in RESPONSES:
        taken = [table[STATES.index(response[:t]), token] for t, token in enumerate(response)]
        rows.append(torch.stack([*taken, *[torch.tensor(math.nan, dtype=torch.float64)] * (2 - len(taken))]))
    return torch.stack(rows)


def exact_gradient(policy: Tensor, reference: Tensor) -> Tensor:
    pi_B, ref_B = (logprobs(logits).where(MASK_BT, 0).sum(1) for logits in (policy, reference))
    objective = (pi_B.exp() * (SCORES_B - BETA * (pi_B - ref_B))).sum()
    return torch.autograd.grad(objective, policy)[0]


def state_values(policy: Tensor, reference: Tensor) -> list[float]:
    """V of each state by enumeration: the expected score less the KL still to come."""
    pi, ref = policy.detach().log_softmax(-1).tolist(), reference.log_softmax(-1).tolist()

    def value(said: tuple[int, ...]) -> float:
        state, expected = STATES.index(said), 0.0
        for token in range(3):
            response = (*said, token)
            later = SCORES_B[RESPONSES.index(response)].item() if response in RESPONSES else value(response)
            expected += math.exp(pi[state][token]) * (later - BETA * (pi[state][token] - ref[state][token]))
        return expected

    return [value(state) for state in STATES]


def ppo_gradient(policy: Tensor, reference: Tensor, values: list[float], lam: float) -> Tensor:
    """−∇ of the expected loss at ρ = 1, every response weighted by its probability."""
    new_BT = logprobs(policy)
    old_BT = new_BT.detach()
    values_BT = torch.tensor(
        [[values[STATES.index(r[:t])] if t < len(r) else math.nan for t in range(2)] for r in RESPONSES],
        dtype=torch.float64,
    )
    rewards_BT = shaped_rewards(SCORES_B, k1(old_BT, logprobs(reference)), MASK_BT, coef=BETA)
    advantages_BT, _ = gae(rewards_BT, values_BT, MASK_BT, gamma=1.0, lam=lam)
    ratio_BT = log_ratio(new_BT, old_BT, MASK_BT)
    loss_BT = clipped_surrogate(ratio_BT, advantages_BT, clip_low=0.2, clip_high=0.2)
    chance_B = old_BT.where(MASK_BT, 0).sum(1).exp()
    return -torch.autograd.grad((chance_B * loss_BT.where(MASK_BT, 0).sum(1)).sum(), policy)[0]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_with_a_perfect_critic_the_gradient_is_exact_for_every_lambda(lam: float) -> None:
    policy, reference = tables()
    assert_same(
        ppo_gradient(policy, reference, state_values(policy, reference), lam), exact_gradient(policy, reference)
    )


def test_with_lambda_one_the_gradient_is_exact_whatever_the_critic_believes() -> None:
    policy, reference = tables()
    assert_same(ppo_gradient(policy, reference, [3.0, -2.0, 0.7], 1.0), exact_gradient(policy, reference))


def test_with_a_wrong_critic_a_smaller_lambda_is_biased() -> None:
    policy, reference = tables()
    biased, exact = ppo_gradient(policy, reference, [3.0, -2.0, 0.7], 0.5), exact_gradient(policy, reference)
    assert (biased - exact).norm() > 0.1 * exact.norm()


def test_climbing_it_arrives_at_the_reference_tilted_by_the_score() -> None:
    """The optimum is π* ∝ ref·exp(score/β), and there J = β·log Z (oracles.md 1)."""
    policy, reference = tables()
    optimizer = torch.optim.Adam([policy], lr=0.1)
    for _ in range(300):
        policy.grad = -ppo_gradient(policy, reference, state_values(policy, reference), 0.95)
        optimizer.step()
    pi_B, ref_B = (logprobs(logits).where(MASK_BT, 0).sum(1).detach() for logits in (policy, reference))
    assert_same(pi_B.exp(), (ref_B + SCORES_B / BETA).softmax(0), 1e-4)
    objective = (pi_B.exp() * (SCORES_B - BETA * (pi_B - ref_B))).sum()
    assert_same(objective, BETA * (ref_B + SCORES_B / BETA).logsumexp(0), 1e-6)
