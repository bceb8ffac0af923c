"""What came of a run, in the one sentence to take away."""

from __future__ import annotations

from collections.abc import Sequence

from assay.tracking.report.frontier import Method, mean_interval, methods
from assay.tracking.report.run_files import BASELINES, POLICIES, RunFiles, StageFiles
from assay.tracking.report.words import listing, number, percent, percent_range


def headline(run: RunFiles) -> str:
    """The one sentence a reader should take away: about the last policy, else the last reward model, else SFT."""
    policies, compared = run.of_kind(*POLICIES), [method for method in methods(run) if method.win_rate]
    if len(compared) > 1:
        return _methods_headline(compared)
    if policies:
        return _policy_headline(run, policies[-1])
    if rewards := run.of_kind("reward"):
        return _reward_headline(rewards[-1])
    if taught := run.of_kind("sft", "pretrain"):
        loss = taught[-1].get("validation_loss")
        measured = (
            f"Its loss on held-out text is {number(loss)} nats per token." if loss else "It has no held-out loss."
        )
        return f"The model learned to imitate its examples. {measured} Nothing here says yet whether people prefer it."
    return "This run has prepared its inputs and trained nothing yet."


def _methods_headline(compared: Sequence[Method]) -> str:
    """Which of several methods wins most, and whether its lead is more than the seeds' scatter."""
    ranked = sorted(compared, key=lambda method: -mean_interval(method.win_rate)[0])
    first, second = ranked[:2]
    rate, low, high = first.interval("win_rate")
    over = "seeds" if len(first.win_rate) > 1 else "prompts"
    said = f"{percent(rate)} of comparisons" + (f" ({percent_range(low, high)} over {over})" if low < high else "")
    runner_up = f"{second.name} follows with {percent(mean_interval(second.win_rate)[0])}"
    return f"Of {len(compared)} methods, {first.name} beats the model it started from most: in {said}. {runner_up}."


def _policy_headline(run: RunFiles, stage: StageFiles) -> str:
    base = run.input_name(stage, "base", "the model it started from")
    rate, low, high = (stage.get(f"win_rate{suffix}") for suffix in ("", "_low", "_high"))
    if rate is None or low is None or high is None:
        return (
            f"Whether {stage.id} answers better than {base} is not known: "
            "this run has neither a known truth nor a judge model to compare them with."
        )
    relation = "answers better than" if low > 0.5 else "answers worse than" if high < 0.5 else "may be no better than"
    beaten = f"{percent(rate)} of comparisons on held-out prompts ({percent_range(low, high)})"
    truth = stage.get("truth_after") is not None
    judge = "the simulated humans’ true preference" if truth else "the judge model"
    return f"{stage.id} {relation} {base}: by {judge} it wins {beaten}."


def _reward_headline(stage: StageFiles) -> str:
    accuracy, low, high = (stage.get(f"accuracy{suffix}") for suffix in ("", "_low", "_high"))
    if accuracy is None:
        return f"The reward model {stage.id} was trained, but not measured on held-out pairs."
    beaten, rivals = _rivals(stage)
    sure = f" It is better than {listing(beaten)}." if beaten else ""
    unsure = f" It is not clearly better than {listing(rivals)}." if rivals else ""
    agrees = f"agrees with people on {percent(accuracy)} of held-out pairs ({percent_range(low, high)})"
    return f"The reward model {stage.id} {agrees}; chance is 50 %.{sure}{unsure}"


def _rivals(stage: StageFiles) -> tuple[list[str], list[str]]:
    """Baselines that the reward model surely beats, and those that it does not."""
    baselines = stage.reports.get("accuracy", {}).get("baselines", {})
    beaten = [words for name, words in BASELINES.items() if name in baselines and baselines[name]["gain_low"] > 0]
    rivals = [words for name, words in BASELINES.items() if name in baselines and words not in beaten]
    return beaten, rivals
