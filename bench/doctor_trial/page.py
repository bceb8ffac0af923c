"""docs/results/doctor.md and doctor.json, of the records of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench import common
from bench.doctor_trial import rates
from bench.doctor_trial.case import Record
from bench.doctor_trial.dials import DIALS

from assay.doctor.detector import DETECTORS, modes
from assay.doctor.finding import Mode
from assay.doctor.foreign import Foreign

NEEDED_FIRST, NEEDED_BOTH, MOST_AMBER = 48, 8, 1
"""Of 50 modes, of 10 pairs, of 20 healthy runs."""
RUNS = 20
CATALOGUE = 50
"""Modes up to this number are the catalogue's; those beyond it were met on the way."""

METHOD = """
A mode counts as named first when every injection of it, with every seed, is: the first finding of the diagnosis has
that mode. Injections are real runs of the stages, real files through the loader, and, for what only models show, small
finished runs that are examined as `assay doctor RUN` examines them, of toy tasks that take seconds; nothing is a
made-up log. What shows before a run is put into the recipe of such a run, which is examined as `assay doctor RECIPE`
does. Each is examined by all detectors. A seed changes data, initial heads, batches and samples. Healthy runs come
from the same toy with models of four sizes, from the embedded world through `assay run`
(bench/doctor_trial/healthy.yaml), and from the small run that faults are put into.
"""
ELSEWHERE = "Those that read the logs of TRL's trainers are in [doctor_foreign.md](doctor_foreign.md).\n"
OURS = [detector for detector in DETECTORS if detector.evidence is not Foreign]
"""Detectors of what Assay itself makes."""
RECIPES = """
Recipes that are shipped, before they run, as `assay doctor RECIPE` looks at them; only their models are not asked, as
those of the healthy runs are. `overoptimisation` is not among them: it does without an anchor on purpose, and is
injected above.
"""


def text(facts: Mapping[str, Any], records: Sequence[Record]) -> str:
    faults, healthy = of(records, "fault"), of(records, "healthy")
    return "".join(
        [
            "# The doctor on trial\n\n",
            common.origin_text(facts),
            f"{facts['processor_minutes']:g} minutes of one core in all.\n",
            METHOD,
            "\n## What it must show\n\n",
            verdict(records),
            "\n## Fifty modes, one at a time\n\n",
            fault_table(records, beyond=False),
            "\n## Modes beyond the fifty\n\n",
            fault_table(records, beyond=True),
            "\n## Two at once\n\n",
            common.table(["modes", "injected", "named as causes", "both"], list(pair_rows(records))),
            "\n## Healthy runs\n\n",
            common.table(["task", "seed", "run", "learnt", "findings"], list(healthy_rows(records))),
            "\n## Healthy recipes\n",
            RECIPES,
            "\n",
            common.table(["recipe", "findings"], list(recipe_rows(records))),
            "\n## Every detector\n",
            rates.DETECTED,
            ELSEWHERE,
            "\n",
            common.table(rates.DETECTORS, list(detector_rows(records))),
            "\n## Every threshold\n",
            rates.LIMITS,
            "\n",
            common.table(
                rates.DIALS, list(rates.dial_rows(faults, healthy, [dial for dial in DIALS if dial.detector in OURS]))
            ),
        ]
    )


