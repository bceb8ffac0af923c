"""A log that grows, read as the finished one is: said once, fatal only when new steps show it again, and cheap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.unit.doctor.policy_log import HEALTHY, Column, log, ramp, wave

from assay.doctor import monitor as monitors
from assay.doctor.detector import examine
from assay.doctor.finding import Finding
from assay.doctor.kl import KL_BLOW_UP
from assay.doctor.log import Log
from assay.doctor.monitor import VITAL, Monitor, window
from assay.tracking.metrics import MetricsLine

STEPS = 40
Lines = Sequence[dict[str, float]]


def lines(changes: Mapping[str, Column] | None = None, steps: int = STEPS) -> Lines:
    """The healthy log, stretched to so many steps, with other columns."""
    healthy = {name: stretched(column, steps) for name, column in HEALTHY.items()}
    columns = {**healthy, **{name: stretched(column, steps) for name, column in (changes or {}).items()}}
    return [{name: column[step] for name, column in columns.items()} for step in range(steps)]


def stretched(column: Column, steps: int) -> list[float]:
    if column is None or isinstance(column, int | float):
        return [float(column or 0)] * steps
    return np.interp(np.linspace(0, len(column) - 1, steps), range(len(column)), column).tolist()


class Watched:
    """A monitor, what it said, and where it became fatal."""

    def __init__(self, kind: str = "ppo", **config: Any) -> None:
        self.said: list[tuple[int, str]] = []
        self.monitor = Monitor(kind, "here", {"batch_size": 128, **config}, say=self.say, clock=lambda: 0.0)
        self.fatal_at: int | None = None

    def say(self, finding: Finding, step: int) -> None:
        self.said.append((step, finding.mode.name))

    def see(self, rows: Lines, start: int = 1) -> Watched:
        for step, row in enumerate(rows, start=start):
            self.monitor.see(step, row)
            if self.monitor.fatal and self.fatal_at is None:
                self.fatal_at = step
        return self


BLOWN = [0.0, *ramp(0.1, 2.0, 14), *wave(60.0, 4.0, STEPS - 15)]


@pytest.mark.parametrize("kind", ["ppo", "group"])
@pytest.mark.parametrize("steps", [12, STEPS, 200])
def test_nothing_is_said_of_a_healthy_run_at_any_step(kind: str, steps: int) -> None:
    seen = Watched(kind).see(lines(steps=steps))
    assert (seen.said, seen.monitor.fatal, seen.monitor.suspects) == ([], None, False)


def test_a_kl_that_runs_away_is_said_once_and_fatal_when_new_steps_show_it_again() -> None:
    seen = Watched(kl_target=6.0).see(lines({"objective/kl": BLOWN}))
    ((first, name),) = seen.said
    assert name == "kl-blow-up"
    assert 16 < first < 24
    assert seen.fatal_at is not None
    assert first + window(first) <= seen.fatal_at <= first + 2 * window(first)
    assert seen.monitor.fatal is not None
    assert seen.monitor.fatal.change == {"here.kl_coef": 0.05}
    sound = [seen.monitor.sound(step, seen.monitor.fatal.mode) for step in range(1, STEPS + 1)]
    assert sound == [True] * 15 + [False] * 25, "the KL of the 16th step is beyond what the run may have"


def test_a_kl_that_comes_back_in_time_is_said_and_not_fatal() -> None:
    back = [0.0, *ramp(0.1, 2.0, 14), *wave(60.0, 4.0, 6), *wave(3.0, 0.5, STEPS - 21)]
    seen = Watched(kl_target=6.0).see(lines({"objective/kl": back}))
    assert [name for _, name in seen.said] == ["kl-blow-up"]
    assert (seen.monitor.fatal, seen.monitor.suspects) == (None, False)


def test_what_is_said_of_a_whole_log_is_what_the_detectors_find_in_it() -> None:
    rows = lines({"objective/kl": BLOWN, "text/repetition": [0.01] * 10 + [0.4] * 30})
    whole = Log.of(
        "ppo", "here", [MetricsLine(n, 0.0, row) for n, row in enumerate(rows, 1)], config={"kl_target": 6.0}
    )
    said = {name for _, name in Watched(kl_target=6.0).see(rows).said}
    assert "kl-blow-up" in said
    assert said <= {finding.mode.name for finding in examine([whole]).findings}


def test_a_collapse_of_the_entropy_is_fatal_and_an_explosion_is_not() -> None:
    flat = {"objective/reward": wave(0.0, 0.3)}
    collapsed = Watched().see(lines({"objective/entropy": [0.8] * 12 + [0.02] * 28, **flat}))
    exploded = Watched().see(lines({"objective/entropy": [0.8] * 12 + [2.5] * 28, **flat}))
    assert {name for _, name in collapsed.said} == {name for _, name in exploded.said} == {"entropy-out-of-bounds"}
    assert collapsed.monitor.fatal is not None
    assert exploded.monitor.fatal is None


@pytest.mark.parametrize(("name", "fatal"), [("policy/loss", True), ("objective/kl", True), ("text/diversity", False)])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_said_at_once_and_fatal_where_training_follows_it(
    name: str, fatal: bool, odd: float
) -> None:
    rows = lines(steps=60)
    seen = Watched("group").see([*rows[:32], rows[32] | {name: odd}, *rows[33:]])
    assert seen.said == [(33, "not-finite")]
    assert seen.fatal_at == (33 if fatal else None)
    if seen.monitor.fatal:
        assert [seen.monitor.sound(step, seen.monitor.fatal.mode) for step in (1, 32, 33)] == [True, True, False]


@pytest.mark.parametrize("step", [*range(1, 13), 20, STEPS])
def test_every_step_of_a_healthy_run_is_sound(step: int) -> None:
    seen = Watched().see(lines())
    assert all(seen.monitor.sound(step, mode) for mode in VITAL)


def test_a_checkpoint_is_as_wrecked_as_the_line_of_its_step() -> None:
    """What made it so was said before, or is too new for any window of steps to show it."""
    wrecked = [0.0, 0.0, 0.0, *wave(129.0, 20.0, STEPS - 3)]
    seen = Watched().see(lines({"objective/kl": wrecked, "lengths/response_mean": 24.0}))
    assert [seen.monitor.sound(step, KL_BLOW_UP) for step in (1, 3, 4, 8)] == [True, True, False, False]
    for jumped, sound in ((1, [True, True, True]), (5, [True, False, False])):
        jumps = {
            "policy/approxkl_avg": [0.0, 0.0] + [2.4] * jumped + [0.01] * (38 - jumped),
            "policy/clipfrac_avg": [0.0, 0.0] + [0.26] * jumped + [0.01] * (38 - jumped),
        }
        seen = Watched().see(lines({**jumps, "objective/kl": [0.0] * 20 + [129.0] * 20}))
        assert [seen.monitor.sound(step, KL_BLOW_UP) for step in (2, 7, 8)] == sound


def loss(*values: float) -> Lines:
    return [{"train/loss": value} for value in values]


@pytest.mark.parametrize("kind", ["sft", "pretrain", "reward", "preference", "distill"])
def test_a_loss_above_where_it_began_is_fatal_and_one_that_falls_or_stays_is_not(kind: str) -> None:
    start = wave(2.0, 0.2, 10)
    blown = Watched(kind, optim={"learning_rate": 0.3}).see(loss(*start, *wave(1.5, 0.2, 20), *wave(6.0, 1.0, 40)))
    assert [name for _, name in blown.said] == ["loss-blow-up"]
    assert blown.monitor.fatal is not None
    assert blown.monitor.fatal.change == {"here.optim.learning_rate": 0.1}
    for healthy in (wave(1.0, 0.3, 60), wave(2.2, 0.6, 60), [*wave(1.5, 0.2, 30), 9.0, *wave(1.5, 0.2, 30)]):
        seen = Watched(kind).see(loss(*start, *healthy))
        assert (seen.said, seen.monitor.fatal) == ([], None)


@pytest.mark.parametrize("cut", [1, 7, 16, 19, 21, 25])
def test_a_monitor_that_is_resumed_stops_where_it_would_have_stopped(cut: int) -> None:
    rows = lines({"objective/kl": BLOWN})
    whole = Watched(kl_target=6.0).see(rows)
    resumed = Watched(kl_target=6.0)
    before = [MetricsLine(step, 0.0, row) for step, row in enumerate(rows[:cut], start=1)]
    resumed.monitor.restart(before, said=["kl-blow-up"])
    resumed.see(rows[cut:], start=cut + 1)
    assert resumed.said == []
    assert whole.monitor.fatal is not None
    for step in (5, 15, 16):
        assert resumed.monitor.sound(step, whole.monitor.fatal.mode) == (step <= 15)
    assert resumed.fatal_at == max(whole.fatal_at or 0, cut + 1)


def test_after_a_correction_a_run_has_two_windows_of_new_steps_to_recover_in() -> None:
    rows = lines({"objective/kl": [0.0, *wave(60.0, 4.0, STEPS - 1)]}, 120)
    corrected = Watched(kl_target=6.0)
    corrected.monitor.restart([MetricsLine(step, 0.0, row) for step, row in enumerate(rows[:60], 1)], after=60)
    assert corrected.monitor.fatal is None
    corrected.see(rows[60:], start=61)
    assert corrected.fatal_at is not None
    assert corrected.fatal_at >= 60 + 2 * window(60)


def test_before_a_tenth_of_the_steps_only_what_is_fatal_counts() -> None:
    rows = lines({"text/repetition": 0.5}, 60)
    for total, first in ((60, 6), (600, None)):
        seen = Watched()
        seen.monitor.total = total
        seen.see(rows[:59])
        assert [step for step, name in seen.said if name == "repetition"] == ([] if first is None else [first])


def test_a_long_log_is_examined_a_hundred_times_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    examined: list[int] = []

    def counted(evidence: Sequence[Log], detectors: Any) -> Any:
        examined.append(len(evidence[0]["train/loss"]))
        return examine(evidence, detectors)

    monkeypatch.setattr(monitors, "examine", counted)
    Watched("sft").see(loss(*[1.0] * 10_000))
    assert examined[:12] == list(range(1, 13))
    assert 80 < len(examined) < 110
    assert max(later / earlier for earlier, later in itertools.pairwise(examined[20:])) < 1.12


def test_what_is_not_vital_is_looked_for_within_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which an examination takes as long as ten steps of the stage."""
    now, full = 0.0, 0

    def slow(evidence: Sequence[Log], detectors: Sequence[Any]) -> Any:
        nonlocal now, full
        if len(detectors) > 5:  # more than the vital ones
            now, full = now + 10.0, full + 1
        return examine(evidence, detectors)

    monkeypatch.setattr(monitors, "examine", slow)
    monitor = Monitor("group", "here", {}, say=lambda finding, step: None, clock=lambda: now)
    for step, row in enumerate(lines(steps=2000), start=1):
        now += 1.0
        monitor.see(step, row)
    assert 2 <= full <= 1 + 0.01 * now / 10.0 + 1
    assert monitor.spent <= 0.01 * now + 10.0


def test_the_healthy_log_of_these_tests_is_the_one_that_the_detectors_are_tested_with() -> None:
    assert examine([log()]).findings == ()
