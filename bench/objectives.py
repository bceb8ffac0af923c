"""Trades helpfulness against harmlessness: one reward model, five weightings, and the truth about the policies.

    make objectives          →  docs/results/objectives.md and .svg

The recipe is recipes/objectives.yaml. Words like policy-24.episodes=256 are handed on to `assay run`.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from bench import common, monotone
from bench.common import Run
from matplotlib.figure import Figure

from assay import rng
from assay.data.prepared import Prepared
from assay.models.roles import load_policy
from assay.pipeline.evaluators import HARMFUL
from assay.rollout import collect
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.statistics import Floats, Interval, bootstrap_mean
from assay.types import Prompt
from assay.worlds.world import World, load_world

RECIPE = "recipes/objectives.yaml"
SHARES = (24, 12, 6, 3, 0)
"""Percent of the weight that is on helpfulness, the rest on harmlessness; above a quarter nothing is traded."""

MEASURES = ("helpfulness", "harmlessness", "refused harmless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=2, help="policies of each weighting")
    parser.add_argument("--answers", type=int, default=16, help="answers to each test prompt that are judged")
    parser.add_argument("--runs-dir", help="a folder of an earlier study, to go on from; a new one if left out")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    began = time.monotonic()
    facts = common.origin(shlex.join(["python", "-m", "bench.objectives", *asked.settings]))
    runs_dir = asked.runs_dir or common.fresh_runs_dir("objectives")
    seeds = [f"policy-{share}.seeds={asked.seeds}" for share in SHARES]
    run = common.run_assay(RECIPE, *seeds, *asked.settings, f"runs_dir={runs_dir}")
    prompts = Prepared.load(run.artifact("data")).prompts.test

    sft = measured(run, "sft", prompts, asked.answers)
    policies = np.stack(
        [[measured(run, name, prompts, asked.answers) for name in names(share, asked.seeds)] for share in SHARES]
    )  # [W, S, M, P]
    kl_WS = np.array([[run.metrics(name)["kl"] for name in names(share, asked.seeds)] for share in SHARES])
    facts |= {"seeds": asked.seeds, "answers": asked.answers, "minutes": round((time.monotonic() - began) / 60, 1)}
    heads = run.metrics("heads")
    common.write(asked.results / "objectives.svg", picture(sft, policies))
    common.write(asked.results / "objectives.md", page(facts, heads, sft, policies, kl_WS))


def names(share: int, seeds: int) -> list[str]:
    """Ids of the stages that trained with this share on helpfulness."""
    return [f"policy-{share}" if seeds == 1 else f"policy-{share}-{number + 1}" for number in range(seeds)]


def measured(run: Run, stage: str, prompts: Sequence[Prompt], answers: int) -> Floats:
    """Mean truth of a policy's answers to each prompt, [M, P]; NaN where a measure does not apply."""
    policy = load_policy(run.artifact(stage), trainable=False, device="cpu")
    engine = Engine(policy, policy.renderer("chat", 128), max_batch=256)
    asked = [prompt for prompt in prompts for _ in range(answers)]
    drawn = collect.sample(engine, asked, SamplingParams(max_new_tokens=48), rng.derive(0, "judged"))
    world = load_world("frontdesk")
    judged = np.array([judge(world, prompt, g.text) for prompt, g in zip(asked, drawn, strict=True)])
    return judged.reshape(len(prompts), answers, len(MEASURES)).mean(axis=1).T


def judge(world: World, prompt: Prompt, text: str) -> tuple[float, ...]:
    """The truth of one answer under each measure.

    Harmlessness is asked of harmful requests alone: to any other, every answer is harmless. Refusing others is what
    harmlessness can cost.
    """
    truth, harmful = world.truth(prompt, text), prompt.kind == HARMFUL
    return (
        truth.objectives["helpfulness"],
        truth.objectives["harmlessness"] if harmful else np.nan,
        np.nan if harmful else float(truth.refused),
    )


def over_prompts(rows_P: Floats) -> Interval:
    """Mean over the prompts that a measure applies to, with its bootstrap interval."""
    return bootstrap_mean(rows_P[~np.isnan(rows_P)], seed=0)


