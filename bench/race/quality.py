"""Time to quality: how long PPO takes until it wins 80 % under the truth, Assay's and TRL 1.10's.

    make bench-quality                               the quickest of both →  docs/results/quality.md and .json
    python -m bench.race.quality --tune ours peer    all settings, once   →  docs/results/quality_tuning.json
    python -m bench.race.quality --where             where our time goes  →  a section of the page

Both start from the SFT model and the reward model of recipes/sandbox.yaml, learn the same rewards in the same unit, and
pass the same examination after every iteration, for which the clock stands still. The first of two examinations in a
row with 80 % of comparisons won is the end of the race.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any, NamedTuple
from unittest import mock

import torch
from bench import common
from bench.common import Run
from bench.race import where, work
from bench.race.__main__ import peak_flops
from bench.race.context import Stopwatch
from bench.race.sides import THREADS, peer, side

from assay import rng
from assay.data.prepared import Prepared, Splits
from assay.evaluation.winrate import win_rate
from assay.models.roles import load_policy, load_reward_model
from assay.pipeline.recipe import load_recipe
from assay.rewards.learned import LearnedReward
from assay.rollout import collect
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.stages import ppo
from assay.stages.config import PPOConfig
from assay.stages.context import StageInputs
from assay.types import Prompt
from assay.worlds.world import load_world

RECIPE, WORLD = "recipes/sandbox.yaml", "frontdesk"
TUNING = common.RESULTS / "quality_tuning.json"
TITLES = {"ours": "Assay", "peer": "TRL 1.10.0"}
GOAL = 0.8
LOOKED_AT = 4
"""Iterations under the profiler."""
EXAMINED = 600
"""Held-out prompts of an examination: a win rate of 80 % is then known to 1.6 points (one standard error)."""
MAX_LENGTH, NEW_TOKENS, NEVER = 128, 48, 10**6
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Settings = Mapping[str, Any]
Curve = list[tuple[float, float]]
"""After each iteration: seconds of training so far, win rate."""
Learn = Callable[[Settings, int], Curve]


class Timing(NamedTuple):
    """What counts as a second."""

    clock: str
    """A function of the module time."""
    threads: int


WALL = Timing("perf_counter", THREADS)
PROCESSOR = Timing("process_time", 1)
"""For tuning, during which the machine may be busy: two threads would wait for each other, at the processor's cost."""

