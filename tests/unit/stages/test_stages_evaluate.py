"""Evaluation of policies: validation prompts select, test prompts report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.stages.test_stages_learning import SAMPLING
from tests.unit.stages.toy import QUESTIONS, Memory

from assay.data.prepared import Prepared, Splits
from assay.errors import DataError
from assay.rollout.config import GuardConfig
from assay.stages import evaluate
from assay.stages.config import EvaluateConfig
from assay.stages.context import StageInputs
from assay.types import Completion, Prompt

Answers = Mapping[str, Sequence[Completion]]
CONFIG = EvaluateConfig(prompts=2, max_length=32, sampling=SAMPLING)


class Judge:
    """Selects by the first answers, describes the second, and remembers both."""

    def __init__(self) -> None:
        self.seen: list[Answers] = []

    def __call__(self, validation: Answers, test: Answers) -> dict[str, Any]:
        self.seen = [validation, test]
        return {"selected": "late", "policies": {name: {"score": float(len(rows))} for name, rows in test.items()}}


def inputs(base: Path, judge: Judge, validation: Sequence[Prompt], test: Sequence[Prompt]) -> StageInputs:
    data = Prepared(prompts=Splits([], list(validation), list(test)))
    return StageInputs(data, str(base), policies={"early": str(base), "late": str(base)}, evaluate_policies=judge)


def test_the_prompts_that_select_are_not_those_that_report(base: Path, tmp_path: Path) -> None:
    judge, ctx = Judge(), Memory(tmp_path)
    metrics = evaluate.run(CONFIG, inputs(base, judge, QUESTIONS[:3], QUESTIONS[3:4]), ctx)
    asked = [{name: [row.prompt for row in rows] for name, rows in answers.items()} for answers in judge.seen]
    assert asked == [{name: list(prompts) for name in ("early", "late")} for prompts in (QUESTIONS[:2], QUESTIONS[3:4])]
    broken = dict.fromkeys((f"{name}/broken_{side}" for name in ("early", "late") for side in ("before", "after")), 1.0)
    cut = {"early/prompts_cut": 0, "late/prompts_cut": 0}
    assert metrics == {"selected": "late", "prompts": 1, "early/score": 1.0, "late/score": 1.0, **broken, **cut}
    assert [row["prompt"] for row in ctx.texts] == [QUESTIONS[3].text]
    assert json.loads((tmp_path / "evaluation.json").read_text())["selected"] == "late"


def test_prompts_that_do_not_fit_beside_an_answer_are_counted(base: Path, tmp_path: Path) -> None:
    test = [QUESTIONS[0], Prompt.ask("name the sea? " * 40)]
    metrics = evaluate.run(CONFIG, inputs(base, Judge(), QUESTIONS[:1], test), Memory(tmp_path))
    assert (metrics["early/prompts_cut"], metrics["late/prompts_cut"]) == (1, 1)


@pytest.mark.parametrize("empty", ["validation", "test"])
def test_no_held_out_prompts_are_one_error(base: Path, tmp_path: Path, empty: str) -> None:
    full = inputs(base, Judge(), QUESTIONS[:1], QUESTIONS[1:2])
    prompts = replace(full.data.prompts, **{empty: []})
    with pytest.raises(DataError, match=f"no {empty} prompts") as error:
        evaluate.run(CONFIG, replace(full, data=replace(full.data, prompts=prompts)), Memory(tmp_path))
    assert error.value.hint == f"raise data.{empty}_split"


def test_the_evaluation_reports_broken_answers_before_and_after(base: Path, tmp_path: Path) -> None:
    given = inputs(base, Judge(), QUESTIONS[:2], QUESTIONS[2:4])
    config = CONFIG.model_copy(update={"guard": GuardConfig(on_broken="fallback", attempts=1)})
    metrics = evaluate.run(config, given, Memory(tmp_path))
    report = json.loads((tmp_path / "evaluation.json").read_text())["policies"]["late"]
    seen = report["guard"]["test"]
    assert metrics["late/broken_before"] == seen["before"]["broken"] / 2
    assert metrics["late/broken_after"] == seen["after"]["broken"] / 2 == 0
    assert set(report["guard"]) == {"validation", "test"}
    assert seen["replaced"] <= seen["resampled"] == seen["before"]["broken"]
