"""Causes come first and bring their consequences; what cannot be checked is said; everything else is checked."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.cli.doctor import told
from assay.doctor.detector import Detector, Missing, examine
from assay.doctor.finding import Diagnosis, Finding, Mode, Unchecked, diagnosis
from assay.doctor.log import Log
from assay.doctor.read import read_run
from assay.tracking.metrics import MetricsLine


def mode(number: int, name: str, *brings: str) -> Mode:
    return Mode(number, name, "policy", name.title(), f"{name} is so", f"mend {name}", brings)


SPARK, FIRE, SMOKE = mode(1, "spark", "fire"), mode(2, "fire", "smoke", "spark"), mode(3, "smoke")
RUST = mode(4, "rust")


def found(what: Mode, severity: str = "red", sureness: str = "likely") -> Finding:
    return Finding(what, "ppo", "seen", severity, sureness)  # pyright: ignore[reportArgumentType]


def names(findings: list[Finding] | tuple[Finding, ...]) -> list[str]:
    return [finding.mode.name for finding in findings]


def test_a_cause_comes_before_what_it_brings_about_however_grave_that_is() -> None:
    given = diagnosis([found(SMOKE), found(SPARK, "amber")])
    assert names(list(given.findings)) == ["smoke", "spark"]  # nothing links them: the graver first
    given = diagnosis([found(SMOKE), found(FIRE, "amber")])
    assert names(list(given.findings)) == ["fire", "smoke"]
    assert names(given.causes) == ["fire"]
    assert names(given.consequences_of(given.causes[0])) == ["smoke"]


def test_consequences_are_followed_through_what_was_found_only() -> None:
    given = diagnosis([found(SMOKE), found(RUST, "amber"), found(FIRE, sureness="possible"), found(SPARK)])
    assert names(list(given.findings)) == ["spark", "smoke", "fire", "rust"]
    assert names(given.causes) == ["spark", "rust"]


@pytest.mark.parametrize(("spark", "first"), [("red", "spark"), ("amber", "fire")])
def test_of_two_that_bring_each_other_about_the_graver_is_the_cause(spark: str, first: str) -> None:
    given = diagnosis([found(FIRE, "amber", "certain"), found(SPARK, spark)])
    assert names(given.causes) == [first]


@pytest.mark.parametrize(
    ("fuel", "flame", "first"),
    [
        (("red", "likely"), ("red", "certain"), "fuel"),
        (("amber", "likely"), ("red", "likely"), "flame"),
    ],
    ids=["brings both about", "graver all the same"],
)
def test_of_a_circle_the_cause_is_what_brings_most_of_it_about_itself(
    fuel: tuple[str, str], flame: tuple[str, str], first: str
) -> None:
    """Flame leads back to fuel by way of heat alone, so its being surer does not make it the cause."""
    circle = [
        found(mode(3, "fuel", "flame", "heat"), *fuel),
        found(mode(2, "flame", "heat"), *flame),
        found(mode(1, "heat", "fuel"), "amber"),
    ]
    assert names(diagnosis(circle).causes) == [first]


def test_nothing_that_was_found_is_lost() -> None:
    """The red one follows from embers, which follow from another fire: no cause lists a finding of its own mode."""
    fire, embers = mode(1, "fire", "embers"), mode(2, "embers", "fire")
    given = diagnosis(
        [
            replace(found(fire, "amber"), where="sft"),
            replace(found(embers, "amber", "possible"), where="sft"),
            replace(found(replace(fire, brings=()), "red", "certain"), where="ppo"),
        ],
        places={"ppo": ["sft"]},
    )
    assert sorted((one.mode.name, one.where) for one in given.findings) == [
        ("embers", "sft"),
        ("fire", "ppo"),
        ("fire", "sft"),
    ]
    assert given.verdict == "red"


GRAPH = {"sft": ["data"], "reward": ["data", "sft"], "ppo": ["data", "sft", "reward"], "dpo": ["data", "sft"]}


@pytest.mark.parametrize(
    ("fire", "smoke", "explained"),
    [
        ("ppo", "ppo", True),
        ("data", "ppo", True),
        ("reward", "ppo", True),
        ("ppo", "sft", False),
        ("dpo", "ppo", False),
    ],
    ids=["here", "first", "before", "after", "beside"],
)
def test_a_cause_explains_what_was_made_of_it_and_nothing_else(fire: str, smoke: str, explained: bool) -> None:
    given = diagnosis([replace(found(FIRE), where=fire), replace(found(SMOKE), where=smoke)], places=GRAPH)
    assert names(given.causes) == (["fire"] if explained else ["fire", "smoke"])
    unknown = diagnosis(given.findings)  # without a graph only what is in one place
    assert names(unknown.causes) == (["fire"] if fire == smoke else ["fire", "smoke"])


def test_a_chain_is_followed_downstream_only() -> None:
    """spark (ppo) → fire (sft) would have to go back before it reached the smoke there."""
    given = diagnosis(
        [replace(found(one), where=where) for one, where in ((SPARK, "ppo"), (FIRE, "sft"), (SMOKE, "sft"))],
        places=GRAPH,
    )
    assert names(given.causes) == ["fire"]
    assert names(given.consequences_of(given.causes[0])) == ["spark", "smoke"]


def test_the_graph_of_a_run_stands_in_its_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"graph": GRAPH | {"odd": 3}}))
    assert read_run(tmp_path).graph == GRAPH
    (tmp_path / "summary.json").write_text("{")
    assert read_run(tmp_path).graph == {}


def test_a_consequence_is_told_with_its_severity() -> None:
    given = diagnosis([found(SMOKE), found(SPARK, "amber"), found(FIRE, "amber")])
    said = [line.split(None, 1) for line in told(1, given.causes[0], given)]
    assert [rest for word, rest in said if word == "so"] == ["Smoke (ppo): red, seen", "Fire (ppo): amber, seen"]


def test_the_verdict_is_that_of_the_gravest_finding() -> None:
    assert diagnosis([]).verdict == "green"
    assert diagnosis([found(RUST, "amber")]).verdict == "amber"
    assert diagnosis([found(RUST, "amber"), found(FIRE)]).verdict == "red"


def test_what_is_missing_is_unchecked_and_the_rest_is_checked() -> None:
    def burns(log: Log) -> Iterator[Finding]:
        yield Finding(FIRE, log.where, f"{log['objective/kl'].last}")

    def rusts(log: Log) -> Iterator[Finding]:
        yield Finding(RUST, log.where, "brown")

    log = Log.of("ppo", "here", [MetricsLine(1, 0.1, {"objective/kl": float("nan")})])
    detectors = [Detector((FIRE, SMOKE), ("ppo",), Log, burns), Detector((RUST,), (), Log, rusts)]
    given = examine([log], detectors)
    assert names(list(given.findings)) == ["rust"]
    assert given.unchecked == tuple(Unchecked(m, "here", "the log has no objective/kl") for m in (FIRE, SMOKE))
    assert log.series["objective/kl"].not_finite == (1,)
    smokes = Detector((SMOKE,), (), Log, lambda log: ())  # by another sign, which is there
    assert [one.mode for one in examine([log], [*detectors, smokes]).unchecked] == [FIRE]
    assert examine([Log("reward", "there")], detectors[:1]) == Diagnosis()


@pytest.mark.parametrize(
    ("stumble", "kind"),
    [(lambda: operator.truediv("many", 2), "TypeError"), (lambda: torch.ones(2) @ torch.ones(3), "RuntimeError")],
)
def test_evidence_that_is_damaged_costs_the_detectors_that_stumble_over_it_and_no_other(
    stumble: Callable[[], object], kind: str
) -> None:
    def burns(log: Log) -> Iterator[Finding]:
        yield Finding(FIRE, log.where, f"{stumble()}")

    def rusts(log: Log) -> Iterator[Finding]:
        yield Finding(RUST, log.where, "brown")

    detectors = [Detector((FIRE,), (), Log, burns), Detector((RUST,), (), Log, rusts)]
    given = examine([Log("ppo", "here")], detectors)
    assert names(list(given.findings)) == ["rust"]
    assert [(one.mode, one.why.split(":")[0]) for one in given.unchecked] == [
        (FIRE, f"its numbers are not what they should be ({kind}")
    ]
    assert given.checked == ((RUST, "here"),)


def test_a_log_gives_series_numbers_and_settings_or_says_what_it_has_not() -> None:
    lines = [MetricsLine(step, step / 10, {"a": step * 2.0} | ({"b": 1.0} if step == 3 else {})) for step in (1, 2, 3)]
    log = Log.of("ppo", "here", lines, final={"n": 5, "word": "x"}, config={"optim": {"learning_rate": 0.1}})
    assert log["a"].steps.tolist() == [1, 2, 3]
    assert (log["a"].first, log["a"].last, log["a"].tail(2).tolist(), len(log["b"])) == (2.0, 6.0, [4.0, 6.0], 1)
    assert log.number("n") == 5
    assert log.setting("optim.learning_rate") == 0.1
    for ask in (
        lambda: log["c"],
        lambda: log.number("word"),
        lambda: log.setting("optim.beta"),
        lambda: log.setting("x"),
    ):
        with pytest.raises(Missing):
            ask()
