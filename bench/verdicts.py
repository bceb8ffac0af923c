"""Sentences about a run's numbers, good or not, each by a fixed rule; where there is an interval, it decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.common import Run, change, interval, percent

from assay.statistics import paired_bootstrap
from assay.tracking.metrics import read_json_lines

SLACK = 0.01
"""A share that rises by no more than this has not risen."""
RIVALS = {"length_only": "length alone", "bag_of_words": "a bag of words"}

Verdict = tuple[bool | None, str]
"""Good, not good, or undecided; and the sentence that says why."""


def judge_model(name: str, report: Mapping[str, Any]) -> Iterator[Verdict]:
    """Against chance, source by source, and against what needs no reading."""
    for part, facts in {"all": report, **report["slices"]["source"]}.items():
        low, high = facts["accuracy_low"], facts["accuracy_high"]
        pairs = "held-out pairs" if part == "all" else f"pairs of {part}"
        known = low > 0.5 or high < 0.5
        how = ("better than chance" if low > 0.5 else "worse than chance") if known else "not told from chance"
        yield low > 0.5 if known else None, f"The {name} is {how} on {pairs}: {interval(facts, 'accuracy')}."
    for rival, words in RIVALS.items():
        if rival not in report["baselines"]:
            continue
        facts = report["baselines"][rival]
        gain, low, high = (100 * facts[key] for key in ("gain", "gain_low", "gain_high"))
        known = low > 0 or high < 0
        how = ("beats" if low > 0 else "does worse than") if known else "is not told from"
        yield low > 0 if known else None, f"The {name} {how} {words}: {gain:+.1f} points ({low:+.1f} to {high:+.1f})."
    ece, floor, luck = (report["reliability"][key] for key in ("ece", "ece_floor", "ece_p"))
    near, off = ece - floor <= 0.02, luck < 0.05
    words = "means what it says" if near else "is off" if off else "is not shown to be off"
    good = True if near else False if off else None
    yield good, f"The {name}'s confidence {words}: error {percent(ece)}, where luck alone gives {percent(floor)}."


def judge_policy(run: Run) -> Iterator[Verdict]:
    """What PPO did to the reward it followed, to the judge's, and to the text."""
    ppo, proxy = run.metrics("ppo"), proxy_change(run)
    yield moved("PPO", "the reward it is trained on", proxy["gain"], proxy["gain_low"], proxy["gain_high"])
    yield moved("PPO", "the judge's reward, which it never saw", ppo["gain"], ppo["gain_low"], ppo["gain_high"])
    low, high = ppo["win_rate_low"], ppo["win_rate_high"]
    known = low > 0.5 or high < 0.5
    yield low > 0.5 if known else None, f"By the judge it wins {interval(ppo, 'win_rate')} against SFT."
    if proxy["gain_low"] > 0 and ppo["gain_high"] < 0:
        yield False, "The reward rises while the judge's falls: the policy games its reward model."
    kl, target = ppo["kl"], ppo["kl_target"]
    near = target / 2 <= kl <= 2 * target
    yield near, f"KL per answer is {kl:.1f} nats, {'within' if near else 'outside'} ½–2 × its target of {target:g}."
    for name, words in (("repetition", "Repetition"), ("truncated", "The share of answers cut off at the token limit")):
        up = ppo[f"{name}_after"] > ppo[f"{name}_before"] + SLACK
        yield not up, f"{words} is {'' if up else 'not '}up: {change(ppo, name)}."
    if ppo["truncated_after"] > 0.5:
        yield False, "Most answers never end."


def moved(who: str, what: str, gain: float, low: float, high: float) -> Verdict:
    known = low > 0 or high < 0
    how = ("raises" if low > 0 else "lowers") if known else "does not measurably change"
    return low > 0 if known else None, f"{who} {how} {what}: {gain:+.3f} ({low:+.3f} to {high:+.3f})."


def proxy_change(run: Run) -> dict[str, Any]:
    """Paired change of the reward PPO was trained on, over the held-out prompts of its last samples."""
    rows = list(read_json_lines(run.artifact("ppo") / "samples.jsonl"))
    last = max(row["step"] for row in rows)
    final = [row for row in rows if row["step"] == last]
    assert len(final) == run.metrics("ppo")["n"], "the last samples are not those of the final evaluation"
    changed = paired_bootstrap([row["reward_before"] for row in final], [row["reward_after"] for row in final], seed=0)
    return changed.named("gain")
