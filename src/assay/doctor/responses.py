"""What becomes of the answers while a policy learns from its own samples: their worth, loops, ends and length."""

from __future__ import annotations

from collections.abc import Iterator

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import SAMPLING, Log
from assay.doctor.window import CONFIDENCE, LATE, SIGNIFICANT, bounds, late, text, together, trend

REWARD_HACKING = Mode(
    36,
    "reward-hacking",
    "policy",
    "The reward rises while the answers get worse",
    "The policy has found what the reward model likes and people do not.",
    "Stop where the truth was highest (patience: 3), raise kl_coef, and train the reward model on comparisons of such "
    "answers, or as an ensemble (ensemble: {members: 4, aggregate: uncertainty}).",
    ("kl-blow-up", "repetition", "empty-answers", "entropy-out-of-bounds", "length-growth"),
)
REPETITION = Mode(
    37,
    "repetition",
    "policy",
    "Answers repeat themselves",
    "The reward does not count loops against an answer, or pays for them, and the policy has found that out.",
    "Score a few loops with the reward model: if they score well, train it on comparisons that have some. Raise "
    "kl_coef, and see that answers end (never-stops).",
    ("never-stops", "kl-blow-up", "entropy-out-of-bounds"),
)
NEVER_STOPS = Mode(
    38,
    "never-stops",
    "policy",
    "Answers do not end",
    "The policy hardly ever emits the end token: it was never taught to, or nothing is lost by going on.",
    "See that the end token is among the labels of the SFT stage (eos-not-learned), keep missing_eos: set with a "
    "missing_eos_penalty of 1 or more, or raise sampling.max_new_tokens if good answers are that long.",
    ("repetition", "kl-blow-up"),
)
EMPTY_ANSWERS = Mode(
    39,
    "empty-answers",
    "policy",
    "Answers shrink to nothing",
    "The reward pays for silence: a short or empty answer scores better than an attempt.",
    "Score an empty answer with the reward model: it must be the worst. Keep missing_eos: set, which pays an empty "
    "answer as one without an end, and train the reward model on comparisons with short bad answers.",
    ("kl-blow-up", "entropy-out-of-bounds"),
)
LOOPS = 0.2
"""Repeated 4-grams; the catalogue's. Healthy: below 0.05."""
HALF, ALL = 0.5, 0.99
EMPTY, SHRUNK = 0.2, 0.2
"""Share of empty answers, and length as a share of the start's (the catalogue's)."""


@detects(REWARD_HACKING, kinds=SAMPLING)
def reward_hacking(log: Log) -> Iterator[Finding]:
    """Over the run, or its second half, the proxy climbs and the truth falls; or a judge prefers the start."""
    final = log.final
    gained, won = final.get("reward_gain_low"), final.get("win_rate_high")
    if isinstance(gained, float) and isinstance(won, float) and gained > 0 and won < HALF:
        seen = f"reward up by at least {gained:.2g}, and a win rate against the start of at most {won:.0%}"
        yield Finding(REWARD_HACKING, log.where, seen, "red", "certain")
        return
    if "objective/truth" not in log:
        if won is None:
            raise Missing("nothing but the reward judges the answers: no truth, and no judge")
        return
    reward, truth = together(log, "objective/reward", "objective/truth")
    for part in (slice(None), slice(len(truth) // 2, None)):
        if len(truth.values[part]) < 2 * LATE:
            continue
        (up, p_up), (down, p_down) = trend(reward, part), trend(truth, part)
        if up > 0 > down and p_up < 1 - CONFIDENCE and p_down < SIGNIFICANT:
            first, last = (int(truth.steps[part][i]) for i in (0, -1))
            seen = (
                f"from step {first} to {last} the reward changes by {up * (last - first):+.2g} and the truth by "
                f"{down * (last - first):+.2g} (p = {p_down:.1g})"
            )
            yield Finding(REWARD_HACKING, log.where, seen, change={"patience": 3})
            return


@detects(REPETITION, kinds=SAMPLING)
def repeats(log: Log) -> Iterator[Finding]:
    series = log["text/repetition"]
    values = late(series)
    seen = f"share of repeated 4-grams {text(values)}, {series.first:.2g} at the start"
    if bounds(values)[0] > LOOPS and series.first > LOOPS:
        cause = "The policy repeated itself before this stage began: the fault is in the SFT model or its data."
        yield Finding(REPETITION, log.where, seen, "red", "likely", cause)
    elif bounds(values)[0] > max(LOOPS, 2 * series.first):
        yield Finding(REPETITION, log.where, seen)


@detects(NEVER_STOPS, kinds=SAMPLING)
def never_stops(log: Log) -> Iterator[Finding]:
    series = log["lengths/truncated"]
    values = late(series)
    if bounds(values)[0] > HALF:
        seen = f"answers cut off at max_new_tokens: {text(values)}, {series.first:.2g} at the start"
        if series.first > HALF:
            cause = (
                "The model did not end its answers before this stage began: it has not learned the end token, or good "
                "answers are longer than `max_new_tokens` allows."
            )
            sure = "certain" if min(series.first, values.min()) >= ALL else "likely"
            yield Finding(NEVER_STOPS, log.where, seen, "red", sure, cause)
        else:
            yield Finding(NEVER_STOPS, log.where, seen, "red", "likely", change={"missing_eos": "set"})


@detects(EMPTY_ANSWERS, kinds=SAMPLING)
def empty_answers(log: Log) -> Iterator[Finding]:
    lengths = log["lengths/response_mean"]
    short = late(lengths)
    empty = late(log["lengths/empty"]) if "lengths/empty" in log else None
    if bounds(short)[1] < SHRUNK * lengths.first or (empty is not None and bounds(empty)[0] > EMPTY):
        seen = f"{text(short)} tokens an answer, {lengths.first:.3g} at the start"
        if empty is not None:
            seen = f"{text(empty)} of the answers are empty; {seen}"
        yield Finding(EMPTY_ANSWERS, log.where, seen, change={"missing_eos": "set", "missing_eos_penalty": 1.0})