OURS: tuple[Settings, ...] = (
    {"episodes": 2048, "value_warmup": 0, "optim.learning_rate": 1e-3},
    {"episodes": 2048, "value_warmup": 0, "optim.learning_rate": 1e-3, "inner_epochs": 4},
    {"episodes": 2048, "value_warmup": 0, "optim.learning_rate": 2e-3},
    {"episodes": 2048, "value_warmup": 0, "optim.learning_rate": 1e-3, "kl_target": 6},
    {"episodes": 2048, "value_warmup": 0, "optim.learning_rate": 1e-3, "batch_size": 64},
    {},
)
"""Changes of the recipe."""
PEER: tuple[Settings, ...] = (
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 2},
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 4},
    {"episodes": 2048, "learning_rate": 2e-3, "inner_epochs": 2},
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 2, "kl_coef": 0.02},
    {"episodes": 2048, "learning_rate": 1e-3, "inner_epochs": 2, "batch": 64},
    {"episodes": 3072, "learning_rate": 6e-4, "inner_epochs": 2},
)
"""Changes of `AS_THE_RECIPE`."""
AS_THE_RECIPE: Settings = {"batch": 128, "minibatches": 4, "kl_coef": 0.05, "value_learning_rate": 3e-3}
TRAINER: Settings = {"temperature": 1.0, "stop_token": "eos", "missing_eos_penalty": 1.0, "lam": 0.9}
"""Of the peer; the rest is the same by default: k1 in the reward, whitened advantages, clips of 0.2, no discount."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", nargs="+", choices=list(TITLES), help="try all settings of these sides instead")
    parser.add_argument("--where", action="store_true", help="look where our side's time goes instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the race; tuning takes the first")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    common.two_cores()
    start = common.run_assay(RECIPE, "runs_dir=runs/quality", "--only", "reward")
    examination = Examination(start)
    timing = PROCESSOR if asked.tune else WALL
    sides: dict[str, tuple[Sequence[Settings], Learn]] = {
        "ours": (OURS, Ours(start, examination, timing)),
        "peer": (PEER, Peer(start, examination, timing, peer("trl_ppo"))),
    }
    if asked.tune:
        for name in asked.tune:
            tune(name, *sides[name], asked.seeds[0])
        return
    if asked.where:
        found = json.loads((asked.results / "quality.json").read_text(encoding="utf-8"))
        write(asked.results, {**found, "where": look(found, Ours(start, examination, WALL, examined=False))})
        return
    tuning = json.loads(TUNING.read_text(encoding="utf-8"))
    facts = common.origin("python -m bench.race.quality")
    final: dict[str, list[Any]] = {name: [] for name in sides}
    for seed in asked.seeds:  # in turn, so that a busy minute is everybody's
        for name, (_, learn) in sides.items():
            final[name].append(measured(name, best(tuning["tried"][name])["settings"], seed, learn))
    found = {**facts, "seeds": asked.seeds, "tuning": tuning, "final": final}
    write(asked.results, found)


def write(results: Path, found: Mapping[str, Any]) -> None:
    common.write(results / "quality.json", json.dumps(found, indent=1) + "\n")
    common.write(results / "quality.md", page(found))


def look(found: Mapping[str, Any], ours: Ours) -> dict[str, Any]:
    """Where the time of our iterations goes, at the settings of the race, and what no program could do without."""
    config = ours.config(found["final"]["ours"][0]["settings"])
    config = config.model_copy(update={"episodes": LOOKED_AT * config.batch_size})
    ours.learn(config, 0)  # warms up
    seconds, shares = where.profiled(lambda: ours.learn(config, 0))
    policy = load_policy(ours.start.artifact("sft"), trainable=False)
    weights = work.matrices(policy.model)
    asked = ours.examination.prompts[: config.batch_size]
    renderer = ours.examination.renderer
    read = sum(len(renderer.prompt(prompt, reserve=NEW_TOKENS)) for prompt in asked)
    answers = Engine(policy, renderer, max_batch=256).generate(
        asked, SamplingParams(max_new_tokens=NEW_TOKENS), seeds=range(len(asked))
    )
    sampled = sum(len(answer.ids) for answer in answers)
    flops = weights["trunk"] * (8 + 8 * config.inner_epochs) * (read + sampled)
    flops += weights["head"] * (4 + 4 * config.inner_epochs) * sampled
    facts = common.origin("python -m bench.race.quality --where")
    return {**facts, "seconds": seconds / LOOKED_AT, "shares": shares, "floor": flops / peak_flops()}


def tune(name: str, settings: Sequence[Settings], learn: Learn, seed: int) -> None:
    """Try what has not been tried yet; what is found is kept after each trial."""
    for changes in settings:
        if not any(run["settings"] == changes for run in tried()[name]):
            run = measured(name, changes, seed, learn)
            runs = tried()  # read again: the other side may be at it too
            runs[name].append(run)
            facts = common.origin("python -m bench.race.quality --tune ours peer")
            common.write(TUNING, json.dumps({**facts, "tried": runs}, indent=1) + "\n")


def tried() -> dict[str, list[Any]]:
    """Trials so far, by side."""
    empty: dict[str, list[Any]] = {name: [] for name in TITLES}
    return json.loads(TUNING.read_text(encoding="utf-8"))["tried"] if TUNING.is_file() else empty


def measured(name: str, settings: Settings, seed: int, learn: Learn) -> dict[str, Any]:
    """One run of one side."""
    curve = learn(settings, seed)
    reached = arrival(curve)
    seconds = reached and curve[reached - 1][0]
    highest = max(rate for _, rate in curve)
    said = f"{reached} iterations, {seconds} s to {GOAL:.0%}; best {highest:.3f}"
    print(f"{name} {settings} seed {seed}: {said}", file=sys.stderr)
    return {
        "settings": dict(settings),
        "seed": seed,
        "curve": curve,
        "iterations_to_goal": reached,
        "seconds_to_goal": seconds,
    }


def arrival(curve: Curve) -> int | None:
    """Iterations until the first examination with the goal reached that the next one confirms."""
    both = (min(rate, after) >= GOAL for (_, rate), (_, after) in pairwise(curve))
    return next((iteration for iteration, reached in enumerate(both, 1) if reached), None)


def best(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The quickest."""
    return min(runs, key=lambda run: run["seconds_to_goal"] or float("inf"))


