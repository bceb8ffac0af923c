"""Measures what the doctor costs: before a run, in seconds, and while stages train, at most 2 % of a step.

    make doctor-cost                                 →  docs/results/doctor_cost.md
    python -m bench.monitor_cost ppo.episodes=512 --results .bench

The recipe is recipes/sandbox.yaml with two stages more, so that every kind of trainer is there. A stage takes the time
of its own monitor (`monitor_s` in its manifest). What it is a share of is the time from the first logged step to the
last, evaluations between them included.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import time
from pathlib import Path

from bench import common
from bench.common import Run

from assay.tracking.metrics import read_metrics

EXTRA = """
  - group: {id: grpo, method: grpo, episodes: 3072, batch_size: 128, group_size: 8, inner_epochs: 2, minibatches: 4,
            max_length: 128, lora: {r: 16, alpha: 32}, optim: {learning_rate: 6.0e-4}, kl_coef: 0.05,
            sampling: {max_new_tokens: 48}}
  - preference: {id: dpo, method: dpo, part: [1, 4], batch_size: 32, max_length: 128, lora: {r: 16, alpha: 32},
                 beta: 0.2, optim: {learning_rate: 5.0e-4}, sampling: {max_new_tokens: 48}}
"""
MOST = 0.02
LONGEST_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()
    common.two_cores()
    facts = common.origin(shlex.join(["python", "-m", "bench.monitor_cost", *asked.settings]))
    runs_dir = common.fresh_runs_dir("monitor_cost")
    recipe = common.ROOT / runs_dir / "every_trainer.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text((common.ROOT / "recipes/sandbox.yaml").read_text(encoding="utf-8") + EXTRA, encoding="utf-8")
    words = [str(recipe), *asked.settings, f"runs_dir={runs_dir}"]
    began = time.monotonic()
    subprocess.run(common.command("doctor", *words), cwd=common.ROOT, check=True, stdout=subprocess.DEVNULL)
    before_s = time.monotonic() - began
    run = common.run_assay(*words)
    costs = {stage: cost(run, stage) for stage in run.summary["stages"] if monitored(run, stage)}
    over = [stage for stage, (spent, step_s, _) in costs.items() if spent > MOST * step_s]
    soon = "so it is" if before_s <= LONGEST_S else "not so"
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
        f"# What the doctor costs\n\n{common.origin_text(facts)}\n"
        f"`assay doctor` takes {before_s:.1f} s before the run; at most {LONGEST_S} s are allowed: {soon}.\n\n"
        f"At most {MOST:.0%} of a step may go into monitoring: {met}.\n\n{table}\n"
        "Each line that a stage logs is looked at for numbers that are not finite; the whole log is examined whenever "
        "it has grown by a tenth (doctor/monitor.py).\n",
    )


def monitored(run: Run, stage: str) -> bool:
    """Whether a stage trains, so that a monitor looked on."""
    return (run.artifact(stage) / "metrics.jsonl").is_file()


def cost(run: Run, stage: str) -> tuple[float, float, int]:
    """Seconds of monitoring a step, seconds a step, steps."""
    lines = read_metrics(run.artifact(stage) / "metrics.jsonl")
    spent = run.read(stage, "manifest.json")["monitor_s"]
    return spent / len(lines), (lines[-1].time - lines[0].time) / (len(lines) - 1), len(lines)


if __name__ == "__main__":
    main()
