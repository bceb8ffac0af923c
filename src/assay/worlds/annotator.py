"""People who compare two answers: truth seen through noise, taste and a weakness for length.

    logit P(a ≻ b) = (u_a − u_b) / noise + sign(words_a − words_b) · logit(length_bias)

u is the truth with the annotator's own weights. Bradley–Terry choice as in AlpacaFarm (arXiv 2305.14387) and the
synthetic gold rewards of Gao et al. (arXiv 2210.10760). Everything that is set is also measured (`measure`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from assay.data.agreement import accuracy_ceiling
from assay.data.steps import split_steps
from assay.rng import python_rng
from assay.types import JudgedSteps, Preference, Prompt, Ranking
from assay.worlds.config import AnnotatorConfig
from assay.worlds.world import Truth, World

Pair = tuple[Prompt, str, str]


@dataclass(frozen=True)
class Annotator:
    """One person. `weights`: points per objective, as this person feels them."""

    weights: dict[str, float]
    noise: float
    length_bias: float

    def utility(self, truth: Truth) -> float:
        """What this person makes of an answer; points."""
        return sum(self.weights[name] * score for name, score in truth.objectives.items())

    def asked_about(self, objective: str) -> Annotator:
        """The same person, looking at one thing alone, which then counts as much as all things together."""
        weights = {name: sum(self.weights.values()) * (name == objective) for name in self.weights}
        return replace(self, weights=weights)

    def chance(self, a: Truth, b: Truth, longer: int) -> float:
        """P(this person prefers a to b); `longer` is 1 if a is the longer answer, -1 if b is, 0 if neither."""
        gap = self.utility(a) - self.utility(b)
        return _logistic(gap / self.noise + longer * _logit(self.length_bias))

    def prefer(self, world: World, prompt: Prompt, a: str, b: str, rng: random.Random) -> Preference:
        """The pair with the preferred answer first."""
        chance = self.chance(world.truth(prompt, a), world.truth(prompt, b), compare_lengths(a, b))
        chosen, rejected = (a, b) if rng.random() < chance else (b, a)
        return Preference(prompt, chosen, rejected)

    def rank(self, world: World, prompt: Prompt, answers: Sequence[str], rng: random.Random) -> Ranking:
        """The answers in this person's order: each is held against those in place, the best first, until it wins."""
        worth = {answer: world.truth(prompt, answer) for answer in answers}
        order: list[str] = []
        for answer in answers:
            chances = (self.chance(worth[answer], worth[other], compare_lengths(answer, other)) for other in order)
            place = next((place for place, chance in enumerate(chances) if rng.random() < chance), len(order))
            order.insert(place, answer)
        return Ranking(prompt, tuple(order))

    def judge_steps(self, world: World, prompt: Prompt, answer: str, rng: random.Random) -> JudgedSteps:
        """Every sentence, and whether this person finds the answer better with it than it was without."""
        steps = tuple(split_steps(answer))
        worth = [self.utility(world.truth(prompt, " ".join(steps[:end]))) for end in range(len(steps) + 1)]
        good = (rng.random() < _logistic((after - before) / self.noise) for before, after in pairwise(worth))
        return JudgedSteps(prompt, steps, tuple(good))


def panel(world: World, config: AnnotatorConfig, seed: int) -> list[Annotator]:
    """The pool of people: their tastes are log-normal around the world's weights, scaled to the same total."""
    people = []
    for number in range(config.people):
        rng = python_rng(seed, "annotator", number)
        felt = {name: points * math.exp(rng.gauss(0, config.disagreement)) for name, points in world.weights.items()}
        scale = sum(world.weights.values()) / sum(felt.values())
        weights = {name: points * scale for name, points in felt.items()}
        people.append(Annotator(weights, config.noise, config.length_bias))
    return people


def measure(world: World, people: Sequence[Annotator], pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """How the panel really behaves on these pairs, from sampled votes of two people a pair.

    `agreement` between two people; `truth_agreement` of one person with the truth (ties ½); `ceiling`, the accuracy
    against one person that this agreement allows at most (data/agreement.py); `noise` (points) and `length_bias`
    (probability) fitted to the votes; `*_se` their standard errors.
    """
    rng = python_rng(seed, "measure")
    gaps, longer, votes = [], [], []
    agreed = right = 0.0
    for prompt, a, b in pairs:
        worth_a, worth_b, sign = world.truth(prompt, a), world.truth(prompt, b), compare_lengths(a, b)
        gap = worth_a.total - worth_b.total
        first, second = (rng.random() < person.chance(worth_a, worth_b, sign) for person in rng.sample(people, 2))
        agreed += first == second
        right += 0.5 if abs(gap) < 1e-9 else float(first == (gap > 0))
        gaps.append(gap)
        longer.append(sign)
        votes.append(first)
    agreement = agreed / len(pairs)
    (slope, bias), (slope_se, bias_se) = fit_votes(gaps, longer, votes)
    length_bias = _logistic(bias)
    return {
        "pairs": len(pairs),
        "agreement": agreement,
        "agreement_se": math.sqrt(agreement * (1 - agreement) / len(pairs)),
        "truth_agreement": right / len(pairs),
        "ceiling": accuracy_ceiling(agreement),
        "noise": 1 / slope,
        "noise_se": slope_se / slope**2,
        "length_bias": length_bias,
        "length_bias_se": bias_se * length_bias * (1 - length_bias),
    }


def fit_votes(
    gaps: Sequence[float], longer: Sequence[int], votes: Sequence[bool], *, rounds: int = 25
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Logistic regression of votes on the truth gap and on which answer is longer, by Newton's method.

    Returns ((slope, bias), their standard errors): logit P(vote) = slope · gap + bias · longer. Length bias is thus
    measured at equal truth without waiting for pairs of equal truth.
    """
    slope = bias = 0.0
    h11 = h12 = h22 = determinant = 1.0
    for _ in range(rounds):
        g1 = g2 = h12 = 0.0
        h11 = h22 = 1e-9
        for gap, long, vote in zip(gaps, longer, votes, strict=True):
            p = _logistic(slope * gap + bias * long)
            g1 += (vote - p) * gap
            g2 += (vote - p) * long
            h11 += p * (1 - p) * gap * gap
            h12 += p * (1 - p) * gap * long
            h22 += p * (1 - p) * long * long
        determinant = h11 * h22 - h12 * h12
        slope += (h22 * g1 - h12 * g2) / determinant
        bias += (h11 * g2 - h12 * g1) / determinant
    return (slope, bias), (math.sqrt(h22 / determinant), math.sqrt(h11 / determinant))


def compare_lengths(a: str, b: str) -> int:
    """1 if a has more words, -1 if b has, 0 if neither."""
    one, two = len(a.split()), len(b.split())
    return (one > two) - (one < two)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
