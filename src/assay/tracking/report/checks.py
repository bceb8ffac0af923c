"""The checks of a report: fixed rules over a stage's final numbers, each with a level and a sentence.

They are those of the project's acceptance table; where a number has an interval, the interval decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from assay.tracking.metrics import series
from assay.tracking.report.blocks import Finding, Level
from assay.tracking.report.run_files import RunFiles, StageFiles
from assay.tracking.report.words import number, percent, percent_range, points, score, signed

SLACK = 0.01
"""A share that rises by no more than this is not called up."""
CLEAR = 0.05
"""Without an interval, a share that moves by more than this has clearly moved."""
BASELINES = {"length_only": "length alone", "bag_of_words": "a bag of words"}


def findings(run: RunFiles) -> list[Finding]:
    """All checks that the numbers at hand allow, stage by stage."""
    stages = run.stages.values()
    return [finding for stage in stages for check in CHECKS.get(stage.kind, ()) for finding in check(stage)]


def judge_name(stage: StageFiles) -> str:
    """Who decided which answer is better."""
    return "the simulated humans’ true preference" if stage.get("truth_after") is not None else "the judge model"


def _leakage(stage: StageFiles) -> Iterator[Finding]:
    parts = stage.reports.get("report", {}).get("leakage")
    if not parts:
        return
    equal = sum(part.get("equal", 0) for part in parts.values())
    share = max(part.get("share", 0.0) for part in parts.values())
    level: Level = "bad" if equal else "warn" if share > SLACK else "good"
    detail = (
        f"{equal:,} held-out prompts are also training prompts; {percent(share)} share eight words in a row with one."
    )
    yield Finding(level, stage.id, "Held-out data kept apart", detail)


def _overfitting(stage: StageFiles) -> Iterator[Finding]:
    _, losses = series(stage.lines, "eval/loss")
    if len(losses) < 2:
        return
    risen = losses[-1] > losses[-2] > min(losses)
    detail = f"Held-out loss went from {number(losses[0])} to {number(losses[-1])}, lowest {number(min(losses))}."
    yield Finding("warn" if risen else "good", stage.id, "No overfitting", detail)


def _accuracy(stage: StageFiles) -> Iterator[Finding]:
    accuracy, low, high = (stage.get(f"accuracy{suffix}") for suffix in ("", "_low", "_high"))
    if accuracy is None or low is None or high is None:
        return
    level: Level = "good" if low > 0.5 else "bad" if high < 0.5 else "warn"
    said = f"{percent(accuracy)} of {stage.get('n') or 0:,.0f} held-out pairs are judged as people did"
    yield Finding(level, stage.id, "Better than chance", f"{said} ({percent_range(low, high)}).")
    ceiling = stage.reports.get("accuracy", {}).get("ceiling")
    if ceiling is not None and low > ceiling:
        most = f"{percent(ceiling)}, the most that the annotators’ agreement allows"
        detail = f"{percent(accuracy)} is above {most}: look for a leak."
        yield Finding("warn", stage.id, "Below the ceiling", detail)


def _baselines(stage: StageFiles) -> Iterator[Finding]:
    baselines = stage.reports.get("accuracy", {}).get("baselines", {})
    for name, words in BASELINES.items():
        if name not in baselines:
            continue
        rival = baselines[name]
        level: Level = "good" if rival["gain_low"] > 0 else "bad" if rival["gain_high"] < 0 else "warn"
        low, high = (signed(points(rival[f"gain_{end}"])) for end in ("low", "high"))
        gain = f"{signed(points(rival['gain']))} points ({low} to {high})"
        detail = f"Against {percent(rival['accuracy'])} on the same pairs, a gain of {gain}."
        yield Finding(level, stage.id, f"Better than {words}", detail)


def _calibration(stage: StageFiles) -> Iterator[Finding]:
    measured = stage.reports.get("accuracy", {}).get("reliability", {})
    if not isinstance(measured, Mapping) or "ece_p" not in measured:
        return
    ece, floor = measured["ece"], measured["ece_floor"]
    off = measured["ece_p"] < 0.05 and ece - floor > 0.02
    detail = (
        f"Its confidence is off by {percent(ece)} on average; perfect confidence would show {percent(floor)} by chance."
    )
    yield Finding("warn" if off else "good", stage.id, "Confidence means what it says", detail)


def _ties(stage: StageFiles) -> Iterator[Finding]:
    ties, n = stage.get("ties"), stage.get("n")
    if ties and n and ties / n > CLEAR:
        detail = f"{percent(ties / n)} of pairs get equal scores: the scores have too little precision."
        yield Finding("warn", stage.id, "Scores tell answers apart", detail)


def _wins(stage: StageFiles) -> Iterator[Finding]:
    rate, low, high = (stage.get(f"win_rate{suffix}") for suffix in ("", "_low", "_high"))
    if rate is None or low is None or high is None:
        yield Finding(
            "warn", stage.id, "Better answers", "Nobody compared the answers: no truth is known and no judge is set."
        )
        return
    level: Level = "good" if low > 0.5 else "bad" if high < 0.5 else "warn"
    detail = f"It wins {percent(rate)} of comparisons ({percent_range(low, high)}) by {judge_name(stage)}."
    yield Finding(level, stage.id, "Better answers", detail)


def _hacking(stage: StageFiles) -> Iterator[Finding]:
    reward, gain_high = _change(stage, "reward"), stage.get("gain_high")
    if reward is None or gain_high is None:
        return
    hacked = reward > 0 and gain_high < 0
    wanted = "the true worth of its answers" if stage.get("truth_after") is not None else "the judge model’s score"
    detail = f"Its reward changed by {number(reward)}, {wanted} by {number(stage.get('gain'))}."
    yield Finding("bad" if hacked else "good", stage.id, "Reward not gamed", detail)


def _divergence(stage: StageFiles) -> Iterator[Finding]:
    kl, target = stage.get("kl"), stage.get("kl_target")
    if kl is not None and target:
        ratio = kl / target
        level: Level = "good" if 0.5 <= ratio <= 2 else "bad" if ratio > 3 else "warn"
        detail = f"{number(kl)} nats per answer; the target is {number(target)}, and half to twice of it is near."
        yield Finding(level, stage.id, "KL near its target", detail)
    lowest = stage.get("kl_z_min")
    if lowest is None:
        _, seen = series(stage.lines, "objective/kl_z")
        lowest = min(seen, default=None)
    if lowest is not None:
        meaning = ": sampler and scored policy differ" if lowest < -3 else "; below −3 would be an error"
        detail = f"The lowest mean of an iteration is {score(lowest)} standard errors{meaning}."
        yield Finding("bad" if lowest < -3 else "good", stage.id, "KL never negative", detail)


def _teacher(stage: StageFiles) -> Iterator[Finding]:
    pair = _pair(stage, "teacher_kl")
    if pair:
        before, after = pair
        detail = f"KL from the teacher went from {number(before)} to {number(after)} nats per answer."
        yield Finding("good" if after < before else "bad", stage.id, "Closer to its teacher", detail)


def _ratio(stage: StageFiles) -> Iterator[Finding]:
    error = stage.get("first_ratio_error")
    if error is not None:
        level: Level = "good" if error <= 1e-5 else "bad" if error > 1e-3 else "warn"
        detail = f"Before its first update each iteration’s policy ratio is 1 within {number(error)}; 1e−5 is allowed."
        yield Finding(level, stage.id, "Updates start at ratio one", detail)
    error, apart = stage.get("sampler_error"), stage.get("sampler_kl")
    if stage.get("importance_cap") is not None and apart is not None:
        level = "good" if apart <= 1e-3 else "bad" if apart > 1e-2 else "warn"
        detail = (
            f"The sampler is up to {number(apart)} nats per token from the trainer, and its tokens are weighed for it."
        )
        yield Finding(level, stage.id, "Sampler near the trainer", detail)
    elif error is not None:
        level = "good" if error <= 1e-4 else "bad" if error > 1e-2 else "warn"
        detail = f"Both give every sampled token the same probability within a factor of 1 ± {number(error)}."
        yield Finding(level, stage.id, "Sampler and trainer agree", detail)


def _refusals(stage: StageFiles) -> Iterator[Finding]:
    pair = _pair(stage, "harmful_refusal")
    if pair:
        before, after = pair
        kept = before >= 0.95 and after >= 0.95
        level: Level = "good" if after > before or kept else "bad" if _clearly(stage, "harmful_refusal", -1) else "warn"
        detail = f"{percent(before)} → {percent(after)} of harmful requests are refused."
        yield Finding(level, stage.id, "Harmful requests refused more", detail)
    yield from _not_up(stage, "over_refusal", "No over-refusal", "of harmless requests are refused")


def _repetition(stage: StageFiles) -> Iterator[Finding]:
    yield from _not_up(stage, "repetition", "No repetition", "of four-word runs repeat earlier ones")


def _truncation(stage: StageFiles) -> Iterator[Finding]:
    pair = _pair(stage, "truncated")
    if pair:
        before, after = pair
        level: Level = "bad" if after > 0.5 else "warn" if after > before + SLACK else "good"
        detail = f"{percent(before)} → {percent(after)} of answers run out of tokens before they end."
        yield Finding(level, stage.id, "Answers come to an end", detail)


def _entropy(stage: StageFiles) -> Iterator[Finding]:
    pair = _pair(stage, "entropy")
    if not pair:
        return
    ratio = pair[1] / max(pair[0], 1e-9)
    level: Level = "bad" if ratio < 0.2 else "warn" if ratio > 2 else "good"
    detail = (
        f"Entropy per token went from {number(pair[0])} to {number(pair[1])} nats; a fifth of it would be a collapse."
    )
    yield Finding(level, stage.id, "Answers stay varied", detail)


def _critic(stage: StageFiles) -> Iterator[Finding]:
    explained = stage.get("explained_variance")
    if explained is None:
        return
    level: Level = "good" if explained >= 0.5 else "warn"
    detail = f"The value model explains {percent(explained)} of the variance of returns; half is wanted."
    yield Finding(level, stage.id, "Value model is useful", detail)


def _pair(stage: StageFiles, name: str) -> tuple[float, float] | None:
    before, after = stage.get(f"{name}_before"), stage.get(f"{name}_after")
    return None if before is None or after is None else (before, after)


def _change(stage: StageFiles, name: str) -> float | None:
    pair = _pair(stage, name)
    return pair and pair[1] - pair[0]


def _clearly(stage: StageFiles, name: str, sign: int) -> bool:
    """Whether a share moved up (1) or down (−1) beyond doubt: by its paired interval where there is one."""
    low, high = stage.get(f"{name}_change_low"), stage.get(f"{name}_change_high")
    if low is not None and high is not None:
        return low > 0 if sign > 0 else high < 0
    return sign * (_change(stage, name) or 0.0) > CLEAR


def _not_up(stage: StageFiles, name: str, title: str, what: str) -> Iterator[Finding]:
    pair = _pair(stage, name)
    if not pair:
        return
    before, after = pair
    level: Level = "good" if after <= before + SLACK else "bad" if _clearly(stage, name, 1) else "warn"
    yield Finding(level, stage.id, title, f"{percent(before)} → {percent(after)} {what}.")


Check = Callable[[StageFiles], Iterator[Finding]]
CHECKS: Mapping[str, tuple[Check, ...]] = {
    "data": (_leakage,),
    "pretrain": (_overfitting,),
    "sft": (_overfitting,),
    "reward": (_accuracy, _baselines, _calibration, _ties),
    "preference": (_wins, _hacking, _divergence, _refusals, _repetition, _truncation),
    "group": (_wins, _hacking, _divergence, _ratio, _refusals, _repetition, _truncation, _entropy),
    "bestof": (_wins, _hacking, _divergence, _refusals, _repetition, _truncation),
    "distill": (_wins, _teacher, _refusals, _repetition, _truncation),
    "ppo": (
        _wins,
        _hacking,
        _divergence,
        _ratio,
        _refusals,
        _repetition,
        _truncation,
        _entropy,
        _critic,
    ),
}
