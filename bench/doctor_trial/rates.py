"""What detectors are worth, for the pages that show it: how often each finds its fault, and the room of thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from bench import common
from bench.doctor_trial.dials import Dial, detector_name

from assay.doctor.detector import Detector
from assay.statistics import wilson

DETECTORS = ("detector", "modes", "detected", "false alarms")
"""Columns of `detector_rows`."""
DIALS = ("threshold", "what is compared", "a finding", "healthy runs", "mildest faulty")
"""Columns of `dial_rows`."""
DETECTED = """
A detector is a function. *Detected* is the share of injections of its modes, among those it was given evidence of, in
which it found one of them; *false alarms* the share of healthy runs that it could read and found something in. In
brackets are 95 % intervals (Wilson). The injections of one fault with several seeds resemble each other, so that the
intervals are those of this trial's faults, not of all that may happen.
"""
LIMITS = """
Where a run stands is found by turning the threshold, all else being equal, until the detector's answer changes.
*Healthy runs* is the range of all of them; *mildest faulty* the injection of the detector's own mode nearest to
silence, of those it is found in. Between the two lies the room that the threshold has. A dash means that no value of it
makes such runs a finding, as other conditions hold them back, or that there are none.
"""


class Judged(Protocol):
    """What was said of a run with one fault, or of a healthy one."""

    @property
    def modes(self) -> Sequence[str]:
        """Of the fault."""
        ...

    @property
    def answers(self) -> Mapping[str, str]:
        """By detector, of those that read something here: found, silent or unchecked."""
        ...

    @property
    def standings(self) -> Mapping[str, float | None]:
        """By dial."""
        ...


def rate(count: int, of_all: int) -> str:
    """A share with its interval."""
    if not of_all:
        return "–"
    seen = wilson(count, of_all)
    return f"{count} of {of_all}: {common.interval(seen.named('share'), 'share')}"


def detector_rows(
    faulty: Sequence[Judged], healthy: Sequence[Judged], detectors: Sequence[Detector]
) -> Iterator[list[str]]:
    for detector in detectors:
        name, own = detector_name(detector), {mode.name for mode in detector.modes}
        asked = answers(name, [record for record in faulty if own & set(record.modes)])
        quiet = answers(name, healthy)
        yield [
            name,
            ", ".join(mode.name for mode in detector.modes),
            rate(asked.count("found"), len(asked)),
            rate(quiet.count("found"), len(quiet)),
        ]


def answers(detector: str, records: Sequence[Judged]) -> list[str]:
    """What it said wherever it could say anything."""
    return [said for r in records if (said := r.answers.get(detector, "unchecked")) != "unchecked"]


def dial_rows(faulty: Sequence[Judged], healthy: Sequence[Judged], dials: Sequence[Dial]) -> Iterator[list[str]]:
    for dial in dials:
        name, own = detector_name(dial.detector), {mode.name for mode in dial.detector.modes}
        theirs = [record for record in faulty if own & set(record.modes) and record.answers.get(name) == "found"]
        found = [value for value in known(dial, theirs) if (value > dial.limit) == dial.above]
        mildest = min if dial.above else max
        yield [
            dial.key,
            dial.what,
            f"{'above' if dial.above else 'below'} {dial.limit:.3g}",
            span(known(dial, healthy)),
            f"{mildest(found):.2g}" if found else "–",
        ]


def known(dial: Dial, records: Sequence[Judged]) -> list[float]:
    return [value for record in records if (value := record.standings.get(dial.key)) is not None]


def span(values: Sequence[float]) -> str:
    """From the smallest to the largest."""
    low, high = (f"{end(values, default=0):.2g}" for end in (min, max))
    return "–" if not values else low if low == high else f"{low} to {high}"
