"""Several policies of one run beside each other: what each gained, how far it moved, and what that cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import t as student

from assay.tracking.progress import duration
from assay.tracking.report.blocks import Chart, Charts, Section, Table
from assay.tracking.report.charts import Mark, scatter_chart
from assay.tracking.report.run_files import POLICIES, RunFiles, StageFiles
from assay.tracking.report.words import count, number, percent

SEED = re.compile(r"-\d+$")
BEST_OF = re.compile(r"best_of_(\d+)/kl")
COLUMNS = ["", "seeds", "true worth", "win rate", "KL, nats", "learned from", "time", "memory"]


@dataclass
class Method:
    """One way of training, under one seed or several. Lists hold a value a seed."""

    name: str
    kl: list[float] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    win_rate: list[float] = field(default_factory=list)
    over_prompts: tuple[float, float] | None = None
    """Bounds of the last seed's win rate, by its prompts: all there is to go by where there is one seed."""
    samples: str = ""
    """What a seed learned from: answers it sampled, or examples of the data."""
    seconds: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def add(self, stage: StageFiles, prefix: str = "", truth: str = "truth_after") -> None:
        """Take note of one seed."""
        for column, name in ((self.kl, "kl"), (self.truth, truth), (self.win_rate, "win_rate")):
            value = stage.get(f"{prefix}{name}")
            if value is not None:
                column.append(value)
        low, high = (stage.get(f"{prefix}win_rate_{bound}") for bound in ("low", "high"))
        self.over_prompts = (low, high) if low is not None and high is not None else None
        sampled = stage.get("samples") or stage.get("episodes")
        compared = stage.get("examples")
        self.samples = f"{count(sampled)} answers" if sampled else f"{count(compared)} examples" if compared else ""
        for column, name in ((self.seconds, "wall_s"), (self.memory_mb, "peak_rss_mb")):
            if stage.manifest.get(name) is not None:
                column.append(float(stage.manifest[name]))

    def interval(self, name: str) -> tuple[float, float, float]:
        """Mean of the list of that name with its 95 % interval: over the seeds, or over the prompts of the only one."""
        values: list[float] = getattr(self, name)
        if name == "win_rate" and len(values) == 1 and self.over_prompts:
            return values[0], *self.over_prompts
        return mean_interval(values)


def frontier_section(run: RunFiles) -> Section | None:
    """The section; None where fewer than two methods were trained."""
    found = methods(run)
    if len(found) < 2:
        return None
    charts = [
        Chart(title, scatter_chart(list(_marks(found, name)), title=title, share=share), note)
        for name, title, share, note in (
            ("truth", "True worth against KL", False, "Mean true worth of an answer; up and to the left is better."),
            ("win_rate", "Win rate against KL", True, "Against the model that all of them started from."),
        )
        if any(getattr(method, name) for method in found)
    ]
    note = (
        "Means over the seeds; brackets are 95 % intervals of the mean (Student’s t), or, of the win rate of a single "
        "seed, over its prompts. Time and memory are a seed’s."
    )
    blocks = [Charts("", charts, wide=True), Table("", COLUMNS, [row(method) for method in found], note)]
    lead = f"{len(found)} methods, from the same model, on the same held-out prompts."
    return Section("frontier", "The methods beside each other", lead, blocks)


def methods(run: RunFiles) -> list[Method]:
    """Every way of training in the run; stages that differ in their seed alone are one."""
    named: dict[str, Method] = {}
    for stage in run.of_kind(*POLICIES):
        siblings = [other for other in run.of_kind(*POLICIES) if training(other) == training(stage)]
        name = SEED.sub("", stage.id) if len(siblings) > 1 else stage.id
        sizes = sorted(int(found[1]) for key in stage.metrics if (found := BEST_OF.fullmatch(key)))
        for n in sizes:
            of = f"{name}, n = {n}"
            named.setdefault(of, Method(of)).add(stage, f"best_of_{n}/", "truth")
        if not sizes and stage.get("kl") is not None:  # a student of another base has not moved from this one
            named.setdefault(name, Method(name)).add(stage)
    return list(named.values())


def training(stage: StageFiles) -> tuple[str, dict[str, Any]]:
    """What makes a stage another way of training: all settings but the seed, and the name that they belong to."""
    settings = stage.manifest.get("config", {})
    return SEED.sub("", stage.id), {name: settings[name] for name in settings if name not in ("id", "seed")}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; of a single value, itself."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    error = (sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5
    reach = float(student.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def _marks(found: Sequence[Method], name: str) -> Iterator[Mark]:
    for method in found:
        values: list[float] = getattr(method, name)
        if values and method.kl:
            mean, low, high = method.interval(name)
            seeds = list(zip(method.kl, values, strict=False))
            yield Mark(method.name, sum(method.kl) / len(method.kl), mean, low, high, seeds)


def row(method: Method) -> list[str]:
    """What COLUMNS say of a method."""

    def said(name: str, *, share: bool = False) -> str:
        if not getattr(method, name):
            return "–"
        write = percent if share else number
        mean, low, high = (round(value, 6) for value in method.interval(name))
        return write(mean) if low == high else f"{write(mean)} ({write(low)} to {write(high)})"

    return [
        method.name,
        count(len(method.kl)),
        said("truth"),
        said("win_rate", share=True),
        said("kl"),
        method.samples or "–",
        duration(sum(method.seconds) / len(method.seconds)) if method.seconds else "–",
        f"{count(round(max(method.memory_mb)))} MB" if method.memory_mb else "–",
    ]
