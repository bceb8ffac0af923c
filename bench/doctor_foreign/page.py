"""docs/results/doctor_foreign.md, of what the doctor said of runs of TRL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import common
from bench.doctor_foreign.runs import NEWEST, TABLES, VERSIONS, Seen, first
from bench.doctor_trial import rates
from bench.doctor_trial.dials import DIALS, detector_name

from assay.doctor.detector import DETECTORS, Detector
from assay.doctor.foreign import NOT_LOGGED, Foreign

ASKED = """
Each run is read three times, from its trainer_state.json and from two tables, and counts once: a detector has found
something if it has in any of them. A fault that may show in several ways counts for the detectors of the way that it is
made for.
"""
TURNED = """
Where a detector has two conditions, the other is open meanwhile: a healthy run may be beyond one of them, and none is
beyond both. One half, where a guess lies, and a margin of 0 are no thresholds; nor is how many lines a judgement takes.
"""
TABLE = ("table", "what is in it", "faults: the same mode first", "healthy: green")


def text(facts: Mapping[str, Any], seen: Sequence[Seen]) -> str:
    healthy, faulty = [one for one in seen if not one.modes], [one for one in seen if one.modes]
    asked = [detector for detector in DETECTORS if any(answered(detector, one) for one in seen)]
    theirs = [detector for detector in asked if detector.evidence is Foreign]
    others = [detector for detector in asked if detector.evidence is not Foreign]
    dials = [dial for dial in DIALS if dial.detector in theirs]
    return f"""# The doctor on logs of TRL

{common.origin_text(facts)}
Trainers of `{NEWEST}`, and of `{VERSIONS["ppo"]}` for PPO, train a model of two layers on prompts that ask for colours;
people, and the reward function, like blue. A fault changes one thing in an otherwise healthy run. `assay doctor` reads
the trainer_state.json that is left, and knows nothing else of the run.

Of {len(faulty)} runs, {len({one.fault for one in faulty})} faults with each seed,
{rates.rate(sum(one.right for one in faulty), len(faulty))} are named first; of {len(healthy)} healthy runs
{rates.rate(sum(one.right for one in healthy), len(healthy))} are green.

## Faults

*Seen* is of the first seed.

{common.table(("trainer", "fault", "named first", "of", "beside it", "seen"), list(fault_rows(faulty)))}
## Healthy runs

{common.table(("trainer", "run", "seeds", "green", "named"), list(healthy_rows(healthy)))}
## The same numbers in a table

Every log is also written as a .csv with TRL's names. No table tells the size of a batch.

{common.table(TABLE, list(table_rows(faulty, healthy)))}
What a table says otherwise:

{common.table(("trainer", "run", "table", "trainer_state.json", "the table"), list(otherwise_rows(seen)))}
## Every detector of TRL's logs
{rates.DETECTED}{ASKED}
{common.table(rates.DETECTORS, list(rates.detector_rows(faulty, healthy, theirs)))}
Detectors of Assay's own logs, where they can read TRL's:

{common.table(rates.DETECTORS, list(rates.detector_rows(faulty, healthy, others)))}
## Every threshold of theirs
{rates.LIMITS}{TURNED}
{common.table(rates.DIALS, list(rates.dial_rows(faulty, healthy, dials)))}
## What a log of TRL's can show

Modes that were looked for in the healthy run, and those for which its trainer logs nothing; what only lacks more
lines is in neither column.

{common.table(("trainer", "looked for", NOT_LOGGED), list(coverage(healthy)))}"""


def answered(detector: Detector, one: Seen) -> bool:
    """Whether the detector could say anything of the run."""
    return one.answers.get(detector_name(detector), "unchecked") != "unchecked"


def runs_of(seen: Sequence[Seen]) -> Iterator[list[Seen]]:
    """The runs of each fault, and of each kind of healthy run, by their seeds."""
    for fault in dict.fromkeys(one.fault for one in seen):
        yield [one for one in seen if one.fault is fault]


def fault_rows(faulty: Sequence[Seen]) -> Iterator[list[str]]:
    """First findings of another mode than the right one are in italics."""
    for seeds in runs_of(faulty):
        one, findings = seeds[0], seeds[0].said.diagnosis.findings
        named = dict.fromkeys(seed.first if seed.right else f"*{seed.first or 'nothing'}*" for seed in seeds)
        beside = dict.fromkeys(f.mode.name for s in seeds for f in s.said.diagnosis.findings if f.mode.name != s.first)
        evidence = findings[0].evidence.replace("|", "\\|") if findings else "–"
        ended = f"; the trainer ended with {one.failed.splitlines()[0][:80]}" if one.failed else ""
        yield [
            one.fault.trainer,
            one.fault.name,
            ", ".join(named),
            f"{sum(seed.right for seed in seeds)} of {len(seeds)}",
            ", ".join(beside) or "–",
            evidence + ended,
        ]


def healthy_rows(healthy: Sequence[Seen]) -> Iterator[list[str]]:
    for seeds in runs_of(healthy):
        named = dict.fromkeys(
            f"{found.mode.name} ({found.severity}, seed {one.seed}): {found.evidence}".replace("|", "\\|")
            for one in seeds
            for found in one.said.diagnosis.findings
        )
        green = f"{sum(one.right for one in seeds)} of {len(seeds)}"
        numbers = ", ".join(str(one.seed) for one in seeds)
        yield [seeds[0].fault.trainer, seeds[0].fault.name, numbers, green, "; ".join(named) or "–"]


def table_rows(faulty: Sequence[Seen], healthy: Sequence[Seen]) -> Iterator[list[str]]:
    for name, what in TABLES.items():
        same = sum(first(one.tables[name]) == one.first for one in faulty)
        green = sum(not first(one.tables[name]) for one in healthy)
        yield [name, what, f"{same} of {len(faulty)}", f"{green} of {len(healthy)}"]


def otherwise_rows(seen: Sequence[Seen]) -> Iterator[list[str]]:
    for one in seen:
        for name, said in one.tables.items():
            if first(said) != one.first:
                yield [
                    one.fault.trainer,
                    f"{one.fault.name}, seed {one.seed}",
                    name,
                    one.first or "nothing",
                    first(said) or "nothing",
                ]


def coverage(healthy: Sequence[Seen]) -> Iterator[list[str]]:
    """By trainer: modes that were looked for, and modes that its log can never show."""
    for one in {one.fault.trainer: one for one in healthy}.values():
        given = one.said.diagnosis
        checked = dict.fromkeys(mode.name for mode, _ in given.checked)
        never = dict.fromkeys(unchecked.mode.name for unchecked in given.unchecked if unchecked.why == NOT_LOGGED)
        yield [one.fault.trainer, ", ".join(checked), ", ".join(never)]