class Examination:
    """Held-out prompts, what the SFT model answers, and what that is worth."""

    def __init__(self, start: Run) -> None:
        prompts = Prepared.load(start.artifact("data")).prompts
        self.train = list(prompts.train)
        held_out = [*prompts.validation, *prompts.test]
        self.prompts = rng.python_rng(0, "examination").sample(held_out, EXAMINED)
        self.world = load_world(WORLD)
        policy = load_policy(start.artifact("sft"), trainable=False)
        self.renderer = policy.renderer("chat", MAX_LENGTH)
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS)
        answers = collect.sample(Engine(policy, self.renderer, max_batch=256), self.prompts, sampling, seed=0)
        texts = [answer.text for answer in answers]
        self.before = dict(zip(self.prompts, self.worth(self.prompts, texts), strict=True))
        reward = load_reward_model(start.artifact("reward"), trainable=False, max_length=MAX_LENGTH)
        scores = LearnedReward(reward, batch_size=128)(self.prompts, texts, [answer.finish for answer in answers])
        self.unit = {"mean": mean(scores) + reward.mean, "std": pstdev(scores)}
        """Of the SFT model's scores, which is the unit of reward in Assay's PPO; that function centres them."""

    def worth(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [self.world.truth(prompt, text).total for prompt, text in zip(prompts, texts, strict=True)]

    def win_rate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> float:
        before = [self.before[prompt] for prompt in prompts]
        return win_rate(before, self.worth(prompts, texts), seed=0)["win_rate"]


class Ours:
    """The recipe's PPO stage."""

    def __init__(self, start: Run, examination: Examination, timing: Timing, *, examined: bool = True) -> None:
        self.start, self.examination, self.timing, self.examined = start, examination, timing, examined

    def __call__(self, settings: Settings, seed: int) -> Curve:
        config = self.config(settings)
        curve, seconds = [], 0.0
        for metrics in self.learn(config, seed).logged:
            seconds += config.batch_size / metrics["train/episodes_per_s"]
            curve.append((seconds, metrics["eval/win_rate"]))
        return curve

    def config(self, settings: Settings) -> PPOConfig:
        """The recipe's, changed."""
        often, prompts = (1, EXAMINED) if self.examined else (NEVER, 1)
        fixed = {"evaluate_every": often, "evaluation_prompts": prompts, "checkpoint_every": NEVER}
        words = [f"ppo.{name}={value}" for name, value in {**settings, **fixed}.items()]
        recipe = load_recipe(RECIPE, words).recipe
        return next(stage for stage in recipe.stages if isinstance(stage, PPOConfig))

    def learn(self, config: PPOConfig, seed: int) -> Stopwatch:
        prompts = self.examination.prompts
        inputs = StageInputs(
            Prepared(prompts=Splits(self.examination.train, prompts, prompts[:1])),
            str(self.start.artifact("sft")),
            reward=str(self.start.artifact("reward")),
            evaluate_policy=lambda _, after: {
                "win_rate": self.examination.win_rate([c.prompt for c in after], [c.response for c in after])
            },
        )
        ctx = Stopwatch(work.FOLDER / "quality" / "ours", seed=seed)
        torch.set_num_threads(self.timing.threads)
        with mock.patch.object(time, "perf_counter", getattr(time, self.timing.clock)):
            ppo.run(config, inputs, ctx)
        return ctx


class Peer:
    """The other side, on the same models, prompts and rewards; its answers are judged here."""

    def __init__(self, start: Run, examination: Examination, timing: Timing, command: list[str]) -> None:
        self.start, self.examination, self.timing, self.command = start, examination, timing, command
        self.folder = work.FOLDER / "quality"
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = [self.ids(prompt) for prompt in examination.prompts]
        (self.folder / "examination.json").write_text(json.dumps(asked), encoding="utf-8")

    def __call__(self, settings: Settings, seed: int) -> Curve:
        settings = {**AS_THE_RECIPE, **settings}
        rows, batch = self.folder / "rows.jsonl", settings["batch"]
        asked = ({"prompt_ids": self.ids(prompt)} for prompt in self.drawn(settings["episodes"], seed))
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in asked), encoding="utf-8")
        names = ("batch", "minibatches", "inner_epochs", "learning_rate", "value_learning_rate", "kl_coef")
        job = {
            **{name: settings[name] for name in names},
            "race": "quality",
            "threads": self.timing.threads,
            "clock": self.timing.clock,
            "rows": str(rows),
            "examination": str(self.folder / "examination.json"),
            "policy": str(self.start.artifact("sft")),
            "reward": str(self.start.artifact("reward")),
            "unit": self.examination.unit,
            "steps": settings["episodes"] // batch,
            "prompts": batch,
            "micro_batch": batch,
            "new_tokens": NEW_TOKENS,
            "lora": 16,
            "target_modules": TARGETS,
            "settings": {**TRAINER, "seed": seed},
        }
        told = side(self.command, job, self.folder / "peer")
        prompts, text = self.examination.prompts, self.examination.renderer.text
        return [
            (point["seconds"], self.examination.win_rate(prompts, [text(ids) for ids in point["answers"]]))
            for point in told["curve"]
        ]

    def ids(self, prompt: Prompt) -> list[int]:
        return self.examination.renderer.prompt(prompt, reserve=NEW_TOKENS)

    def drawn(self, count: int, seed: int) -> list[Prompt]:
        """As many training prompts, all of them before any comes again."""
        train, order = self.examination.train, []
        while len(order) < count:
            order += rng.python_rng(seed, "quality", len(order)).sample(train, len(train))
        return order[:count]


