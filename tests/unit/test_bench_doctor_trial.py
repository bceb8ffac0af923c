"""The trial of the doctor: cheap faults through the whole of it, what is kept, and what is counted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.doctor_trial import dials, page, rates, trial
from bench.doctor_trial.broken_code import mean_of_means
from bench.doctor_trial.case import Case, Record, Seen, by_command, examined
from bench.doctor_trial.finished_runs import made

from assay.doctor import direct
from assay.doctor.detector import DETECTORS, modes
from assay.doctor.foreign import Foreign
from assay.doctor.log import Log
from assay.pipeline.asking import ASKED
from assay.tracking.metrics import MetricsLine

CASES = trial.cases(seeds=1)


def case(mode: str) -> Case:
    return next(case for case in CASES.values() if case.modes == (mode,))


def record(group: Any = "fault", mode: str = "kl-blow-up", *found: tuple[str, str], **more: Any) -> Record:
    """As it is made of findings (mode, severity), all of them causes."""
    known = {mode.name: mode.family for mode in modes()}
    plain = Record(
        group=group,
        name=mode,
        modes=[mode] if group == "fault" else mode.split("+") if group == "pair" else [],
        what="a fault",
        seed=0,
        run="",
        learnt="",
        findings=[Seen(name, known[name], severity, "likely", "0.3") for name, severity in found],
        causes=[name for name, _ in found],
        answers={},
        standings={},
        seconds=1.0,
    )
    return replace(plain, **more)


def test_every_mode_is_injected_and_ten_pairs_are() -> None:
    injected = {case.modes[0] for case in CASES.values() if case.group == "fault"}
    assert len([mode for mode in modes() if mode.number <= page.CATALOGUE]) == 50
    assert injected == {mode.name for mode in modes()}
    assert sum(case.group == "pair" for case in CASES.values()) == 10


def test_the_names_of_cases_tell_seeds_and_faults_apart() -> None:
    faults = [case for case in trial.cases(seeds=3).values() if case.group == "fault"]
    assert len(faults) == 3 * len(trial.FAULTS)


@pytest.mark.parametrize(
    "mode", ["double-bos", "number-as-text", "boundary-tokens", "cannot-run", "steps-of-noise", "worse-than-before"]
)
def test_a_cheap_fault_is_named_first_and_its_record_survives_the_disk(mode: str, tmp_path: Path) -> None:
    (found,) = examined(case(mode))
    assert page.first(found)
    assert found.findings[0].mode == mode
    assert "found" in found.answers.values()
    trial.write(tmp_path / "kept.json", [found])
    assert trial.read(tmp_path / "kept.json") == [found]


def test_what_only_a_model_shows_is_named_first_by_the_doctors_command() -> None:
    @contextmanager
    def split_unevenly(folder: Path) -> Iterator[Path]:
        with mean_of_means(ASKED):
            yield made(folder, stages=["sft"], sft={"epochs": 1})

    mode = "accumulation-bias"
    (found,) = examined(Case("fault", mode, (mode,), "the mean of means", 0, by_command(split_unevenly)))
    assert page.first(found)
    assert found.answers == {"probe_batch.accumulation_bias": "found"}
    assert [key for key, value in found.standings.items() if value] == [
        "probe_batch.accumulation_bias: SPLIT_TOLERANCE"
    ]


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    kept, missing = case("double-bos"), case("number-as-text")
    marked = record("fault", "double-bos", what="kept from before")
    trial.write(tmp_path / f"{kept.key}.json", [marked])
    assert list(trial.finished([kept], tmp_path, workers=1, seeds=1)) == [[marked]]
    (made,) = (found for found in trial.finished([kept, missing], tmp_path, workers=1, seeds=1) if found != [marked])
    assert made[0].modes == ["number-as-text"]
    assert json.loads((tmp_path / f"{missing.key}.json").read_text())[0]["causes"] == ["number-as-text"]


def test_where_a_log_stands_is_its_own_number() -> None:
    """length_growth compares the lower end of the change with a multiple of the length before."""
    (dial,) = (dial for dial in dials.DIALS if dial.find is direct.length_growth)
    final = {"length_tokens_before": 10.0, "length_tokens_after": 24.0, "length_tokens_change": 14.0}
    log = Log("preference", "dpo", final=final | {"length_tokens_change_low": 12.0, "length_tokens_change_high": 16.0})
    assert dials.standing(dial, [log]) == pytest.approx((10 + 12) / 10, rel=0.02)
    assert dial.limit == direct.LONGER  # it is put back


def test_where_a_log_stands_below_a_limit() -> None:
    (dial,) = (dial for dial in dials.DIALS if dial.find is direct.chosen_falls and dial.name == "SHRUNK")
    harmless = {f"{name}_{end}": 0.0 for name in ("repetition", "truncated") for end in ("change", "change_low")}
    final = harmless | {"length_tokens_before": 10.0, "length_tokens_after": 3.0, "length_tokens_change_high": -6.0}
    lines = [MetricsLine(step, 0.0, {"eval/chosen_logprob": -10.0 * step}) for step in (1, 2)]
    assert dials.standing(dial, [Log.of("preference", "dpo", lines, final=final)]) == pytest.approx(0.4, rel=0.02)
    assert dials.standing(dial, [Log.of("preference", "dpo", lines[::-1], final=final)]) is None  # it has not fallen


def test_a_dial_is_turned_with_the_other_conditions_open() -> None:
    """Of a thing that has become twice as surprising as at first, by 5 nats, the second condition would say nothing."""
    (dial,) = (dial for dial in dials.DIALS if dial.key == "trl.both_fall: SURPRISE")
    sides = {f"train/{side}_logprob": -5.0 for side in ("chosen", "rejected")}
    lines = [
        MetricsLine(step, 0.0, {name: value * (1 + (step > 1)) for name, value in sides.items()})
        for step in range(1, 9)
    ]
    log = Foreign.of("preference", "dpo", lines)
    assert dials.standing(dial, [log]) == pytest.approx(2, rel=0.02)
    assert dials.standing(replace(dial, opened=()), [log]) is None


def test_every_dial_is_a_constant_of_its_detectors_file() -> None:
    for dial in dials.DIALS:
        assert all(hasattr(sys.modules[dial.module], name) for name, _ in dial.opened)
        assert min(dial.low, dial.high) <= dial.limit <= max(dial.low, dial.high), dial.key
    assert len({dial.key for dial in dials.DIALS}) == len(dials.DIALS)


def test_a_mode_is_named_first_only_if_every_injection_of_it_is() -> None:
    good, other = record("fault", "kl-blow-up", ("kl-blow-up", "red")), ("empty-answers", "red")
    second = record("fault", "kl-blow-up", other, ("kl-blow-up", "red"))
    (first, _), (near, _), *_ = page.shown([good]).values()
    assert (first, near) == (1, 1)
    (first, _), (near, _), *_ = page.shown([good, second]).values()
    assert (first, near) == (0, 1)
    (first, _), (near, _), *_ = page.shown([good, record("fault", "kl-blow-up", ("shortcut", "red"))]).values()
    assert (first, near) == (0, 0)


def test_a_red_healthy_run_a_second_amber_one_and_a_lost_cause_are_misses() -> None:
    def met(*records: Record) -> list[bool]:
        return [met for _, met in page.shown(records).values()]

    quiet = [record("healthy", "") for _ in range(19)]
    amber, red = (record("healthy", "", ("kl-blow-up", severity)) for severity in ("amber", "red"))
    pair = record("pair", "double-bos+split-leak", ("split-leak", "red"), ("double-bos", "red"))
    half = record("pair", "double-bos+split-leak", ("split-leak", "red"))
    assert met(*quiet, amber, *[pair] * 8, *[half] * 2)[2:] == [True, True, True, True]
    assert met(*quiet, red, *[pair] * 7, *[half] * 3)[2:] == [True, False, True, False]
    assert met(*quiet[1:], amber, amber, *[pair] * 8)[2:] == [True, True, False, True]
    assert met(*quiet, *[pair] * 8)[2:] == [False, True, True, True]


def test_modes_beyond_the_catalogue_have_a_table_of_their_own_and_count_for_nothing() -> None:
    good = record("fault", "kl-blow-up", ("kl-blow-up", "red"))
    beyond = record("fault", "no-anchor", ("shortcut", "red"))
    assert page.shown([good, beyond]) == page.shown([good])
    inside, outside = (list(page.fault_rows([good, beyond], beyond=side)) for side in (False, True))
    assert [(row[1], row[3]) for row in inside] == [("[kl-blow-up](../doctor/kl-blow-up.md)", "1 of 1")]
    assert [(row[1], row[3]) for row in outside] == [("[no-anchor](../doctor/no-anchor.md)", "0 of 1")]
    assert "of the fifty, 1 of 1:" in page.verdict([good, beyond])
    assert "beyond them, 0 of 1:" in page.verdict([good, beyond])


def test_a_recipe_is_no_healthy_run_and_what_is_said_of_it_is_a_false_alarm() -> None:
    name = "recipe.no_anchor"
    recipe = record("recipe", "dpo", ("no-anchor", "red"), modes=[], answers={name: "found"})
    assert page.shown([recipe]) == page.shown([])
    assert not page.right(recipe)
    assert [row[1] for row in page.recipe_rows([recipe])] == ["no-anchor (red): 0.3"]
    (row,) = (row for row in page.detector_rows([recipe]) if row[0] == name)
    assert row[3].startswith("1 of 1:")


def test_detectors_of_trls_logs_have_their_rates_elsewhere() -> None:
    told = [row[0] for row in page.detector_rows([])]
    assert told == [name for detector in DETECTORS if not (name := dials.detector_name(detector)).startswith("trl.")]


def test_rates_count_only_what_a_detector_was_asked() -> None:
    name = "kl.kl_blow_up"
    records = [
        record("fault", "kl-blow-up", answers={name: "found"}),
        record("fault", "kl-blow-up", answers={name: "silent"}),
        record("fault", "kl-blow-up", answers={name: "unchecked"}),
        record("fault", "kl-blow-up"),
        record("fault", "empty-answers", answers={name: "found"}),
        record("healthy", "", answers={name: "silent"}),
        record("healthy", "", answers={name: "unchecked"}),
    ]
    faults, healthy = page.of(records, "fault"), page.of(records, "healthy")
    (row,) = (row for row in rates.detector_rows(faults, healthy, page.OURS) if row[0] == name)
    assert row[2].startswith("1 of 2:")
    assert row[3].startswith("0 of 1:")


def test_thresholds_stand_between_healthy_runs_and_the_mildest_fault() -> None:
    (dial,) = (dial for dial in dials.DIALS if dial.key == "kl.kl_blow_up: KL_OVER_TARGET")
    found, silent = ({"kl.kl_blow_up": said} for said in ("found", "silent"))
    records = [
        record("fault", "kl-blow-up", answers=found, standings={dial.key: 40.0}),
        record("fault", "kl-blow-up", answers=found, standings={dial.key: 9.0}),
        record("fault", "kl-blow-up", answers=found, standings={dial.key: 1.0}),  # found by another limit
        record("fault", "kl-blow-up", answers=silent, standings={dial.key: 8.0}),  # held back by another condition
        record("fault", "empty-answers", answers=found, standings={dial.key: 5.0}),  # another mode
        record("healthy", "", standings={dial.key: 0.5}),
        record("healthy", "", standings={dial.key: 1.5}),
        record("healthy", "", standings={dial.key: None}),
    ]
    (row,) = rates.dial_rows(page.of(records, "fault"), page.of(records, "healthy"), [dial])
    assert row[2:] == ["above 3", "0.5 to 1.5", "9"]
