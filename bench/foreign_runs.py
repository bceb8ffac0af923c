"""What `assay doctor` says of real runs of TRL, healthy and with a fault put in: docs/results/doctor_foreign.md.

    make doctor-foreign                      →  docs/results/doctor_foreign.md; half an hour on two cores
    make doctor-foreign TRAINERS="ppo dpo"   →  those alone, on the screen

TRL's own trainers train a model of a few thousand weights on answers of coloured words, in TRL's own environment; the
doctor reads the trainer_state.json that each run leaves, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.peers import trl_logs
from bench.race.sides import environment, side

from assay.doctor.examination import Examination, examination
from assay.doctor.foreign import NOT_LOGGED
from assay.models.scratch import new_model, train_tokenizer

PAGE = common.ROOT / "docs" / "results" / "doctor_foreign.md"
FOLDER = common.ROOT / ".bench" / "foreign"
VERSIONS = {"ppo": "trl==1.10.0"}
"""The last release with PPO; everything else runs in the newest."""
NEWEST = "trl==1.16.0"
SEEDS = (0, 1)
"""Of the healthy runs; a fault has the first."""
ONCE = {"num_train_epochs": 1}
BASE: Mapping[str, Mapping[str, Any]] = {
    "reward": {"rows": 960, "batch": 16, "learning_rate": 5e-3, "noise": 0.1, "evaluate_every": 20, "settings": ONCE},
    "sft": {"rows": 512, "batch": 16, "learning_rate": 3e-3, "evaluate_every": 8, "settings": ONCE},
    "dpo": {"rows": 640, "batch": 16, "learning_rate": 3e-4, "noise": 0.1, "settings": ONCE},
    "grpo": {"rows": 20, "batch": 16, "learning_rate": 3e-4, "settings": {"beta": 0.04, "max_steps": 24}},
    "ppo": {"rows": 20, "batch": 16, "learning_rate": 3e-4, "settings": {"kl_coef": 0.05}},
}
"""What a healthy run of each trainer is told, PPO's after the reward model that it follows; `rows` are prompts a colour
pair for GRPO, and steps for PPO."""


@dataclass(frozen=True)
class Fault:
    """One fault, what it changes, and the modes of which one should be named first."""

    trainer: str
    name: str
    modes: Sequence[str]
    change: Mapping[str, Any] = field(default_factory=dict)


def faster(trainer: str, times: float) -> dict[str, Any]:
    return {"learning_rate": BASE[trainer]["learning_rate"] * times}


FAULTS = (
    Fault("sft", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("sft", 1000)),
    Fault("sft", "learning rate 0", ("nothing-moves",), faster("sft", 0)),
    Fault(
        "sft",
        "16 demonstrations, 40 epochs",
        ("overfitting",),
        {"rows": 16, "settings": {"num_train_epochs": 40}},
    ),
    Fault("reward", "labels at random", ("reward-at-chance",), {"labels": "random"}),
    Fault("reward", "learning rate 0", ("reward-at-chance", "nothing-moves"), faster("reward", 0)),
    Fault("reward", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("reward", 1000)),
    Fault("reward", "head of zeros", ("constant-scores",), {"unit": 0.0}),
    Fault("reward", "scores + 65", ("score-drift",), {"offset": 65.0}),
    Fault("reward", "16 pairs to evaluate on", ("fluctuating-accuracy",), {"held_out": 16, "evaluate_every": 4}),
    Fault("dpo", "learning rate 0", ("stuck-at-ln2", "nothing-moves"), faster("dpo", 0)),
    Fault("dpo", "learning rate × 1000", ("loss-blow-up", "not-finite"), faster("dpo", 1000)),
    Fault("dpo", "chosen ends with a phrase", ("saturated-early",), {"phrase": " thanks", **faster("dpo", 10)}),
    Fault("grpo", "learning rate 0", ("nothing-moves",), faster("grpo", 0)),
    Fault("grpo", "learning rate × 1000", ("kl-blow-up", "entropy-out-of-bounds", "not-finite"), faster("grpo", 1000)),
    Fault("grpo", "reward 0", ("nothing-moves", "groups-without-signal"), {"unit": 0.0}),
    Fault("grpo", "no end token taught", ("never-stops",), {"model": "endless"}),
    Fault("ppo", "learning rate 0", ("nothing-moves",), faster("ppo", 0)),
    Fault(
        "ppo",
        "learning rate × 1000",
        ("ratio-spikes", "kl-blow-up", "entropy-out-of-bounds", "not-finite"),
        faster("ppo", 1000),
    ),
    Fault(
        "ppo",
        "kl_coef 0, learning rate × 30, reward × 10",
        ("kl-blow-up", "ratio-spikes"),
        {"settings": {"kl_coef": 0.0}, "unit": 10.0, **faster("ppo", 30)},
    ),
    Fault("ppo", "no end token taught", ("never-stops",), {"model": "endless"}),
)


@dataclass(frozen=True)
class Seen:
    """A run, and what the doctor said of its log."""

    trainer: str
    name: str
    seed: int
    modes: Sequence[str]
    """Of which one should be named first; none for a healthy run."""
    said: Examination
    failed: str

    @property
    def first(self) -> str:
        causes = self.said.diagnosis.causes
        return causes[0].mode.name if causes else ""

    @property
    def right(self) -> bool:
        return self.first in self.modes if self.modes else not self.first


def taught(folder: Path, *, end: bool) -> None:
    """A model of two layers that answers prompts with colours; and ends its answers, if that is taught."""
    rng = random.Random(0)
    texts = [(rng.choice(trl_logs.PROMPTS), trl_logs.answer(rng)) for _ in range(1600)]
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in texts], 330)
    model = new_model("llama", layers=2, width=64, heads=4, max_length=64, tokenizer=tokenizer, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for first in range(0, len(texts), 16):
        last = str(tokenizer.eos_token) if end else ""
        batch = tokenizer(
            [prompt + answer + last for prompt, answer in texts[first : first + 16]], return_tensors="pt", padding=True
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def runs(trainer: str) -> Iterator[tuple[Fault, int]]:
    """Healthy ones first."""
    yield from ((Fault(trainer, "healthy", ()), seed) for seed in SEEDS)
    yield from ((fault, SEEDS[0]) for fault in FAULTS if fault.trainer == trainer)


def made(trainer: str) -> Iterator[Seen]:
    """Train all runs of a trainer in TRL's environment, and ask the doctor about each."""
    jobs: list[tuple[Fault, int, dict[str, Any]]] = []
    for number, (fault, seed) in enumerate(runs(trainer)):
        run = {**BASE[trainer], **fault.change, "trainer": trainer, "seed": seed}
        run["settings"] = {**BASE[trainer].get("settings", {}), **fault.change.get("settings", {})}
        run["model"], run["reward"] = str(FOLDER / run.get("model", "base")), str(FOLDER / "reward-model")
        if trainer == "reward" and number == 0:
            run["save"] = run["reward"]
        jobs.append((fault, seed, run | {"folder": str(FOLDER / f"{trainer}-{number}")}))
    waiting = [run for _, _, run in jobs if not finished(run)]
    if waiting:
        python = environment(VERSIONS.get(trainer, NEWEST))
        side([str(python), "-m", "bench.peers.trl_logs"], {"runs": waiting}, FOLDER / f"{trainer}-job")
    for fault, seed, run in jobs:
        failed = json.loads((Path(run["folder"]) / "run.json").read_text(encoding="utf-8"))["failed"]
        yield Seen(trainer, fault.name, seed, fault.modes, examination(Path(run["folder"])), failed)


