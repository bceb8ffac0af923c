"""A stage watched while it trains: the detectors that read its log afterwards read it while it grows.

    monitor.see(step, metrics)     after every line; says each new finding once
    monitor.fatal                  what makes going on useless, once that is sure
    monitor.sound(step, mode)      whether nothing of a fatal mode can be seen in the log up to a step

What is sure: a finding that nothing else explains away (`certain`), or that a whole window of new steps shows again.
When a log is examined depends on its length alone, so that a run that was killed and resumed stops where it would have
stopped; only findings that stop nothing may be looked for less often, to keep all of it below its share of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from assay.doctor import direct, groups, kl, responses, reward, sft, updates
from assay.doctor.detector import DETECTORS, examine
from assay.doctor.finding import Diagnosis, Finding, Mode, diagnosis
from assay.doctor.log import Columns, Log, Series
from assay.doctor.window import LATE
from assay.tracking.metrics import MetricsLine

FAMILIES = tuple(family.__name__ for family in (kl, updates, responses, groups, direct, reward, sft))
"""Files with detectors of logs that grow; what labels.py reads is the report of a stage that has ended."""
VITAL = frozenset({reward.NOT_FINITE, kl.KL_BLOW_UP, kl.ENTROPY_OUT_OF_BOUNDS, sft.LOSS_BLOW_UP})
"""Modes that can be fatal: looked for at every examination, whatever the time."""
AT_THE_END = frozenset(
    {
        *(reward.REWARD_AT_CHANCE, reward.AGAINST_MARGIN, reward.FLUCTUATING, reward.LENGTH_BIAS),
        *(updates.BAD_CRITIC, direct.SATURATED),
    }
)
"""Modes that judge what was learnt: a run that is under way has not learnt it yet."""
SETTLED = 0.1
"""Share of the steps before which only fatal findings count: warmup, and a stage that has hardly begun."""
SPACING = 10
"""An examination when a log has grown by a tenth: soon at first, and a hundred of them in ten thousand steps."""
SHARE = 0.01
"""Of a stage's time, for what is not vital: half of what all monitoring may cost."""


class Monitor:
    """Watches one stage. `say` gets one line for each new finding; `clock` gives seconds."""

    def __init__(
        self,
        kind: str,
        where: str,
        config: Mapping[str, Any],
        *,
        say: Callable[[Finding, int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.kind, self.where, self.config = kind, where, config
        self.total: int | None = None
        """Steps of the stage, once it is known."""
        self.spent = 0.0
        """Seconds that monitoring took."""
        reads = [d for d in DETECTORS if d.find.__module__ in FAMILIES and kind in (d.kinds or (kind,))]
        self._vital = [d for d in reads if VITAL.intersection(d.modes)]
        self._others = [d for d in reads if not (VITAL | AT_THE_END).intersection(d.modes)]
        self._say, self._clock, self._began = say, clock, clock()
        self.restart([])

    def restart(self, lines: Iterable[MetricsLine], *, after: int = -1, said: Iterable[str] = ()) -> None:
        """Begin with the lines of a log that is resumed; what was shown until step `after` was corrected since.

        `said` are names of modes that the user has been told of.
        """
        self.fatal: Finding | None = None
        self._columns = Columns()
        self._lines, self._next, self._fresh = 0, 1, 0
        self._seen: dict[str, int] = {}
        self._said = set(said)
        for line in lines:
            self._add(line.step, line.values)
            self._look(line.step, vital_only=True)
            if line.step <= after:
                self.fatal, self._fresh = None, self._lines
                self._seen.clear()

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in one line, examine the log if that is due, and say what is new."""
        began = self._clock()
        self._add(step, metrics)
        found = self._look(step, vital_only=self.spent > SHARE * (began - self._began))
        for finding in found.causes:
            if finding.mode.name not in self._said and self._worth_saying(finding):
                self._said.add(finding.mode.name)
                self._say(finding, step)
        self.spent += self._clock() - began

    def sound(self, step: int, mode: Mode) -> bool:
        """Whether the log up to a step shows nothing red of a mode, or of one that brings it about.

        Detectors judge many lines together and see what is fatal late, though a checkpoint is as wrecked as the line of
        its own step says. So they are also asked about a log that went on for ever as in that line.
        """
        logs = [
            Log(
                self.kind,
                self.where,
                {name: cut(s, step) for name, s in self._columns.series().items()},
                config=self.config,
            )
            for cut in (_until, _held)
        ]
        found = examine(logs[:1], [*self._vital, *self._others]).findings
        trouble = [one for one in found if one.severity == "red" and (one.mode == mode or mode.name in one.mode.brings)]
        return not (trouble or any(one.fatal for one in examine(logs[1:], self._vital).findings))

    @property
    def suspects(self) -> bool:
        """Whether something fatal was seen that is not sure yet."""
        return bool(self._seen)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        self._columns.add(step, values)
        self._lines += 1
        if not all(map(math.isfinite, values.values())):
            self._next = self._lines

    def _look(self, step: int, *, vital_only: bool) -> Diagnosis:
        """What the log shows now; nothing between two examinations."""
        if self._lines < self._next:
            return diagnosis([])
        self._next = self._lines + max(1, self._lines // SPACING)
        log = Log(self.kind, self.where, self._columns.series(), config=self.config)
        early = self.total is not None and step < SETTLED * self.total
        found = examine([log], self._vital if vital_only or early else [*self._vital, *self._others])
        fatal = {finding.mode.name: finding for finding in found.findings if finding.fatal}
        self._seen = {name: self._seen.get(name, self._lines) for name in fatal if self._window_since(self._fresh)}
        for name, finding in fatal.items():
            if self.fatal is None and (finding.sureness == "certain" or self._again(name)):
                self.fatal = finding
        return found

    def _worth_saying(self, finding: Finding) -> bool:
        """A mere possibility waits for the end of the run, or, if it is fatal, until it is seen again."""
        return finding.sureness != "possible" or self._again(finding.mode.name)

    def _again(self, name: str) -> bool:
        """Whether what a mode shows now was shown before by other steps."""
        return name in self._seen and self._window_since(self._seen[name])

    def _window_since(self, line: int) -> bool:
        """Whether the steps that are judged all came after a line."""
        return line == 0 or self._lines - line >= window(self._lines)


def window(lines: int) -> int:
    """How many of the last steps detectors judge."""
    return max(LATE, lines // 4)


def _until(series: Series, step: int) -> Series:
    """A metric up to a step."""
    kept = series.steps <= step
    odd = tuple(odd for odd in series.not_finite if odd <= step)
    return Series(series.name, series.steps[kept], series.values[kept], odd)


def _held(series: Series, step: int) -> Series:
    """The same, and its last value over and over, until detectors judge nothing but that."""
    known = _until(series, step)
    more = max(2 * LATE, len(known) // 3 + 1) if len(known) else 0
    values = np.concatenate([known.values, known.tail(1).repeat(more)])
    return Series(series.name, np.concatenate([known.steps, step + 1 + np.arange(more)]), values, known.not_finite)
