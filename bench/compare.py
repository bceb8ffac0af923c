"""Trains several methods from one SFT model with one budget, and writes down what each gained and what it cost.

    make compare                     →  docs/results/compare.md and .svg
    make hh_compare DATA=FOLDER      →  docs/results/hh_compare.md and .svg, on real human preferences

Words like ppo.seeds=1 are handed on to `assay run`.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from bench import common
from bench.common import Run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay.tracking.report import frontier
from assay.tracking.report.frontier import Method
from assay.tracking.report.run_files import read_run

MEASURES = {"truth": "true worth of an answer", "win_rate": "win rate against the SFT model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, help="folder of HH-RLHF files; the embedded world if left out")
    parser.add_argument("--runs-dir", help="a folder of an earlier run, to go on from; a new one if left out")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    name = "hh_compare" if asked.data else "compare"
    words = ["recipes/compare.yaml", *asked.settings]
    if asked.data:
        place = f"data.path={os.path.relpath(asked.data, common.ROOT)}"
        words = ["recipes/hh_local_compare.yaml", place, *asked.settings]
    facts = common.origin(shlex.join(["assay", "run", *words]))
    run = common.run_assay(*words, f"runs_dir={asked.runs_dir or common.fresh_runs_dir(name)}")
    methods = frontier.methods(read_run(common.ROOT / run.summary["dir"]))
    common.write(asked.results / f"{name}.svg", picture(methods))
    common.write(asked.results / f"{name}.md", page(facts, run, methods, name, real=bool(asked.data)))


def page(facts: Mapping[str, Any], run: Run, methods: Sequence[Method], name: str, *, real: bool) -> str:
    """The result as Markdown."""
    judged = "a second reward model, of other pairs; nobody knows the truth" if real else "the truth of the world"
    return f"""# {"Real human preferences: the" if real else "The"} methods beside each other

{common.origin_text(facts)}{run.wall_s / 60:.0f} minutes, at most {run.peak_rss_mb:,.0f} MB.
Wins are judged by {judged}.

{"".join(f"- {sentence}{chr(10)}" for sentence in verdicts(methods))}
![Gain against KL]({name}.svg)

{common.table(frontier.COLUMNS, [frontier.row(method) for method in methods])}
All start from one SFT model and answer the same held-out prompts. Means over the seeds; brackets are 95 % intervals of
the mean over seeds (Student's t), which do not hold the chance of the prompts; where there is one seed, that of its win
rate is over the prompts, and does not hold the chance of seeds. KL is of a whole answer. Time and memory are a seed's;
best-of-n trains nothing, and pays its n samples with every answer for ever.
"""


def verdicts(methods: Sequence[Method]) -> list[str]:
    """Who wins against the SFT model, by the intervals."""
    said: dict[str, list[str]] = {"wins": [], "is not told": [], "loses": []}
    for method in methods:
        if method.win_rate:
            mean, low, high = method.interval("win_rate")
            settled = low < high
            which = "wins" if settled and low > 0.5 else "loses" if settled and high < 0.5 else "is not told"
            said[which].append(f"{method.name} ({common.percent(mean)})")
    endings = {
        "wins": "win against the SFT model",
        "is not told": "cannot be told from it",
        "loses": "lose against it",
    }
    return [f"{', '.join(names)} {endings[which]}." for which, names in said.items() if names]


def picture(methods: Sequence[Method]) -> str:
    """A panel a measure: the mean of each method with its interval, its seeds as small dots; as SVG."""
    shown = {name: title for name, title in MEASURES.items() if any(getattr(m, name) for m in methods)}
    with mpl.rc_context({"svg.hashsalt": "assay", "font.size": 9}):
        figure = Figure(figsize=(5.5 * len(shown), 4.5), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for panel, (name, title) in zip(panels, shown.items(), strict=True):
            draw(panel, methods, name)
            panel.set(xlabel="KL to the SFT model, nats an answer", ylabel=title)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw(panel: Axes, methods: Sequence[Method], name: str) -> None:
    for number, method in enumerate(methods):
        values = getattr(method, name)
        if values:
            mean, low, high = method.interval(name)
            kl = sum(method.kl) / len(method.kl)
            panel.plot([kl, kl], [low, high], color=f"C{number % 10}", linewidth=0.8)
            panel.plot(kl, mean, "o", color=f"C{number % 10}")
            panel.plot(method.kl, values, ".", color=f"C{number % 10}", alpha=0.4)
            panel.annotate(f" {method.name}", (kl, mean))


if __name__ == "__main__":
    main()
