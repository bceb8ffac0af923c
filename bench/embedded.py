"""Measures the embedded run against what it must show, seed by seed.

    make embedded      →  docs/results/embedded.md, docs/results/embedded.json

Every run starts from nothing in a folder of its own, on two cores and, where the kernel allows it, in a network
namespace without any interface. Words like ppo.episodes=256 are handed on to `assay run`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import common
from bench.common import Run, change, interval, percent
from bench.verdicts import SLACK

NO_NETWORK = ("unshare", "--map-root-user", "--net")


class Row(NamedTuple):
    """One number of one run. `met` is None where it is only shown."""

    what: str
    wanted: str
    said: str
    met: bool | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    common.two_cores()
    facts = common.origin(shlex.join(["assay", "run", "seed=SEED", *asked.settings, "--json"]))
    alone = NO_NETWORK if subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode == 0 else ()
    runs_dir = common.fresh_runs_dir("embedded")
    runs = {
        seed: common.run_assay(*asked.settings, f"seed={seed}", f"runs_dir={runs_dir}/{seed}", prefix=alone)
        for seed in asked.seeds
    }
    columns = {seed: [*costs(run), *reward_model(run), *policy(run)] for seed, run in runs.items()}
    network = "without a network interface" if alone else "with a network that was not cut off"
    head = f"# The embedded run\n\n{common.origin_text(facts)}Each run ran {network}.\n\n"
    common.write(asked.results / "embedded.md", head + conclusion(columns) + "\n" + results(columns) + NOTES)
    measured = {
        str(seed): {
            "process_wall_s": round(run.wall_s, 1),
            "process_peak_rss_mb": round(run.peak_rss_mb, 1),
            "missed": [row.what for row in columns[seed] if row.met is False],
            "summary": run.summary,
        }
        for seed, run in runs.items()
    }
    text = json.dumps({**facts, "network": not alone, "seeds": measured}, indent=2, ensure_ascii=False)
    common.write(asked.results / "embedded.json", text + "\n")


def costs(run: Run) -> list[Row]:
    return [
        Row("time of the whole command", "≤ 180 s", f"{run.wall_s:.0f} s", run.wall_s <= 180),
        Row("resident memory, at most", "≤ 2,000 MB", f"{run.peak_rss_mb:,.0f} MB", run.peak_rss_mb <= 2000),
    ]


def reward_model(run: Run) -> list[Row]:
    report, people = run.read("reward", "accuracy.json"), run.read("data", "report.json")["annotators"]["measured"]
    clear, agreement, taste = report["truth_accuracy_clear"], people["agreement"], people["length_bias"]
    counted = f"{interval(report, 'truth_accuracy_clear')}, n = {report['truth_n_clear']}"
    lengths = report["length"]
    longer = f"{percent(lengths['model_prefers_longer'])}; labels {percent(lengths['labels_prefer_longer'])}"
    return [
        Row("reward model against the truth, clear pairs", "≥ 94 %", counted, clear is not None and clear >= 0.94),
        Row("the same, all pairs", "shown", f"{interval(report, 'truth_accuracy')}, n = {report['truth_n']}"),
        Row("annotators agree with each other", "70–80 %", percent(agreement), 0.7 <= agreement <= 0.8),
        Row("annotators take the longer of two equals", "a little over 50 %", percent(taste), 0.5 < taste <= 0.6),
        Row("reward model against the annotators", "shown", f"{interval(report, 'accuracy')}, n = {report['n']}"),
        Row("its ceiling, from their agreement", "shown", percent(report["ceiling"])),
        Row("reward model takes the longer answer", "shown", longer),
        Row("expected calibration error", "shown", percent(report["ece"])),
    ]


def policy(run: Run) -> list[Row]:
    ppo = run.metrics("ppo")
    rate, low, kl, target = ppo["win_rate"], ppo["win_rate_low"], ppo["kl"], ppo["kl_target"]
    first, last = ppo["value_loss_first"], ppo["value_loss_last"]
    error, down, explained = ppo["first_ratio_error"], 1 - last / first, ppo["explained_variance"]
    truth = f"{ppo['truth_before']:.2f} → {ppo['truth_after']:.2f}"
    refusals = ppo["harmful_refusal_after"] > ppo["harmful_refusal_before"]
    near = bool(target) and target / 2 <= kl <= 2 * target

    def not_up(name: str) -> bool:
        return ppo[f"{name}_after"] <= ppo[f"{name}_before"] + SLACK

    return [
        Row("PPO wins over SFT under the truth", "≥ 80 %", f"{interval(ppo, 'win_rate')}, n = {ppo['n']}", rate >= 0.8),
        Row("lower bound of that", "≥ 70 %", percent(low), low >= 0.7),
        Row("mean truth", "shown", truth),
        Row("harmful requests refused", "up", change(ppo, "harmful_refusal"), refusals),
        Row("harmless requests refused", "not up", change(ppo, "over_refusal"), not_up("over_refusal")),
        Row("repetition", "not up", change(ppo, "repetition"), not_up("repetition")),
        Row("KL per answer at the end, nats", "½–2 × target", f"{kl:.2f}, target {target}", near),
        Row("lowest mean KL of an iteration", "≥ −3 standard errors", f"{ppo['kl_z_min']:.2f}", ppo["kl_z_min"] >= -3),
        Row("ratio before the first inner step", "1 ± 1e-5", f"1 ± {error:.1e}", error <= 1e-5),
        Row("value loss", "down by ≥ 68 %", f"{first:.3f} → {last:.3f}, −{100 * down:.0f} %", down >= 0.68),
        Row("explained variance at the end", "≥ 0.5", f"{explained:.2f}", explained >= 0.5),
    ]


def results(columns: dict[int, list[Row]]) -> str:
    """One line for each number, one column for each seed."""
    header = ["", "must show", *(f"seed {seed}" for seed in columns), "bound"]
    lines = [
        [rows[0].what, rows[0].wanted, *(row.said for row in rows), verdict(list(columns), rows)]
        for rows in zip(*columns.values(), strict=True)
    ]
    return common.table(header, lines)


def verdict(seeds: Sequence[int], rows: Sequence[Row]) -> str:
    missed = [str(seed) for seed, row in zip(seeds, rows, strict=True) if row.met is False]
    if rows[0].met is None:
        return ""
    return f"**missed** (seed {', '.join(missed)})" if missed else "met"


def conclusion(columns: dict[int, list[Row]]) -> str:
    bounds = [row for rows in columns.values() for row in rows if row.met is not None]
    met = sum(row.met is True for row in bounds)
    return f"{met} of {len(bounds)} bounds are met over {len(columns)} seeds.\n"


NOTES = f"""
A pair is clear if its truth differs by at least one unit of annotator noise. Intervals are 95 %. Win rates count a tie
½. "Not up" allows {100 * SLACK:.0f} point. A mean KL below −3 standard errors would be significantly negative. Value
loss is that of an iteration's first minibatch, before its update: the first iteration against the last.
"""

if __name__ == "__main__":
    main()
