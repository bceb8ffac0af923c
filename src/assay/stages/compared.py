"""A trained policy beside the one it started from, on the same prompts: what every policy stage reports."""

from __future__ import annotations

from typing import Any

from assay.rollout.collect import Rollouts
from assay.stages.context import StageInputs


def compare(before: Rollouts, after: Rollouts, inputs: StageInputs) -> dict[str, Any]:
    """A trained policy against its start on the same prompts: proxy reward, KL (nats), and what the evaluator adds.

    `prompts_cut` counts the prompts that were too long and lost their beginning.
    Intervals are those of other prompts; the gain's is paired, for a hard prompt is hard for both.
    """
    report: dict[str, Any] = inputs.mean("kl", after.kl_B().tolist())
    report["prompts_cut"] = int(after.cut_B.sum())
    if inputs.reward is not None:
        report |= {"reward_before": before.scores_B.mean().item(), "reward_after": after.scores_B.mean().item()}
        report |= inputs.mean("reward_gain", (after.scores_B - before.scores_B).tolist())
    if inputs.evaluate_policy is None:
        return report
    return report | inputs.evaluate_policy(before.completions, after.completions)


def side_by_side(before: Rollouts, after: Rollouts, inputs: StageInputs) -> list[dict[str, Any]]:
    """Both answers to every prompt with their scores, for the report."""
    unknown: list[float | None] = [None] * len(before.prompts)
    truth = [inputs.truth(r.prompts, r.texts) if inputs.truth else unknown for r in (before, after)]
    columns = {
        "prompt": [prompt.text for prompt in before.prompts],
        "kind": [prompt.kind for prompt in before.prompts],
        "before": before.texts,
        "after": after.texts,
        "reward_before": before.scores_B.tolist() if inputs.reward else unknown,
        "reward_after": after.scores_B.tolist() if inputs.reward else unknown,
        "truth_before": truth[0],
        "truth_after": truth[1],
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
