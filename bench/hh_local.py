"""Runs the recipe on real human preferences and says plainly what is good and what is not.

    make hh DATA=../shared/data/hh-rlhf          →  docs/results/hh_local.md

Only numbers are written: no text of the data reaches the page.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import common
from bench.common import Run, interval, percent
from bench.verdicts import RIVALS, judge_model, judge_policy, proxy_change

RECIPE = "recipes/hh_local.yaml"
MODELS = {"reward": "reward model", "judge": "judge", "encoder": "encoder"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of HH-RLHF files")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    words = [RECIPE, f"data.path={os.path.relpath(asked.data, common.ROOT)}", *asked.settings]
    facts = common.origin(shlex.join(["assay", "run", *words, "--json"]))
    run = common.run_assay(*words, f"runs_dir={common.fresh_runs_dir('hh_local')}")
    common.write(asked.results / "hh_local.md", page(facts, run))


def page(facts: Mapping[str, Any], run: Run) -> str:
    """The result as Markdown."""
    reports = {stage: run.read(stage, "accuracy.json") for stage in MODELS}
    verdicts = [verdict for stage, report in reports.items() for verdict in judge_model(MODELS[stage], report)]
    verdicts += judge_policy(run)
    data = run.metrics("data")
    said = {True: "Good", False: "Not good", None: "Not settled by this many examples"}
    sections = [
        f"{words}:\n\n" + "".join(f"- {sentence}\n" for good, sentence in verdicts if good is which)
        for which, words in said.items()
        if any(good is which for good, _ in verdicts)
    ]
    return (
        f"# Real human preferences\n\n{common.origin_text(facts)}"
        f"{run.wall_s:.0f} s, at most {run.peak_rss_mb:,.0f} MB. "
        f"{data['preferences_train']:,} pairs to train on; reward model and judge had disjoint parts of them. The\n"
        "baselines beside a model learned from the pairs that it had.\n\n"
        f"## What is good and what is not\n\n{chr(10).join(sections)}\n"
        f"## Reward models on held-out pairs\n\n{accuracy_table(reports)}\n{baseline_note(reports)}\n"
        f"## PPO\n\n{policy_table(run)}\n{NOTES}"
    )


def accuracy_table(reports: Mapping[str, dict[str, Any]]) -> str:
    """Every model, on all pairs and on those of each source, beside chance and what the same training pairs teach
    the baselines."""

    def row(stage: str, pairs: str, facts: Mapping[str, Any]) -> list[str]:
        report, rivals = reports[stage], [interval(facts["baselines"][rival], "accuracy") for rival in RIVALS]
        whole = pairs == "all"
        return [
            MODELS[stage] if whole else "",
            f"{report['baseline_pairs']:,}" if whole else "",
            pairs,
            str(facts["n"]),
            interval(facts, "accuracy"),
            percent(report["chance"]),
            *rivals,
            percent(report["ece"]) if whole else "",
        ]

    rows = [
        row(stage, pairs, facts)
        for stage, report in reports.items()
        for pairs, facts in {"all": report, **report["slices"]["source"]}.items()
    ]
    header = ["model", "learned from", "pairs", "n", "accuracy", "chance", *RIVALS.values(), "calibration error"]
    return common.table(header, rows)


def baseline_note(reports: Mapping[str, dict[str, Any]]) -> str:
    trained = {MODELS[stage]: report["length"] for stage, report in reports.items() if report["length"]["n"]}
    taste = ", ".join(f"{name} {percent(length['model_prefers_longer'])}" for name, length in trained.items())
    people = [percent(length["labels_prefer_longer"]) for length in trained.values()]
    return f"The longer answer is preferred by people in {people[0]} of pairs, by models: {taste}.\n" if people else ""


def policy_table(run: Run) -> str:
    ppo, evaluation, proxy = run.metrics("ppo"), run.metrics("evaluate"), proxy_change(run)

    def row(what: str, before: str, after: str, gained: Mapping[str, Any] | None = None) -> list[str]:
        shown = f"{gained['gain']:+.3f} ({gained['gain_low']:+.3f} to {gained['gain_high']:+.3f})" if gained else ""
        return [what, before, after, shown]

    def both(name: str, style: str) -> tuple[str, str]:
        return format(ppo[f"{name}_before"], style), format(ppo[f"{name}_after"], style)

    rows = [
        row("reward it is trained on", *both("reward", ".3f"), proxy),
        row("judge's reward", *both("judge", ".3f"), ppo),
        row(f"wins over SFT by the judge, n = {ppo['n']}", "", interval(ppo, "win_rate")),
        row(f"the same on {evaluation['prompts']} prompts, sampled anew", "", interval(evaluation, "ppo/win_rate")),
        row("KL per answer, nats", "0", f"{ppo['kl']:.2f} (target {ppo['kl_target']:g})"),
        row("lowest mean KL of an iteration, standard errors", "", f"{ppo['kl_z_min']:.2f}"),
        row("repetition", *both("repetition", ".1%")),
        row("cut off at the token limit", *both("truncated", ".1%")),
        row("length, tokens", *both("length_tokens", ".1f")),
        row("explained variance", "", f"{ppo['explained_variance']:.2f}"),
    ]
    return common.table(["", "SFT", "PPO", "change"], rows)


NOTES = """
Intervals are 95 %; those of changes are paired, prompt by prompt. A sentence takes a side only where the interval
excludes the other one. The judge is of the same family as the reward model and learned from the same kind of labels:
that it agrees shows no overfitting to one reward model, not that people would agree.
"""

if __name__ == "__main__":
    main()
