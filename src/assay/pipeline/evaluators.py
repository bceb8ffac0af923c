"""Evaluation for the stages: binds data, the truth of a world or a judge model, and seeds into plain callables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.data.baselines import Baselines
from assay.data.prepared import Prepared
from assay.evaluation.compare import compare
from assay.evaluation.policy import policy_report
from assay.evaluation.preference import preference_report
from assay.evaluation.safety import is_refusal, refusal_report
from assay.evaluation.text import text_report
from assay.evaluation.winrate import win_rate
from assay.rewards import RewardFn
from assay.statistics import bootstrap_mean, proportion
from assay.types import Completion, Preference, Prompt
from assay.worlds.world import World

HARMFUL = "harmful"
"""Kind of the prompts that should be refused."""


@dataclass(frozen=True)
class Evaluators:
    """What a stage may call, with everything but the model's answers already bound.

    `world` knows the truth; without one, `judge` scores the answers, if the recipe names one.
    """

    data: Prepared
    seed: int
    train: Sequence[Preference] = ()
    """The pairs that the stage learns from; so do the baselines of its report."""
    world: World | None = None
    judge: RewardFn | None = None
    encoder: str | None = None
    """Encoder for BERTScore, where people wrote reference answers."""
    device: str = "cpu"

    @property
    def judged_by(self) -> str | None:
        """Who says which answer is better: the truth where it is known, else the judge, if there is one."""
        return "truth" if self.world is not None else "judge" if self.judge is not None else None

    @cached_property
    def baselines(self) -> Baselines:
        """Fitted when they are first asked for; every validation of a stage uses the same."""
        return Baselines.fit(self.train)

    def truth(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """True worth of each response; only with a world."""
        assert self.world is not None
        return [self.world.truth(prompt, response).total for prompt, response in zip(prompts, responses, strict=True)]

    def mean(
        self, name: str, values: Sequence[float], groups: Sequence[Hashable] | None = None
    ) -> dict[str, float | None]:
        """The mean with its bootstrap interval."""
        return bootstrap_mean(values, seed=self.seed, groups=groups).named(name)

    def share(
        self, name: str, values: Sequence[float], groups: Sequence[Hashable] | None = None
    ) -> dict[str, float | None]:
        """The mean of outcomes between 0 and 1 with its Wilson interval."""
        return proportion(values, groups=groups).named(name)

    def preferences(
        self, pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float]
    ) -> dict[str, Any]:
        """Report of a reward model on held-out pairs."""
        margins = None
        if self.world is not None:
            margins = [self._worth(pair, pair.chosen) - self._worth(pair, pair.rejected) for pair in pairs]
        annotators = self.data.report.get("annotators", {})
        asked_about_one_thing = any(pair.objective for pair in pairs)  # agreement was measured all things considered
        return preference_report(
            chosen,
            rejected,
            seed=self.seed,
            pairs=pairs,
            baselines=self.baselines,
            truth_margins=margins,
            truth_unit=annotators.get("set", {}).get("noise", 1.0),
            agreement=None if asked_about_one_thing else annotators.get("measured", {}).get("agreement"),
        )

    def policy(self, before: Sequence[Completion], after: Sequence[Completion]) -> dict[str, Any]:
        """Report of a trained policy against the one it started from, answer by answer."""
        harmful = self._harmful(before)
        report = policy_report(
            before,
            after,
            seed=self.seed,
            scores=None if self.judged_by is None else (self._scores(before), self._scores(after)),
            harmful=harmful,
            refused=None if harmful is None else (self._refusals(before), self._refusals(after)),
            references=self._references(before),
        )
        if self.judged_by is not None:
            report |= {f"{self.judged_by}_{side}": report[f"mean_{side}"] for side in ("before", "after")}
        return report

    def policies(
        self, validation: Mapping[str, Sequence[Completion]], answers: Mapping[str, Sequence[Completion]]
    ) -> dict[str, Any]:
        """Every policy described, each compared with the first, and one selected (evaluation/compare.py).

        Selected by the answers to the validation prompts: the one that luck favours there has no luck on the others.
        """
        scores = {name: self._scores(completions) for name, completions in answers.items()}
        baseline = next(iter(answers))
        described = {
            name: {**self.describe(completions), **bootstrap_mean(scores[name], seed=self.seed).named("score")}
            for name, completions in answers.items()
        }
        wins = {
            name: win_rate(scores[baseline], column, seed=self.seed, kinds=[c.prompt.kind for c in answers[name]])
            for name, column in scores.items()
            if name != baseline
        }
        for name, measured in self._bertscores(answers).items():
            described[name] |= measured
        for name, measured in wins.items():
            described[name] |= {key: measured[key] for key in ("win_rate", "win_rate_low", "win_rate_high")}
        selection = compare({name: self._scores(column) for name, column in validation.items()}, seed=self.seed)
        return {
            "judged_by": self.judged_by,
            "baseline": baseline,
            "policies": described,
            "wins": wins,
            "selection": selection,
            "selected": selection["selected"],
        }

    def describe(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Text statistics, with BLEU and ROUGE where people wrote an answer too, and refusals."""
        report = text_report(completions, seed=self.seed, references=self._references(completions))
        harmful = self._harmful(completions)
        return report if harmful is None else report | refusal_report(harmful, self._refusals(completions))

    def _bertscores(self, answers: Mapping[str, Sequence[Completion]]) -> dict[str, dict[str, Any]]:
        """BERTScore of every policy; nothing without an encoder or references."""
        references = self._references(next(iter(answers.values())))
        if self.encoder is None or references is None:
            return {}
        from assay.evaluation.bertscore import BertScorer
        from assay.models.locate import locate

        scorer = BertScorer(locate(self.encoder), device=self.device)
        return {
            name: scorer.report([c.response for c in completions], references, seed=self.seed)
            for name, completions in answers.items()
        }

    def _references(self, completions: Sequence[Completion]) -> list[str] | None:
        """What people answered to the same prompts; None unless they answered all of them."""
        shown = self.data.demonstrations
        written = {d.prompt.id: d.response for d in (*shown.validation, *shown.test)}
        references = [written.get(completion.prompt.id) for completion in completions]
        known = [reference for reference in references if reference is not None]
        return known if len(known) == len(references) else None

    def _scores(self, completions: Sequence[Completion]) -> list[float]:
        prompts, responses = [c.prompt for c in completions], [c.response for c in completions]
        if self.world is not None:
            return self.truth(prompts, responses)
        assert self.judge is not None
        return self.judge(prompts, responses, [c.finish for c in completions])

    def _worth(self, pair: Preference, response: str) -> float:
        """True worth of a response in points, under the objective that its pair was asked about."""
        assert self.world is not None
        truth = self.world.truth(pair.prompt, response)
        return truth.objectives[pair.objective] * sum(self.world.weights.values()) if pair.objective else truth.total

    def _harmful(self, completions: Sequence[Completion]) -> list[bool] | None:
        """Which requests should be refused; None where the data do not say."""
        harmful = [completion.prompt.kind == HARMFUL for completion in completions]
        return harmful if any(harmful) else None

    def _refusals(self, completions: Sequence[Completion]) -> list[bool]:
        if self.world is None:
            return [is_refusal(completion.response) for completion in completions]
        return [self.world.truth(completion.prompt, completion.response).refused for completion in completions]
