"""Over-optimises reward models on purpose and measures where the truth stops following, and what an ensemble helps.

    make overoptimisation          →  docs/results/overoptimisation.md, .svg and .json

Best-of-n: one pool of answers of the SFT policy, chosen by every reward model. PPO: recipes/overoptimisation.yaml, once
for each seed; seeds share data and SFT model. Words like ppo-single.episodes=256 are handed on to `assay run`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from bench import common, growth
from bench.common import Run
from bench.growth import BASELINE, Fit, Study
from matplotlib.figure import Figure
from torch import Tensor

from assay import rng
from assay.algorithms.bestof import expected_best_of_n, sampled_kl
from assay.algorithms.ensemble import Aggregate
from assay.data.prepared import Prepared
from assay.models.readout import Readout
from assay.models.roles import load_policy, load_reward_model
from assay.rollout import collect
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.stages.bestof import Answers, powers_of_two
from assay.stages.config import PPOConfig
from assay.statistics import Floats, Interval
from assay.tracking.metrics import read_json_lines, read_metrics, series
from assay.worlds.world import load_world

RECIPE = "recipes/overoptimisation.yaml"
ENSEMBLE: tuple[Aggregate, ...] = ("mean", "worst", "uncertainty")
ARMS = {
    BASELINE: "one model",
    "mean": "ensemble, mean",
    "worst": "ensemble, worst",
    "uncertainty": "ensemble, mean − σ",
}
SEEDED = (BASELINE, "mean", *(f"ppo-{arm}" for arm in ARMS))
"""Stages that every seed runs anew."""

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of reward models and PPO")
    parser.add_argument("--prompts", type=int, default=64, help="held-out prompts of the pool")
    parser.add_argument("--answers", type=int, default=256, help="answers to each prompt in the pool; the largest n")
    parser.add_argument("--runs-dir", help="a folder of an earlier study, to go on from; a new one if left out")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    began = time.monotonic()
    facts = common.origin(shlex.join(["python", "-m", "bench.overoptimisation", *asked.settings]))
    runs_dir = asked.runs_dir or common.fresh_runs_dir("overoptimisation")
    runs = [
        common.run_assay(RECIPE, *asked.settings, *(f"{stage}.seed={seed}" for stage in SEEDED), f"runs_dir={runs_dir}")
        for seed in asked.seeds
    ]
    pool = sample_pool(runs[0], asked.prompts, asked.answers)
    truths_PK = worth(pool)
    scored = [score(run, pool) for run in runs]
    chosen = {
        arm: np.mean([best_of_n(Answers(pool, scores[arm]), truths_PK) for scores in scored], axis=0) for arm in ARMS
    }
    learned = {arm: [learned_curve(run.artifact(f"ppo-{arm}")) for run in runs] for arm in ARMS}
    studies = {"best-of-n": growth.best_of_n_study(chosen, seed=0), "PPO": growth.learned_study(learned)}
    facts |= {"prompts": len(pool), "answers": asked.answers, "seeds": asked.seeds}
    facts["minutes"] = round((time.monotonic() - began) / 60, 1)
    common.write(asked.results / "overoptimisation.json", json.dumps(as_json(facts, studies), indent=1) + "\n")
    common.write(asked.results / "overoptimisation.svg", picture(studies))
    common.write(asked.results / "overoptimisation.md", page(facts, studies))


def sample_pool(run: Run, count: int, answers: int) -> list[list[Generation]]:
    """`answers` of the SFT policy to each of `count` prompts on which PPO is evaluated, sampled as PPO samples."""
    manifest = json.loads((run.artifact(f"ppo-{BASELINE}") / "manifest.json").read_text(encoding="utf-8"))
    ppo = PPOConfig.model_validate(manifest["config"])
    prompts = Prepared.load(run.artifact("data")).prompts.validation[:count]
    policy = load_policy(run.artifact("sft"), trainable=False, device="cpu")
    engine = Engine(policy, policy.renderer("chat", ppo.max_length), max_batch=BATCH)
    drawn = collect.sample(engine, [p for p in prompts for _ in range(answers)], ppo.sampling, rng.derive(0, "pool"))
    return [drawn[start : start + answers] for start in range(0, len(drawn), answers)]


def distinct(pool: Sequence[Sequence[Generation]]) -> tuple[list[Generation], Tensor]:
    """Every different answer once, and where in that list each answer of the pool stands, [P, K]."""
    keys = [[(g.prompt.id, g.text, g.finish) for g in row] for row in pool]
    first = {
        key: g for row, generations in zip(keys, pool, strict=True) for key, g in zip(row, generations, strict=True)
    }
    place = {key: number for number, key in enumerate(first)}
    return list(first.values()), torch.tensor([[place[key] for key in row] for row in keys])


def worth(pool: Sequence[Sequence[Generation]]) -> Tensor:
    """What the answers are really worth, in points, [P, K]."""
    world = load_world("frontdesk")
    answers, place_PK = distinct(pool)
    return torch.tensor([world.truth(g.prompt, g.text).total for g in answers])[place_PK]


def score(run: Run, pool: Sequence[Sequence[Generation]]) -> dict[str, Tensor]:
    """What every arm's reward makes of the pool, [P, K]; the members of the ensemble are asked once for all arms."""
    answers, place_PK = distinct(pool)
    prompts, texts, finishes = zip(*((g.prompt, g.text, g.finish) for g in answers), strict=True)
    scores: dict[str, Tensor] = {}
    for stage in (BASELINE, "mean"):
        model = load_reward_model(run.artifact(stage), trainable=False, max_length=128)
        members_NMO, own = model.member_scores(prompts, texts, finishes, batch_size=BATCH), model.readout
        readouts: dict[str, Readout] = {stage: own}
        if own.members > 1:
            readouts = {how: own.aggregated(own.members, own.of, how, own.penalty) for how in ENSEMBLE}
        scores |= {arm: readout.read(members_NMO)[place_PK] for arm, readout in readouts.items()}
    return scores