def numbers(facts: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """The same, for programs."""
    return {
        "origin": dict(facts),
        "must_show": {name: value for name, (value, _) in shown(records).items()},
        "records": [record.to_json() for record in sorted(records, key=lambda r: (r.group, r.name, r.seed, r.run))],
    }


def line(record: Record) -> str:
    """One record, as progress."""
    found = ", ".join(f"{finding.mode} ({finding.severity})" for finding in record.findings) or "nothing"
    where = " ".join(part for part in (record.group, record.name, f"seed {record.seed}", record.run) if part)
    return f"{'ok ' if right(record) else 'BAD'} {record.seconds:5.1f} s  {where}: {found}"


def right(record: Record) -> bool:
    """Whether the doctor said what it should."""
    if record.group == "fault":
        return first(record)
    return set(record.modes) <= set(record.causes) if record.group == "pair" else not record.findings


def first(record: Record) -> bool:
    return bool(record.findings) and record.findings[0].mode == record.modes[0]


def family(record: Record) -> bool:
    """Whether anything of the right kind is found."""
    known = {mode.name: mode.family for mode in modes()}
    return any(finding.family == known[record.modes[0]] for finding in record.findings)


def of(records: Iterable[Record], group: str) -> list[Record]:
    return [record for record in records if record.group == group]


def by_mode(records: Sequence[Record]) -> dict[Mode, list[Record]]:
    """Injections of every mode of the catalogue, and of those beyond it that have one."""
    faults = of(records, "fault")
    found = {mode: [record for record in faults if mode.name in record.modes] for mode in modes()}
    return {mode: injected for mode, injected in found.items() if injected or mode.number <= CATALOGUE}


def shown(records: Sequence[Record]) -> dict[str, tuple[int, bool]]:
    """What the trial must show → what it came to, and whether that is enough."""
    healthy = of(records, "healthy")
    faults = {mode: injected for mode, injected in by_mode(records).items() if mode.number <= CATALOGUE}
    named = sum(bool(found) and all(map(first, found)) for found in faults.values())
    near = sum(bool(found) and all(map(family, found)) for found in faults.values())
    reds = sum(any(f.severity == "red" for f in r.findings) for r in healthy)
    ambers = sum(any(f.severity == "amber" for f in r.findings) for r in healthy)
    both = sum(map(right, of(records, "pair")))
    return {
        f"modes named first, of {len(faults)} (at least {NEEDED_FIRST})": (named, named >= NEEDED_FIRST),
        f"modes with a finding of the same family, of {len(faults)} (all)": (near, near == len(faults)),
        f"healthy runs, at least {RUNS}": (len(healthy), len(healthy) >= RUNS),
        "red in healthy runs (none)": (reds, reds == 0),
        f"amber in healthy runs (at most {MOST_AMBER} in {RUNS})": (ambers, ambers * RUNS <= MOST_AMBER * len(healthy)),
        f"pairs with both causes named, of {len(of(records, 'pair'))} (at least {NEEDED_BOTH})": (
            both,
            both >= NEEDED_BOTH,
        ),
    }


def verdict(records: Sequence[Record]) -> str:
    rows = [[what, f"{value}", "met" if met else "**missed**"] for what, (value, met) in shown(records).items()]
    return common.table(["", "", ""], rows) + (
        f"\nNamed first are, of the injections of the fifty, {alone(records, beyond=False)}; of those of modes beyond "
        f"them, {alone(records, beyond=True)}.\n"
    )


def alone(records: Sequence[Record], *, beyond: bool) -> str:
    """How many injections are named first, of modes of the catalogue, or of those beyond it."""
    of_modes = [found for mode, found in by_mode(records).items() if (mode.number > CATALOGUE) == beyond]
    found = [record for some in of_modes for record in some]
    return f"{rates.rate(sum(map(first, found)), len(found))}, {len({r.name for r in found})} faults with each seed"


def fault_table(records: Sequence[Record], *, beyond: bool) -> str:
    """Of the modes of the catalogue, or of those beyond it."""
    heads = ["", "mode", "injected", "named first", "same family", "named beside it"]
    return common.table(heads, list(fault_rows(records, beyond=beyond)))


def fault_rows(records: Sequence[Record], *, beyond: bool) -> Iterator[list[str]]:
    for mode, found in by_mode(records).items():
        if (mode.number > CATALOGUE) != beyond:
            continue
        for name in dict.fromkeys(record.name for record in sorted(found, key=lambda r: r.name)):
            these = [record for record in found if record.name == name]
            beside = {f.mode for record in these for f in record.findings} - {mode.name}
            yield [
                str(mode.number),
                f"[{mode.name}](../doctor/{mode.name}.md)",
                these[0].what,
                f"{sum(map(first, these))} of {len(these)}",
                f"{sum(map(family, these))} of {len(these)}",
                ", ".join(sorted(beside)) or "–",
            ]


def pair_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    for record in sorted(of(records, "pair"), key=lambda r: r.name):
        both = "yes" if right(record) else "**no**"
        yield [", ".join(record.modes), record.what, ", ".join(record.causes) or "–", both]


def healthy_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    for record in sorted(of(records, "healthy"), key=lambda r: (r.name, r.seed)):
        yield [record.what, str(record.seed), record.run, record.learnt, told(record)]


def recipe_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    for record in sorted(of(records, "recipe"), key=lambda r: r.name):
        yield [record.what, told(record)]


def told(record: Record) -> str:
    """All findings of what is healthy."""
    return "; ".join(f"{f.mode} ({f.severity}): {f.evidence}" for f in record.findings) or "–"


def detector_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    healthy = [*of(records, "healthy"), *of(records, "recipe")]
    return rates.detector_rows(of(records, "fault"), healthy, OURS)
