"""Every cure can be pasted behind `assay run RECIPE`, says something new, and does not contradict another."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from assay.doctor import cure
from assay.doctor.detector import DETECTORS, Detector, examine
from assay.doctor.examination import FAMILIES
from assay.doctor.finding import Finding
from assay.doctor.kl import KL_BLOW_UP
from assay.doctor.log import Log
from assay.doctor.recipe import Planned
from assay.document import parse_value, write_value
from assay.pipeline.recipe import load_recipe
from assay.pipeline.watch import Watch
from assay.stages.config import AnyStage
from assay.tracking.metrics import MetricsLine

OURS = [d for d in DETECTORS if d.find.__module__ in {family.__name__ for family in FAMILIES}]
PLAUSIBLE = {
    "optim.learning_rate": 1e-5,
    "kl_coef": 0.1,
    "epochs": 1,
    "batch_size": 32,
    "max_length": 256,
    "label_smoothing": 0.1,
}
"""Values of those settings that a detector computes."""
PARTS = {"data": "data", "scores": "reward", "tokens": "sft", "prompts-as-tokens": "ppo"}
"""Kinds of evidence that are no kind of stage → whose settings their cures are."""


def changes(detector: Detector) -> Iterator[tuple[str, Any]]:
    """(key, value) of every setting in the code of a detector and of what it calls in its own file."""
    module = inspect.getmodule(detector.find)
    called = [detector.find]
    for function in called:
        tree = ast.parse(inspect.getsource(function))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and inspect.isfunction(other := getattr(module, node.id, None)):
                called += [other] if other.__module__ == detector.find.__module__ and other not in called else []
            for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                name = key.values[-1] if isinstance(key, ast.JoinedStr) else key
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    known = value.value if isinstance(value, ast.Constant) else None
                    yield name.value.removeprefix("."), known


CURES = sorted(
    {
        (kind, key, write_value(PLAUSIBLE[key] if value is None else value))
        for detector in OURS
        for key, value in changes(detector)
        for kind in detector.kinds or [getattr(detector.evidence, "kind", "ppo")]
    }
)


@pytest.mark.parametrize(("kind", "key", "value"), CURES)
def test_every_cure_can_be_pasted(tmp_path: Path, kind: str, key: str, value: str) -> None:
    kind = PARTS.get(kind, kind)
    recipe = tmp_path / "mine.yaml"
    (tmp_path / "pairs.jsonl").touch()
    stage = "" if kind in ("data", "sft", "reward") else f"  - {kind}: {{id: mine}}\n"
    recipe.write_text(
        f"data: {{path: {tmp_path}/pairs.jsonl}}\nstages:\n  - sft: {{epochs: 9}}\n  - reward: {{}}\n{stage}"
    )
    where = "mine" if stage else kind
    pasted = load_recipe(str(recipe), [f"{where}.{key}={value}"], {}).recipe
    part = pasted.data if kind == "data" else next(s for s in pasted.stages if where in (s.id, s.kind))
    assert write_value(functools.reduce(getattr, key.split("."), part)) == value


def test_the_cures_of_the_code_are_found() -> None:
    assert len(CURES) > 20
    assert {"kl_coef", "nll_weight", "centring", "label_smoothing", "max_length"} <= {key for _, key, _ in CURES}
    stages = {stage.model_fields["kind"].default for stage in get_args(get_args(AnyStage)[0])}
    assert {kind for kind, _, _ in CURES} <= stages | PARTS.keys()


@pytest.mark.parametrize("value", [1e-5, 2e-3, 0.05, 1e20, 3, True, "set", "1e-5", "2", "no"])
def test_a_value_is_read_as_itself_by_every_yaml(value: Any) -> None:
    assert parse_value(write_value(value)) == value
    assert type(parse_value(write_value(value))) is type(value)
    if not isinstance(value, str):
        assert yaml.safe_load(write_value(value)) == value
    assert write_value(1e-5) == "1.0e-05"


def blown(**config: Any) -> Log:
    """A loss that runs away, in a stage of one kind and another name."""
    losses = [2.0] * 10 + [9.0] * 20
    lines = [MetricsLine(step, 0.0, {"train/loss": loss}) for step, loss in enumerate(losses, 1)]
    return Log.of("preference", "dpo", lines, config=config)


def test_a_cure_has_the_id_of_the_stage_and_two_digits() -> None:
    (found,) = examine([blown(optim={"learning_rate": 0.1})]).findings
    assert found.change == {"dpo.optim.learning_rate": 0.033}


def test_a_cure_begins_at_the_rate_that_corrections_have_left() -> None:
    lines = [
        MetricsLine(step, 0.0, {"train/loss": 2.0 if step < 11 else 9.0, "doctor/lr_factor": 1 / 9})
        for step in range(1, 31)
    ]
    (found,) = examine([Log.of("sft", "sft", lines, config={"optim": {"learning_rate": 0.27}})]).findings
    assert found.change == {"sft.optim.learning_rate": 0.01}


def test_what_is_set_already_is_no_cure() -> None:
    finding = Finding(KL_BLOW_UP, "ppo", "far", change={"missing_eos": "set", "kl_coef": 0.05})
    some = cure.settled(finding, {"missing_eos": "set", "kl_coef": 0.01})
    assert some.change == {"ppo.kl_coef": 0.05}
    assert some.cure.endswith("(missing_eos=set: that is so already.)")
    assert cure.settled(finding, {"missing_eos": "set", "kl_coef": 0.05}).change == {}


def test_what_was_proposed_before_the_run_stays_the_cure(tmp_path: Path) -> None:
    planned = Planned("sft", "sft", {"optim": {"learning_rate": 0.3}, "batch_size": 8}, 1_000_000)
    (before,) = examine([planned]).findings
    (tmp_path / cure.BEFORE).write_text(json.dumps({"findings": [before.facts()]}))
    (after,) = examine([Log("sft", "sft", blown().series, config=planned.config)]).findings
    (key, value), (other, otherwise) = *before.change.items(), *after.change.items()
    assert key == other
    assert value != otherwise
    assert cure.agreeing(after, cure.proposed(tmp_path)).change == before.change
    said: list[str] = []
    proposed = cure.proposed(tmp_path)
    watch = Watch(
        tmp_path, kind="sft", where="sft", config=planned.config, act="stop", say=said.append, proposed=proposed
    )
    for step in range(1, 31):
        watch.see(step, {"train/loss": 2.0 if step < 11 else 9.0})
    assert said
    assert f"Here: {key}={write_value(value)}." in said[0]
    for damaged in ("{", "[]", '{"findings": [{}]}', '{"findings": [{"change": 3}]}'):
        (tmp_path / cure.BEFORE).write_text(damaged)
        assert cure.proposed(tmp_path) == {}
    assert cure.proposed(tmp_path / "nowhere") == {}