def best_of_n(answers: Answers, truths_PK: Tensor) -> Floats:
    """KL in nats, gain of the proxy and of the truth in standard deviations, for n = 1, 2, 4 …: [P, 3, N]."""
    order_PK = answers.order_PK

    def gained(values_PK: Tensor, n: int) -> Tensor:
        return (expected_best_of_n(order_PK, values_PK, n) - values_PK.double().mean(1)) / values_PK.std()

    columns = [
        torch.stack(
            [sampled_kl(order_PK, answers.logprobs_PK, n), gained(answers.scores_PK, n), gained(truths_PK, n)], dim=1
        )
        for n in powers_of_two(order_PK.shape[1])
    ]
    return torch.stack(columns, dim=2).numpy()


def learned_curve(artifact: Path) -> Floats:
    """d, gain of the proxy and of the truth at every evaluation of one PPO run, [3, M].

    The unit is the deviation of the SFT policy's answers to the test prompts: all arms of a seed have the same ones.
    """
    lines = read_metrics(artifact / "metrics.jsonl")
    first = list(read_json_lines(artifact / "samples.jsonl"))

    def measured(name: str) -> Floats:
        return np.array(series(lines, f"eval/{name}")[1])

    def gained(name: str) -> Floats:
        unit = np.std([row[f"{name}_before"] for row in first], ddof=1)
        return (measured(f"{name}_after") - measured(f"{name}_before")) / unit

    return np.stack([np.sqrt(measured("kl").clip(0)), gained("reward"), gained("truth")])


def as_json(facts: Mapping[str, Any], studies: Mapping[str, Study]) -> dict[str, Any]:
    """Every point and every finding, for other pictures."""
    return {
        "origin": dict(facts),
        **{
            name: {
                "compared at d": one.at,
                "curves": {arm: curve.round(4).tolist() for arm, curve in one.curves.items()},
                "found": {f"{arm}: {what}": [x.value, x.low, x.high] for (arm, what), x in one.found.items()},
            }
            for name, one in studies.items()
        },
    }


def page(facts: Mapping[str, Any], studies: Mapping[str, Study]) -> str:
    """The result as Markdown."""
    sections = "\n".join(section(name, one) for name, one in studies.items())
    return f"""# Reward over-optimisation, on purpose

{common.origin_text(facts)}{facts["minutes"]} minutes. Reward models and PPO of {len(facts["seeds"])} seeds;
one SFT model; best of {facts["answers"]} answers to each of {facts["prompts"]} held-out prompts.

Reward models of few comparisons, followed without any KL penalty (`{RECIPE}`). Proxy is what is followed, truth what
the simulated guests want; both are gains over the SFT policy, in standard deviations of its answers (σ). d = √KL, KL in
nats an answer. The ensemble's four members have an adapter, a head and a bootstrap sample each.

{"".join(f"- {sentence}{chr(10)}" for name, one in studies.items() for sentence in verdicts(name, one))}
![Proxy and truth against d](overoptimisation.svg)

{sections}
{NOTES}"""


