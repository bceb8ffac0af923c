"""Compare the policies of a recipe on held-out prompts, and select one.

policies + validation prompts  →  the selected policy
policies + test prompts        →  evaluation.json: win rate over the first, truth or judge, safety, text statistics,
                                  broken answers before and after the guard

The best of several is partly the luckiest, so the prompts that select are not those that report.
"""

from __future__ import annotations

import json
from typing import Any

from assay import rng
from assay.errors import DataError
from assay.models.roles import load_policy
from assay.rollout import guard
from assay.rollout.engine import Engine
from assay.stages import loop
from assay.stages.config import EvaluateConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Completion


def run(config: EvaluateConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    if inputs.evaluate_policies is None:
        raise DataError(
            "there is nothing to judge the policies by",
            hint="train on a world, or name a reward stage as evaluate.judge",
        )
    prompts = {name: getattr(inputs.data.prompts, name)[: config.prompts] for name in ("validation", "test")}
    if empty := [name for name, held_out in prompts.items() if not held_out]:
        raise DataError(f"there are no {empty[0]} prompts", hint=f"raise data.{empty[0]}_split")
    answers: dict[str, dict[str, list[Completion]]] = {name: {} for name in prompts}
    seen: dict[str, dict[str, Any]] = {name: {} for name in inputs.policies}
    with ctx.progress(len(inputs.policies), "evaluate") as progress:
        for done, (name, path) in enumerate(inputs.policies.items(), start=1):
            policy = load_policy(path, trainable=False, device=ctx.device)
            renderer = policy.renderer(inputs.template, config.max_length)
            engine = Engine(policy, renderer, max_batch=config.batch_size)
            for split, asked in prompts.items():
                guarded = guard.guarded(engine, asked, config.sampling, config.guard, seed=rng.derive(ctx.seed, split))
                answers[split][name], seen[name][split] = guarded.completions, guarded.report()
            progress.update(done, name)

    report = inputs.evaluate_policies(answers["validation"], answers["test"])
    for name, policy in report["policies"].items():
        test = seen[name]["test"]
        policy |= {f"broken_{side}": test[side]["broken"] / test["n"] for side in ("before", "after")}
        policy["guard"] = seen[name]
        policy["prompts_cut"] = sum(completion.cut for completion in answers["test"][name])
    (ctx.folder / "evaluation.json").write_text(json.dumps(report, indent=2))
    ctx.samples(
        0,
        [
            {
                "prompt": prompt.text,
                "kind": prompt.kind,
                "answers": {name: rows[i].response for name, rows in answers["test"].items()},
            }
            for i, prompt in enumerate(prompts["test"])
        ],
    )
    metrics = {"selected": report["selected"], "prompts": len(prompts["test"])}
    for name, policy in report["policies"].items():
        metrics |= loop.numbers(policy, prefix=f"{name}/")
    return metrics
