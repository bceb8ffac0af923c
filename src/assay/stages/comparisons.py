"""What a reward model learns from comparisons: pairs and rankings, each under the question that was asked.

Tensors: P comparisons of at most K responses, best first; B rows; M members; O objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from assay import rng
from assay.algorithms.preference_loss import ranking_loss
from assay.data.items import as_preferences
from assay.data.pack import collate, to_device
from assay.data.prepared import Prepared
from assay.data.render import Row
from assay.data.stored import Lazily, lengths_of, select
from assay.data.tokens import render
from assay.models.roles import RewardModel
from assay.stages.config import RewardConfig
from assay.types import Preference, Ranking

Compared = TypeVar("Compared", Preference, Preference | Ranking)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Responses to one prompt, the best first; by how much, where people said so; which objective was asked about."""

    rows: tuple[Row, ...]
    margin: float
    objective: int


@dataclass(frozen=True)
class Comparisons:
    """Bradley–Terry over every pair of a comparison, all of them in one batch, each comparison weighted once.

    With an ensemble every member learns from its own bootstrap sample: `draws_MP[m, p]` says how often it drew the
    comparison, Poisson(1) as in the online bootstrap (Oza and Russell 2001).
    """

    model: RewardModel
    comparisons: Sequence[Comparison]
    config: RewardConfig
    draws_MP: Tensor | None

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each comparison."""
        return self._lengths

    def rows(self, number: int) -> tuple[Row, ...]:
        """The responses of a comparison."""
        return self.comparisons[number].rows

    @cached_property
    def _lengths(self) -> list[int]:
        return lengths_of(self.comparisons, lambda comparison: sum(len(row.ids) for row in comparison.rows))

    def loss(self, part: Sequence[int], step: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Shares of the members' mean loss and accuracy."""
        chosen = [self.comparisons[p] for p in part]
        scores_PKM, mask_PK = ranked_scores(self.model, chosen)
        device = scores_PKM.device
        margin_P = to_device(self.config.margin + torch.tensor([c.margin for c in chosen]), device)
        members = scores_PKM.shape[2]
        loss, accuracy = scores_PKM.new_zeros(()), scores_PKM.new_zeros(())
        for m in range(members):
            share, measured = ranking_loss(
                scores_PKM[..., m],
                mask_PK,
                margin=margin_P,
                centring=self.config.centring,
                smoothing=self.config.label_smoothing,
                weight_P=None if self.draws_MP is None else to_device(self.draws_MP[m, part], device),
                total=len(step) if self.draws_MP is None else self.draws_MP[m, step].sum().clamp(min=1),
            )
            loss = loss + share / members
            accuracy = accuracy + measured["accuracy"] / members
        return loss, accuracy


def ranked_scores(model: RewardModel, comparisons: Sequence[Comparison]) -> tuple[Tensor, Tensor]:
    """Scores [P, K, M] under each comparison's objective, and where there are any [P, K]; one forward batch."""
    width = max(len(comparison.rows) for comparison in comparisons)
    places = [(p, k) for k in range(width) for p, comparison in enumerate(comparisons) if k < len(comparison.rows)]
    batch = collate([comparisons[p].rows[k] for p, k in places], model.pad_id).to(model.backbone.device)
    scores_BMO = model.scores(batch)
    device = scores_BMO.device
    place_P, place_K = to_device(torch.tensor(places), device).unbind(1)
    asked_P = to_device(torch.tensor([comparison.objective for comparison in comparisons]), device)
    scores_BM = scores_BMO.take_along_dim(asked_P[place_P][:, None, None], dim=2).squeeze(2)
    scores_PKM = scores_BM.new_zeros(len(comparisons), width, scores_BM.shape[1])
    mask_PK = torch.zeros(len(comparisons), width, dtype=torch.bool, device=device)
    mask_PK[place_P, place_K] = True
    return scores_PKM.index_put((place_P, place_K), scores_BM), mask_PK


def comparisons_of(
    model: RewardModel, items: Sequence[Preference | Ranking], cache: Path | None = None
) -> Sequence[Comparison]:
    """Comparisons of which at least two responses fit the context with a token of their own."""
    rendered = render(model.renderer, items, cache)

    def comparison(number: int) -> Comparison:
        item = items[number]
        margin = (item.margin or 0.0) if isinstance(item, Preference) else 0.0
        return Comparison(rendered.of(number), margin, objective_of(item, model.readout.objectives))

    fit = np.flatnonzero(rendered.counts() >= 2)
    return Lazily(fit, comparison, rendered.tokens()[fit])


def bootstrap(members: int, comparisons: int, seed: int) -> Tensor | None:
    """How often each member draws each comparison [M, P]; None for a single model, which learns from them all.

    On the host: each step takes its own to the device.
    """
    if members == 1:
        return None
    ones = torch.ones(comparisons)
    draws = [torch.poisson(ones, generator=rng.torch_rng(seed, "bootstrap", member)) for member in range(members)]
    return torch.stack(draws)


def to_learn(data: Prepared, objectives: Sequence[str]) -> Sequence[Preference | Ranking]:
    """Rankings whole, and the pairs that are no part of one; of the wanted objectives, where there are several."""
    whole = data.rankings.train
    if not whole:
        return about(data.preferences.train, objectives)
    inside = {pair for ranking in whole for pair in as_preferences(ranking)}
    return about([*(pair for pair in data.preferences.train if pair not in inside), *whole], objectives)


def about(items: Sequence[Compared], objectives: Sequence[str]) -> Sequence[Compared]:
    """The comparisons that a model with these objectives has a score for; a model with one takes them all."""
    return select(items, lambda item: item.objective in objectives) if any(objectives) else items


def objective_of(item: Preference | Ranking, objectives: Sequence[str]) -> int:
    """Number of the objective that was asked about; a model with a single unnamed one is asked about nothing else."""
    return objectives.index(item.objective) if any(objectives) else 0
