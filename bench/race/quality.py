"""Time to quality: how long PPO takes until it wins 80 % under the truth, Assay's and TRL 1.10's.

    make bench-quality          →  docs/results/quality.md and .json

Both start from the SFT model and the reward model of recipes/sandbox.yaml. Both try every one of their settings below
with one seed; the one that is there first then runs with the other seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import common
from bench.common import Run
from bench.race import work
from bench.race.sides import THREADS, peer, side

from assay import rng
from assay.data.prepared import Prepared
from assay.evaluation.winrate import win_rate
from assay.models.roles import load_policy
from assay.rollout import collect
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.tracking.metrics import read_metrics
from assay.types import Prompt
from assay.worlds.world import load_world

RECIPE = "recipes/sandbox.yaml"
GOAL = 0.8
BATCH, MAX_LENGTH, NEW_TOKENS, EVERY = 128, 128, 48, 2
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Settings = Mapping[str, Any]
Curve = list[tuple[float, float]]
"""(seconds of training, win rate)."""

OURS: tuple[Settings, ...] = (
    {},
    {"episodes": 2048},
    {"episodes": 2048, "optim.learning_rate": 1e-3},
    {"episodes": 2048, "inner_epochs": 4},
)
"""Changes of the recipe."""
PEER: tuple[Settings, ...] = (
    {"episodes": 3072, "learning_rate": 6e-4, "inner_epochs": 2},
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 2},
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 4},
    {"episodes": 2048, "learning_rate": 2e-3, "inner_epochs": 2},
)
"""Of the trainer, which has one learning rate for policy and critic."""
FIXED = {"temperature": 1.0, "stop_token": "eos", "missing_eos_penalty": 1.0, "lam": 0.9, "adam_epsilon": 1e-5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    common.two_cores()
    facts = common.origin("python -m bench.race.quality")
    runs_dir = common.fresh_runs_dir("quality")
    start = common.run_assay(RECIPE, f"runs_dir={runs_dir}", "--only", "reward")
    sides = {"ours": (OURS, partial(ours, runs_dir)), "peer": (PEER, Peer(start, peer("trl_ppo")))}
    tried: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(max(len(OURS), len(PEER))):  # in turn, so that a busy hour is everybody's
        for name, (settings, learn) in sides.items():
            if number < len(settings):
                tried[name].append(measured(name, settings[number], asked.seeds[0], learn))
    best = {name: min(runs, key=lambda run: run["seconds_to_goal"] or float("inf")) for name, runs in tried.items()}
    final = {name: [run] for name, run in best.items()}
    for seed in asked.seeds[1:]:
        for name, (_, learn) in sides.items():
            final[name].append(measured(name, best[name]["settings"], seed, learn))
    found = {**facts, "seeds": asked.seeds, "tried": tried, "final": final}
    common.write(asked.results / "quality.json", json.dumps(found, indent=1) + "\n")
    common.write(asked.results / "quality.md", page(found))


def measured(name: str, settings: Settings, seed: int, learn: Any) -> dict[str, Any]:
    """One run of one side."""
    curve: Curve = learn(settings, seed)
    there = [seconds for seconds, rate in curve if rate >= GOAL]
    run = {"settings": dict(settings), "seed": seed, "curve": curve, "seconds_to_goal": there[0] if there else None}
    print(
        f"{name} {settings} seed {seed}: {run['seconds_to_goal']} s; best {max(r for _, r in curve):.3f}",
        file=sys.stderr,
    )
    return run


def ours(runs_dir: str, settings: Settings, seed: int) -> Curve:
    """The recipe's PPO stage; its clock does not count evaluations."""
    words = [f"ppo.{name}={value}" for name, value in settings.items()]
    fixed = [f"ppo.seed={seed}", f"ppo.evaluate_every={EVERY}", "ppo.evaluation_prompts=1000"]
    run = common.run_assay(RECIPE, f"runs_dir={runs_dir}", "--only", "ppo", *words, *fixed)
    curve, seconds = [], 0.0
    for line in read_metrics(run.artifact("ppo") / "metrics.jsonl"):
        seconds += BATCH / line.values["train/episodes_per_s"]
        if "eval/win_rate" in line.values:
            curve.append((seconds, line.values["eval/win_rate"]))
    return curve