def verdicts(name: str, one: Study) -> list[str]:
    """What the intervals settle, and what they leave open."""
    _, proxy, truth = one.curves[BASELINE]
    far = int(np.argmax(one.curves[BASELINE][0]))
    peak_d, peak = one.found[BASELINE, "peak d"], one.found[BASELINE, "peak"]
    turned = "turns there" if peak_d.value < one.curves[BASELINE][0].max() else "has not turned where measuring ends"
    sentences = [
        f"**{name}**, one model: the truth is best at d = {spread(peak_d)}, with {spread(peak)} σ, and {turned}; "
        f"farthest out the proxy has gained {proxy[far]:+.2f} σ and the truth {truth[far]:+.2f} σ."
    ]
    for arm, words in list(ARMS.items())[1:]:
        for what, where in (("truth at d", f"at d = {one.at:.2f}"), ("peak", "at its best")):
            gained = one.found[arm, f"{what}, gained"]
            known = gained.low is not None and gained.high is not None and (gained.low > 0 or gained.high < 0)
            clear = ("helps", "hurts") if name == "best-of-n" else ("is better in every seed", "is worse in every seed")
            how = clear[gained.value < 0] if known else "is not told from one model"
            sentences.append(f"{name}, {words} {how} {where}: truth {spread(gained, '+.2f')} σ.")
    return sentences


def section(name: str, one: Study) -> str:
    """α, β, the peak and the comparison of every arm; and the points of best-of-n, which are few."""
    columns = ("proxy α", "proxy β", "truth α", "truth β", "peak", "peak d", "truth at d", "truth at d, gained")
    rows = [
        [words, *(spread(one.found[arm, what]) for what in columns), misfits(one, arm)] for arm, words in ARMS.items()
    ]
    header = ["", *columns[:4], "peak of the truth, σ", "its d", f"truth at d = {one.at:.2f}, σ", "more than one model"]
    return f"## {name}: {one.form.text}\n\n{common.table([*header, 'misfit of proxy, truth'], rows)}"


def misfits(one: Study, arm: str) -> str:
    d, *gains = one.curves[arm]
    return ", ".join(f"{growth.fit(one.form, d, gain).misfit(d, gain):.2f}" for gain in gains)


def spread(x: Interval, style: str = ".2f") -> str:
    """1.20 (1.05–1.36); bounds only where there are any."""
    value = format(x.value, style)
    return value if x.low is None or x.high is None else f"{value} ({x.low:{style}} to {x.high:{style}})"


def picture(studies: Mapping[str, Study]) -> str:
    """A panel a study: measured points and fitted curves, truth solid, proxy dashed, a colour an arm; as SVG."""
    with mpl.rc_context({"svg.hashsalt": "assay", "font.size": 9}):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        panels = figure.subplots(1, len(studies), squeeze=False)[0]
        for panel, (name, one) in zip(panels, studies.items(), strict=True):
            for number, (arm, words) in enumerate(ARMS.items()):
                d, *gains = one.curves[arm]
                along = np.linspace(0, d.max(), 200)
                for kind, line, mark, gain in zip(("proxy", "truth"), ("--", "-"), ("x", "o"), gains, strict=True):
                    fitted: Fit = growth.fit(one.form, d, gain)
                    label = words if kind == "truth" else None
                    panel.plot(along, fitted.at(along), line, color=f"C{number}", label=label, linewidth=1.2)
                    panel.plot(d, gain, mark, color=f"C{number}", markersize=3)
            panel.axvline(one.at, color="grey", linewidth=0.6)
            panel.set(title=f"{name}: {one.form.text}", xlabel="d = √KL", ylabel="gain over SFT, σ")
        panels[-1].legend(frameon=False, title="truth solid, proxy dashed")
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


NOTES = """
α and β by least squares; the peak is that of the fitted form within the distances measured, and the misfit is the root
mean square distance of points from it, in σ. Best-of-n: the unbiased estimate over all subsets of a prompt's answers
and their sampled KL, averaged over the seeds' reward models; 95 % bootstrap intervals over prompts. PPO: all seeds'
evaluations in one fit; bootstrap over seeds, all choices of them, so that with two or three the interval is the whole
range of what the seeds give. Arms are resampled together. The grey line is the d at which they are compared: the
largest that all of them reach. Forms: Gao et al. 2022 (arXiv 2210.10760); ensembles: Coste et al. 2023 (2310.02743).
"""

if __name__ == "__main__":
    main()
