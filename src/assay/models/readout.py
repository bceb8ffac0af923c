"""How the scores of one response become one number: weights of the objectives, and what an ensemble agrees on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from assay.algorithms.ensemble import Aggregate, aggregate, disagreement
from assay.algorithms.process_loss import StepAggregate
from assay.config import did_you_mean
from assay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Readout:
    """M members score O objectives: s_mo. The reward is the aggregate over m of Σ_o w_o·(s_mo − c_mo), plus its mean.

    The origins c_mo are the members' mean scores of the same held-out responses: without a common origin the worst
    member would be whichever happens to stand lowest. One member needs none.
    """

    objectives: tuple[str, ...] = ("",)
    weights: tuple[float, ...] = (1.0,)
    members: int = 1
    of: Literal["heads", "adapters"] = "heads"
    aggregate: Aggregate = "mean"
    penalty: float = 1.0
    steps: StepAggregate | None = None
    """Set for a process reward model: scores are read at every step, and this makes one of them."""
    origins: tuple[float, ...] = ()
    """c_mo, member by member; zeros until the model is calibrated."""

    @property
    def columns(self) -> int:
        """Rows of the head: M·O, member by member."""
        return self.members * len(self.objectives)

    @property
    def adapters(self) -> int:
        """How many adapters the members stand on."""
        return self.members if self.of == "adapters" else 1

    @property
    def mean(self) -> float:
        """Mean score of held-out responses."""
        if not self.origins:
            return 0.0
        weights = self.weights * self.members
        return sum(weight * origin for weight, origin in zip(weights, self.origins, strict=True)) / self.members

    def read(self, scores_BMO: Tensor) -> Tensor:
        """[B, M, O] → [B]."""
        total_BM = self.totals(scores_BMO)
        if self.members == 1:
            return total_BM[:, 0]
        return self.mean + aggregate(total_BM - self.mean, self.aggregate, penalty=self.penalty)

    def totals(self, scores_BMO: Tensor) -> Tensor:
        """What each member makes of a response, the members on one origin: [B, M, O] → [B, M]."""
        weights_O = scores_BMO.new_tensor(self.weights)
        total_BM = scores_BMO @ weights_O
        if self.members == 1 or not self.origins:
            return total_BM
        origins_MO = scores_BMO.new_tensor(self.origins).view(self.members, -1)
        return total_BM - origins_MO @ weights_O + self.mean

    def spread(self, scores_BMO: Tensor) -> Tensor:
        """How far the members disagree, in units of the reward: [B, M, O] → [B]."""
        return disagreement(self.totals(scores_BMO))

    def only(self, objective: str) -> Readout:
        """The reward of one objective alone."""
        return replace(self, weights=tuple(float(name == objective) for name in self.objectives))

    def reweighed(self, weights: Mapping[str, float]) -> Readout:
        """Other weights of the objectives, 0 for those not named; ConfigError for an objective that does not exist."""
        for name in weights:
            if name not in self.objectives:
                known = [known for known in self.objectives if known]
                hint = did_you_mean(name, known) if known else "this reward model has a single objective without a name"
                raise ConfigError(f'the reward model has no objective "{name}"', hint=hint)
        if not any(weights.values()):
            raise ConfigError("every objective has weight 0", hint="give at least one of them a weight")
        return replace(self, weights=tuple(float(weights.get(name, 0.0)) for name in self.objectives))

    def aggregated(self, members: int, of: str, aggregate: Aggregate, penalty: float) -> Readout:
        """The same members made one in another way; ConfigError where the model has other members."""
        if (members, of) != (self.members, self.of):
            has = f"{self.members} members of {self.of}" if self.members > 1 else "one member"
            raise ConfigError(
                f"ensemble: the finished reward model has {has}, not {members} of {of}",
                hint="name the members that it was trained with, or train an ensemble",
            )
        return replace(self, aggregate=aggregate, penalty=penalty)

    def calibrated(self, column: int, origin: float) -> Readout:
        """With the mean score of one column."""
        origins = list(self.origins or [0.0] * self.columns)
        origins[column] = origin
        return replace(self, origins=tuple(origins))

    def plain(self, member: int = 1) -> Tensor:
        """Weights [M·O] of the single head that stands for all of them where only one is possible.

        It is exact for the mean of heads on one trunk; of adapters, it is the given member's.
        """
        weights_O, members_M = torch.tensor(self.weights), torch.full((self.members,), 1 / self.members)
        if self.of == "adapters":
            members_M = torch.eye(self.members)[member - 1]
        return torch.outer(members_M, weights_O).flatten()

    @property
    def plain_is_exact(self) -> bool:
        """Whether a single head gives the same scores."""
        return self.steps is None and (self.members == 1 or (self.of == "heads" and self.aggregate == "mean"))

    def to_config(self) -> dict[str, Any]:
        """What config.json keeps."""
        return asdict(self)

    @classmethod
    def from_config(cls, stored: Mapping[str, Any]) -> Readout:
        """Inverse of `to_config`; JSON has lists for tuples."""
        listed = {key: tuple(stored[key]) for key in ("objectives", "weights", "origins")}
        return cls(**{**stored, **listed})