class Peer:
    """The other side, on the same models and prompts; its answers are judged here."""

    def __init__(self, start: Run, command: list[str]) -> None:
        self.start, self.command, self.folder = start, command, work.FOLDER / "quality"
        data, policy = Prepared.load(start.artifact("data")), load_policy(start.artifact("sft"), trainable=False)
        self.renderer = policy.renderer("chat", MAX_LENGTH)
        self.train, self.held_out = list(data.prompts.train), list(data.prompts.validation)
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = [self.renderer.prompt(prompt, reserve=NEW_TOKENS) for prompt in self.held_out]
        (self.folder / "examination.json").write_text(json.dumps(asked), encoding="utf-8")
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS)
        before = collect.sample(Engine(policy, self.renderer, max_batch=256), self.held_out, sampling, seed=0)
        self.before = self.worth([answer.text for answer in before])

    def __call__(self, settings: Settings, seed: int) -> Curve:
        rows = self.folder / "rows.jsonl"
        prompts = self.drawn(settings["episodes"], seed)
        asked = ({"prompt_ids": self.renderer.prompt(prompt, reserve=NEW_TOKENS)} for prompt in prompts)
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in asked), encoding="utf-8")
        job = {
            "race": "quality",
            "threads": THREADS,
            "rows": str(rows),
            "examination": str(self.folder / "examination.json"),
            "policy": str(self.start.artifact("sft")),
            "reward": str(self.start.artifact("reward")),
            "steps": settings["episodes"] // BATCH,
            "prompts": BATCH,
            "batch": BATCH,
            "micro_batch": BATCH,
            "minibatches": 4,
            "every": EVERY,
            "new_tokens": NEW_TOKENS,
            "lora": 16,
            "target_modules": TARGETS,
            "kl_coef": 0.05,
            "learning_rate": settings["learning_rate"],
            "inner_epochs": settings["inner_epochs"],
            "settings": {**FIXED, "seed": seed},
        }
        told = side(self.command, job, self.folder / "peer")
        return [(point["seconds"], self.win_rate(point["answers"])) for point in told["curve"]]

    def drawn(self, count: int, seed: int) -> list[Prompt]:
        """As many training prompts, all of them before any comes again."""
        order: list[Prompt] = []
        while len(order) < count:
            order += rng.python_rng(seed, "quality", len(order)).sample(self.train, len(self.train))
        return order[:count]

    def win_rate(self, answers: Sequence[Sequence[int]]) -> float:
        return win_rate(self.before, self.worth([self.renderer.text(ids) for ids in answers]), seed=0)["win_rate"]

    def worth(self, texts: Sequence[str]) -> list[float]:
        world = load_world("frontdesk")
        return [world.truth(prompt, text).total for prompt, text in zip(self.held_out, texts, strict=True)]


def page(found: Mapping[str, Any]) -> str:
    titles = {"ours": "Assay", "peer": "TRL 1.10.0"}
    times = {name: [run["seconds_to_goal"] for run in runs] for name, runs in found["final"].items()}
    if all(seconds is not None for column in times.values() for seconds in column):
        ratios = sorted(p / o for o, p in zip(times["ours"], times["peer"], strict=True))
        said = f"Median ratio **{median(ratios):.1f}** ({ratios[0]:.1f}–{ratios[-1]:.1f}); required ≥ 5.\n\n"
    else:
        said = f"Not every run reached {GOAL:.0%}, so there is no ratio for all seeds; the table says which did.\n\n"
    rows = [
        [
            titles[name], str(dict(run["settings"]) or "the recipe's"), stage, str(run["seed"]),
            "never" if run["seconds_to_goal"] is None else f"{run['seconds_to_goal']:.0f}",
            f"{max(rate for _, rate in run['curve']):.1%} at {max(run['curve'], key=lambda p: p[1])[0]:.0f} s",
        ]
        for stage, group in (("tried", found["tried"]), ("final", found["final"]))
        for name, runs in group.items()
        for run in runs
    ]  # fmt: skip
    header = ["", "settings", "", "seed", f"seconds to {GOAL:.0%}", "best win rate"]
    return f"# Time to quality\n\n{common.origin_text(found)}\n{said}{common.table(header, rows)}\n{NOTES}"


NOTES = """\
Wall clock of training until the policy first wins 80 % against the SFT model under the truth, on all held-out prompts,
evaluated after every second iteration; loading and evaluations do not count, on either side. Same SFT model, same
reward model, same adapters (r = 16, all linear layers, policy and critic), 128 episodes an iteration, four minibatches,
48 tokens at most, fp32, two threads. Each side's settings were tried with the first seed, and the quickest of them ran
with the others.
"""


if __name__ == "__main__":
    main()
