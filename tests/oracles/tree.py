"""Every response of 3 tokens out of 4: a world small enough to sum over. NumPy only; shares no code with `src`.

A policy is a table of probabilities, one row a state (what has been said so far) and one column a token. There are
21 states and 64 responses. A response y is worth scores[y], and a policy's objective is

    J(π) = Σ_y π(y)·(scores[y] − β·log(π(y)/π_ref(y)))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS, TOKENS = 3, 4
RESPONSES = list(itertools.product(range(TOKENS), repeat=STEPS))
STATES = [said for length in range(STEPS) for said in itertools.product(range(TOKENS), repeat=length)]
STATE_OF = {said: index for index, said in enumerate(STATES)}
PATHS = [[STATE_OF[response[:t]] for t in range(STEPS)] for response in RESPONSES]
"""The states that each response goes through: [64][3]."""


@dataclass(frozen=True)
class Tree:
    """A task: where the policy starts and is held to, what people like, and how firmly it is held."""

    reference: Array
    """[21, 4] probabilities of the reference policy."""
    scores: Array
    """[64] worth of each response."""
    beta: float


def responses(table: Array) -> Array:
    """Probability of each response: [21, 4] → [64]."""
    chances = []
    for response, path in zip(RESPONSES, PATHS, strict=True):
        chances.append(math.prod(float(table[state, token]) for state, token in zip(path, response, strict=True)))
    return np.array(chances)


def kl(p: Array, q: Array) -> float:
    """Σ p·log(p/q), in nats; what p never says adds nothing."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


def objective(tree: Tree, table: Array) -> float:
    """J of a policy, by its definition."""
    return objective_of(tree, responses(table))


def objective_of(tree: Tree, chances: Array) -> float:
    """J of any distribution over the responses, [64]."""
    return float(chances @ tree.scores) - tree.beta * kl(chances, responses(tree.reference))


def best(tree: Tree) -> tuple[Array, float]:
    """π*(y) ∝ π_ref(y)·e^{r(y)/β} over all responses, and J* = β·log Z (oracles.md, 1)."""
    tilted = responses(tree.reference) * np.exp(tree.scores / tree.beta)
    return tilted / tilted.sum(), tree.beta * math.log(tilted.sum())


def soft_values(tree: Tree) -> dict[tuple[int, ...], float]:
    """V(s) = β·log Σ_a π_ref(a|s)·e^{V(s, a)/β}, from the leaves up; a whole response is worth its score."""
    values = dict(zip(RESPONSES, tree.scores.tolist(), strict=True))
    for said in reversed(STATES):
        row = tree.reference[STATE_OF[said]]
        values[said] = tree.beta * math.log(
            sum(float(row[token]) * math.exp(values[(*said, token)] / tree.beta) for token in range(TOKENS))
        )
    return values


def soft_policy(tree: Tree) -> Array:
    """π*(a|s) = π_ref(a|s)·e^{(V(s, a) − V(s))/β}: the optimum, token by token: [21, 4]."""
    values = soft_values(tree)
    return np.array(
        [
            [
                tree.reference[STATE_OF[said], token] * math.exp((values[(*said, token)] - values[said]) / tree.beta)
                for token in range(TOKENS)
            ]
            for said in STATES
        ]
    )


def score_gradient(table: Array, response: int) -> Array:
    """∂log π(y)/∂logits of a tabular softmax policy: one-hot minus probabilities in each state on y's path: [21, 4]."""
    gradient = np.zeros_like(table)
    for state, token in zip(PATHS[response], RESPONSES[response], strict=True):
        gradient[state] -= table[state]
        gradient[state, token] += 1
    return gradient


def gradient(tree: Tree, table: Array) -> Array:
    """∂J/∂logits by enumeration: Σ_y π(y)·(r(y) − β·log(π(y)/π_ref(y)))·∇log π(y): [21, 4]."""
    chances, reference = responses(table), responses(tree.reference)
    total = np.zeros_like(table)
    for y in range(len(RESPONSES)):
        worth = tree.scores[y] - tree.beta * math.log(chances[y] / reference[y])
        total += chances[y] * worth * score_gradient(table, y)
    return total


def differences(function: Callable[[Array], float], table: Array, step: float = 1e-5) -> Array:
    """∂function/∂logits by central differences, for any function of a policy: [21, 4]."""
    logits, slopes = np.log(table), np.zeros_like(table)
    for index in np.ndindex(*table.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            ends.append(function(softmax(moved)))
        slopes[index] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def softmax(logits: Array) -> Array:
    """Row by row."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def deviation(tree: Tree, chances: Array) -> float:
    """Population standard deviation of the score under a distribution over the responses."""
    mean = float(chances @ tree.scores)
    return math.sqrt(float(chances @ (tree.scores - mean) ** 2))


def standardised_best(tree: Tree) -> Array:
    """Where (score − mean)/std with the *exact* KL gradient in the loss comes to rest: [64].

    The gradient vanishes where (r(y) − mean)/σ = β·log(π(y)/π_ref(y)) + constant, so π ∝ π_ref·e^{r/(βσ)} with
    σ = std_π(r): the optimum for β·σ instead of β. σ is found from π_ref's own, which is where training starts.
    """
    return _settle(tree, lambda sigma: best(Tree(tree.reference, tree.scores, tree.beta * sigma))[0])


def grpo_best(tree: Tree) -> Array:
    """Where GRPO as published comes to rest, (score − mean)/std with k3 per token in the loss, groups infinite: [64].

    In each state ∇k3 is β·(π − π_ref) and the policy gradient π·(Q − V)/σ, Q and V expected *scores*; both are
    weighted by how often the state occurs. They cancel where π(a) = β·π_ref(a)/(c − Q(a)/σ), with c from Σ_a π(a) = 1:
    a rational tilt and no exponential one (Vojnović and Yun, arXiv 2502.18548). σ = std_π(r), as above.
    """
    return _settle(tree, lambda sigma: responses(_rational_policy(tree, sigma)))


def _settle(tree: Tree, policy_for: Callable[[float], Array]) -> Array:
    chances = responses(tree.reference)
    while (sigma := deviation(tree, chances)) > 0.01:
        moved = policy_for(sigma)
        if np.abs(moved - chances).max() < 1e-12:
            return moved
        chances = moved
    raise ArithmeticError("the standard deviation vanishes: β is too small for a policy that does not collapse")


def _rational_policy(tree: Tree, sigma: float) -> Array:
    worth = dict(zip(RESPONSES, tree.scores.tolist(), strict=True))
    table = np.zeros_like(tree.reference)
    for said in reversed(STATES):
        state = STATE_OF[said]
        q = [worth[(*said, token)] / sigma for token in range(TOKENS)]
        mass = [tree.beta * float(p) for p in tree.reference[state]]
        low, high = max(q), max(q) + sum(mass)  # at the lower end the sum is infinite, at the upper one at most 1
        for _ in range(60):
            c = (low + high) / 2
            above = c > max(q) and sum(m / (c - x) for m, x in zip(mass, q, strict=True)) < 1
            low, high = (low, c) if above else (c, high)
        row = np.array([m / (high - x) for m, x in zip(mass, q, strict=True)])
        table[state] = row / row.sum()
        worth[said] = sum(float(p) * worth[(*said, token)] for token, p in enumerate(table[state]))
    return table