def finished(run: Mapping[str, Any]) -> bool:
    """Whether it was trained before, with the same settings."""
    file = Path(run["folder"]) / "run.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["run"] == run


def page(seen: Sequence[Seen]) -> str:
    healthy, faults = [one for one in seen if not one.modes], [one for one in seen if one.modes]
    return f"""# The doctor on logs of TRL

{common.origin_text(common.origin("make doctor-foreign"))}
Trainers of `{NEWEST}`, and of `{VERSIONS["ppo"]}` for PPO, train a model of two layers on prompts that ask for colours;
people, and the reward function, like blue. A fault changes one thing in an otherwise healthy run. `assay doctor` reads
the trainer_state.json that is left, and knows nothing else of the run.

Of {len(faults)} faults {sum(one.right for one in faults)} are named first; of {len(healthy)} healthy runs
{sum(one.right for one in healthy)} are green.

## Faults

{common.table(("trainer", "fault", "named first", "beside it", "seen"), [row(one) for one in faults])}
## Healthy runs

{common.table(("trainer", "run", "named first", "beside it", "seen"), [row(one) for one in healthy])}
## What a log of TRL's can show

Modes that were looked for in the healthy run, and those for which its trainer logs nothing; what only lacks more
lines is in neither column.

{common.table(("trainer", "looked for", NOT_LOGGED), list(coverage(healthy)))}"""


def row(one: Seen) -> list[str]:
    """A run as a line of its table; a first finding of another mode than the right one is in italics."""
    findings = one.said.diagnosis.findings
    beside = dict.fromkeys(found.mode.name for found in findings if found.mode.name != one.first)
    named = (one.first if one.right else f"*{one.first or 'nothing'}*") or "– (green)"
    evidence = findings[0].evidence.replace("|", "\\|") if findings else "–"
    ended = f"; the trainer ended with {one.failed.splitlines()[0][:80]}" if one.failed else ""
    return [one.trainer, f"{one.name}, seed {one.seed}", named, ", ".join(beside) or "–", evidence + ended]


def coverage(healthy: Sequence[Seen]) -> Iterator[list[str]]:
    """By trainer: modes that were looked for, and modes that its log can never show."""
    for one in {one.trainer: one for one in healthy}.values():
        given = one.said.diagnosis
        checked = dict.fromkeys(mode.name for mode, _ in given.checked)
        never = dict.fromkeys(unchecked.mode.name for unchecked in given.unchecked if unchecked.why == NOT_LOGGED)
        yield [one.trainer, ", ".join(checked), ", ".join(never)]


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="*", metavar="TRAINER", help=f"these alone: {', '.join(BASE)}")
    trainers = parser.parse_args(words).trainers
    if odd := set(trainers) - set(BASE):
        parser.error(f"no trainer is called {', '.join(sorted(odd))}: {', '.join(BASE)}")
    for name, end in (("base", True), ("endless", False)):
        if not (FOLDER / name / "tokenizer.json").is_file():
            taught(FOLDER / name, end=end)
    seen = [one for trainer in trainers or BASE for one in made(trainer)]
    if trainers:
        print(page(seen))
    else:
        common.write(PAGE, page(seen))


if __name__ == "__main__":
    main(sys.argv[1:])
