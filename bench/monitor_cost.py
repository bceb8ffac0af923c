"""Measures what the monitors cost while stages of the embedded run train: at most 2 % of a step.

    make doctor-cost                                 →  docs/results/doctor_cost.md
    python -m bench.monitor_cost ppo.episodes=512 --results .bench

Every stage takes the time of its own monitor (`monitor_s` in its manifest). What it is a share of is the time from the
first logged step to the last, evaluations between them included.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bench import common
from bench.common import Run

from assay.tracking.metrics import read_metrics

STAGES = ("sft", "reward", "ppo")
MOST = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()
    common.two_cores()
    facts = common.origin(shlex.join(["assay", "run", *asked.settings, "--json"]))
    run = common.run_assay(*asked.settings, f"runs_dir={common.fresh_runs_dir('monitor_cost')}")
    costs = {stage: cost(run, stage) for stage in STAGES}
    over = [stage for stage, (spent, step_s, _) in costs.items() if spent > MOST * step_s]
    met = f"not so in {', '.join(over)}" if over else "so in every stage"
    table = common.table(
        ["stage", "steps", "ms a step", "of them monitoring", "share"],
        [
            [stage, str(steps), f"{step_s * 1e3:,.1f}", f"{spent * 1e3:.3f}", f"{spent / step_s:.2%}"]
            for stage, (spent, step_s, steps) in costs.items()
        ],
    )
    common.write(
        asked.results / "doctor_cost.md",
        f"# What the monitors cost\n\n{common.origin_text(facts)}At most {MOST:.0%} of a step may go into monitoring: "
        f"{met}.\n\n{table}\n"
        "Each line that a stage logs is looked at for numbers that are not finite; the whole log is examined whenever "
        "it has grown by a tenth (doctor/monitor.py).\n",
    )


def cost(run: Run, stage: str) -> tuple[float, float, int]:
    """Seconds of monitoring a step, seconds a step, steps."""
    lines = read_metrics(run.artifact(stage) / "metrics.jsonl")
    spent = run.read(stage, "manifest.json")["monitor_s"]
    return spent / len(lines), (lines[-1].time - lines[0].time) / (len(lines) - 1), len(lines)


if __name__ == "__main__":
    main()
