"""Compare the policies of a recipe on held-out prompts, and select one.

policies + prompts  →  evaluation.json: win rate over the first, truth or judge, safety, text statistics
"""

from __future__ import annotations

import json
from typing import Any

from assay import rng
from assay.errors import DataError
from assay.models.roles import load_policy
from assay.rollout import collect
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
    prompts = inputs.data.prompts.test[: config.prompts]
    if not prompts:
        raise DataError("there are no held-out prompts", hint="raise data.test_split")
    answers: dict[str, list[Completion]] = {}
    with ctx.progress(len(inputs.policies), "evaluate") as progress:
        for done, (name, path) in enumerate(inputs.policies.items(), start=1):
            policy = load_policy(path, trainable=False, device=ctx.device)
            renderer = policy.renderer(inputs.template, config.max_length)
            engine = Engine(policy, renderer, max_batch=config.batch_size)
            generations = collect.sample(engine, prompts, config.sampling, rng.derive(ctx.seed, "test"))
            answers[name] = [generation.completion for generation in generations]
            progress.update(done, name)

    report = inputs.evaluate_policies(answers)
    (ctx.folder / "evaluation.json").write_text(json.dumps(report, indent=2))
    ctx.samples(
        0,
        [
            {
                "prompt": prompt.text,
                "kind": prompt.kind,
                "answers": {name: rows[i].response for name, rows in answers.items()},
            }
            for i, prompt in enumerate(prompts)
        ],
    )
    metrics = {"selected": report["selected"], "prompts": len(prompts)}
    for name, policy in report["policies"].items():
        metrics |= loop.numbers(policy, prefix=f"{name}/")
    return metrics