def page(facts: Mapping[str, Any], heads: Mapping[str, Any], sft: Floats, policies: Floats, kl_WS: Floats) -> str:
    """The result as Markdown."""
    rows = [["SFT", *(spread(over_prompts(values)) for values in sft), "0"]]
    for share, policy_SMP, kls in zip(SHARES, policies, kl_WS, strict=True):
        values = [spread(over_prompts(values)) for values in policy_SMP.mean(0)]
        rows.append([f"{share} : {100 - share}", *values, ", ".join(f"{kl:.2f}" for kl in kls)])
    header = ["helpful : harmless", "helpfulness", "harmlessness", "harmless requests refused", "KL, nats"]
    counts = [int((~np.isnan(values)).sum()) for values in sft]
    return f"""# Helpful against harmless

{common.origin_text(facts)}{facts["minutes"]} minutes. One reward model with two heads (held-out accuracy
{common.interval(heads, "accuracy")}), read with five weightings; for each, {facts["seeds"]} seeds of GRPO on one SFT
model (`{RECIPE}`).

{"".join(f"- {sentence}{chr(10)}" for sentence in verdicts(policies))}
![Harmlessness against helpfulness](objectives.svg)

{common.table(header, rows)}
The truth, between 0 and 1, of {facts["answers"]} answers to each of {counts[0]} test prompts; harmlessness over the
{counts[1]} harmful requests, because to others every answer is harmless. 95 % intervals are bootstraps over prompts, of
the mean over seeds. A step is the change from one weighting to the next, paired by prompt. ρ is Spearman's rank
correlation with the weight, averaged over seeds; p is exact, over all orders of each seed's five policies. Theory
promises one thing: at the optimum of reward − β·KL, helpfulness − harmlessness of the *reward* rises with the weight
(log Z is convex in it). That each alone follows its weight under the *truth* is a finding. The
weights were chosen after a first sweep had shown that only the last quarter trades anything ([LOG.md](../LOG.md)); p
does not know of that choice.
"""


def verdicts(policies: Floats) -> list[str]:
    """One sentence for each objective, and for their difference: is the curve monotone?"""
    sentences = []
    for number, name in enumerate(MEASURES[:2]):
        applies = ~np.isnan(policies[0, 0, number])
        values_WSP = policies[:, :, number, applies]
        if name == "helpfulness":  # the weightings start with all of it: it should fall, and the other rise
            values_WSP = values_WSP[::-1]
        found = monotone.trend(values_WSP.mean(2).T)
        rises = monotone.steps(values_WSP.mean(1).T, seed=0)
        whole = over_prompts(values_WSP.mean(1)[-1] - values_WSP.mean(1)[0])
        sentences.append(
            f"**{name.capitalize()}** with its weight: {monotone.verdict(rises)}; {spread(whole, '+.3f')} from end to "
            f"end, steps {', '.join(spread(rise, '+.3f') for rise in rises)}; ρ = {found.rho:.2f}, p = {found.p:.4f}."
        )
    return sentences


def spread(x: Interval, style: str = ".3f") -> str:
    """0.812 (0.790 to 0.834)."""
    return format(x.value, style) + ("" if x.low is None else f" ({x.low:{style}} to {x.high:{style}})")


def picture(sft: Floats, policies: Floats) -> str:
    """Harmlessness against helpfulness, a cross of intervals for each weighting, the seeds as small dots; as SVG."""
    with mpl.rc_context({"svg.hashsalt": "assay", "font.size": 9}):
        figure = Figure(figsize=(6.5, 5), layout="constrained")
        axes = figure.add_subplot()
        means = []
        for share, policy_SMP in zip(SHARES, policies, strict=True):
            x, y = (over_prompts(policy_SMP.mean(0)[number]) for number in (0, 1))
            means.append((x.value, y.value))
            axes.plot(np.array([x.low, x.high], float), [y.value, y.value], color="C0", linewidth=0.8)
            axes.plot([x.value, x.value], np.array([y.low, y.high], float), color="C0", linewidth=0.8)
            axes.annotate(f" {share} : {100 - share}", (x.value, y.value))
            axes.plot(*np.nanmean(policy_SMP[:, :2], axis=2).T, ".", color="C0", alpha=0.4)
        start = over_prompts(sft[0]).value, over_prompts(sft[1]).value
        axes.plot(*zip(*means, strict=True), "o-", color="C0", linewidth=0.8)
        axes.plot(*start, "s", color="grey")
        axes.annotate(" SFT", start, color="grey")
        axes.set(
            xlabel="helpfulness, truth", ylabel="harmlessness, truth", title="helpful : harmless, weights in percent"
        )
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


if __name__ == "__main__":
    main()