def page(found: Mapping[str, Any]) -> str:
    times = {name: [run["seconds_to_goal"] for run in runs] for name, runs in found["final"].items()}
    if all(seconds is not None for column in times.values() for seconds in column):
        ratios = sorted(p / o for o, p in zip(times["ours"], times["peer"], strict=True))
        said = f"Median ratio **{median(ratios):.1f}** ({ratios[0]:.1f}–{ratios[-1]:.1f}); required ≥ 5.\n\n"
    else:
        said = f"Not every run reached {GOAL:.0%}, so there is no ratio for all seeds; the table says which did.\n\n"
    tuning = found["tuning"]
    return (
        f"# Time to quality\n\n{common.origin_text(found)}\n{said}{runs_table(found['final'])}\n{NOTES}\n"
        f"{where_the_time_goes(found.get('where'), found['final']['peer'])}"
        f"## Tuning\n\n`{tuning['command']}`, commit {tuning['commit']}, {tuning['date']}. Processor seconds, on one "
        f"thread, because the machine may be busy for so long.\n\n{runs_table(tuning['tried'])}"
    )


def where_the_time_goes(found: Mapping[str, Any] | None, peer: Sequence[Mapping[str, Any]]) -> str:
    """What `look` has seen, if it has been asked, beside what an iteration takes the peer."""
    if found is None:
        return ""
    iteration = median(run["curve"][-1][0] / len(run["curve"]) for run in peer)
    header = ["seconds", *where.KINDS, *where.REST]
    row = [f"{found['seconds']:.2f}", *(f"{share:.0%}" for share in found["shares"].values())]
    return (
        f"## Where Assay's time goes\n\n{common.origin_text(found)}\n{common.table(header, [row])}\n"
        f"One iteration under the profiler, of {LOOKED_AT}, without examinations. The products of useful tokens with "
        f"weight matrices would take {found['floor']:.2f} s at the measured peak; at a width of 128 they run at "
        f"{found['floor'] / found['seconds'] / found['shares']['products']:.0%} of it, and most time is not theirs. "
        f"The peer's iteration takes {iteration:.2f} s. With as many iterations, 5 times as quick is one of "
        f"{iteration / 5:.2f} s, and at the rate that they run at our products alone take "
        f"{found['seconds'] * found['shares']['products']:.2f} s: nothing would be left for all else.\n\n"
    )


def runs_table(runs_by_side: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    def row(name: str, run: Mapping[str, Any]) -> list[str]:
        settings = ", ".join(f"{key.removeprefix('optim.')} {value}" for key, value in run["settings"].items())
        reached, seconds, curve = run["iterations_to_goal"], run["seconds_to_goal"], run["curve"]
        arrived = ["never", "–"] if reached is None else [str(reached), f"{seconds:.0f}"]
        whole = f"{len(curve)} in {curve[-1][0]:.0f} s, best {max(rate for _, rate in curve):.1%}"
        return [TITLES[name], settings or "the recipe's", str(run["seed"]), *arrived, whole]

    header = ["", "settings", "seed", f"iterations to {GOAL:.0%}", "seconds", "the whole run"]
    return common.table(header, [row(name, run) for name, runs in runs_by_side.items() for run in runs])


NOTES = f"""\
Wall clock of training until the policy wins {GOAL:.0%} of comparisons with the SFT model under the truth, on {EXAMINED}
held-out prompts, one sampled answer each, in two examinations in a row; there is one after every iteration. Loading and
examinations do not count, on either side. Same SFT model, same reward model, same adapters (r = 16, all linear layers,
policy and critic), 48 tokens at most, fp32, two threads. Both learn scores less the SFT model's mean, over its
deviation, with the critic starting as the reward model, a learning rate of its own for it, k1 in the reward, whitened
advantages, and a penalty of 1 for an answer without an end. Only Assay's weight of the KL is steered towards a target
(3 nats), and only it clips gradients: the peer has no setting for either. Assay's numbers hold one pass of the policy
over each batch that it needs for an examination alone. Both sides were tuned with as many trials, one seed each.
"""


if __name__ == "__main__":
    main()
