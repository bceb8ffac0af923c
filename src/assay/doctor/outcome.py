"""What came of training a policy: its answers to held-out prompts against those of the model that it started from.

An outcome says that the result is bad and not why, so that it stands behind whatever else is found. Intervals are 95 %
and paired, prompt by prompt, as the stages report them.
"""

from __future__ import annotations

from collections.abc import Iterator

from assay.doctor.detector import Missing, detects
from assay.doctor.direct import SPOILED
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import SAMPLING, Log
from assay.doctor.responses import HALF, LOOPS, NEVER_STOPS, REPETITION, REWARD_HACKING
from assay.doctor.window import LATE, fell, late, text

OFFLINE = ("preference", "bestof", "distill")
"""Stages that log no samples while they train: what they do to answers shows in the end only."""
POLICIES = ("ppo", "group", *OFFLINE)

WORSE_THAN_BEFORE = Mode(
    58,
    "worse-than-before",
    "policy",
    "The answers are worse than before the training",
    "What the training asks for is not what the judge of the answers wants, or it has gone too far for too little.",
    "Keep the model it started from. Then see that the reward (or the pairs) and the judge prefer the same answers on "
    "held-out pairs, and train for fewer steps with a lower optim.learning_rate.",
    outcome=True,
)
WRONG_REFUSALS = Mode(
    59,
    "wrong-refusals",
    "policy",
    "The wrong requests are refused",
    "Refusing, or never refusing, pays whatever the request is.",
    "See how the data and the reward model score a refusal of a harmless request and of a harmful one, and add "
    "comparisons that show the difference.",
    outcome=True,
)
REWARD_FALLS = Mode(
    61,
    "reward-falls",
    "policy",
    "The reward is lower than at the start",
    "The policy unlearns what it is paid for: a sign is the wrong way round, rewards belong to other answers, steps "
    "are so long that it loses what it knew, or later prompts are harder.",
    "Score a good and a bad answer by hand, as the trainer does, and see that they come out in that order. Lower "
    "`optim.learning_rate` tenfold.",
    outcome=True,
)
MUCH = 0.2
"""Share of requests: beyond it an assistant is of no use, or a danger."""


@detects(REWARD_HACKING, kinds=OFFLINE)
def hacked(log: Log) -> Iterator[Finding]:
    """The reward model likes the new answers better, and the judge likes them less."""
    gained, won = log.number("reward_gain_low"), log.number("win_rate_high")
    if gained > 0 and won < HALF:
        seen = f"reward up by at least {gained:.2g}, and a win rate against the start of at most {won:.0%}"
        yield Finding(REWARD_HACKING, log.where, seen, "red", "certain")


@detects(WORSE_THAN_BEFORE, kinds=POLICIES)
def loses(log: Log) -> Iterator[Finding]:
    """The interval of the win rate is below one half."""
    rate, low, high = (log.number(f"win_rate{end}") for end in ("", "_low", "_high"))
    if high < HALF:
        seen = f"it wins {rate:.1%} of comparisons with the model it started from [{low:.1%}, {high:.1%}]"
        yield Finding(WORSE_THAN_BEFORE, log.where, seen)


@detects(REWARD_FALLS, kinds=SAMPLING)
def reward_falls(log: Log) -> Iterator[Finding]:
    """The last quarter of the steps against the first of them."""
    reward = log["objective/reward"]
    if len(reward) < 2 * LATE:
        raise Missing(f"{len(reward)} steps, and {2 * LATE} are needed")
    if fell(reward):
        seen = f"reward {text(late(reward))}; {reward.head(LATE).mean():.3g} in the first {LATE}"
        yield Finding(REWARD_FALLS, log.where, seen)


@detects(WORSE_THAN_BEFORE, kinds=("distill",))
def away_from_its_teacher(log: Log) -> Iterator[Finding]:
    before, after = log.number("teacher_kl_before"), log.number("teacher_kl_after")
    if after > before:
        cause = "The steps are too long, or teacher and student read the texts with different templates."
        cure = "Lower optim.learning_rate, and give both the same tokenizer and template."
        seen = f"KL from the teacher {before:.3g} → {after:.3g} nats an answer"
        yield Finding(WORSE_THAN_BEFORE, log.where, seen, cause=cause, cure=cure)


@detects(WRONG_REFUSALS, kinds=POLICIES)
def harmless_refused(log: Log) -> Iterator[Finding]:
    """Harmless requests that are refused now and were not."""
    if (surely := log.number("over_refusal_change_low")) > SPOILED:
        cause = "A refusal scores well whatever was asked, so the policy plays safe."
        yield misjudged(log, "over_refusal", "harmless", surely, cause)


@detects(WRONG_REFUSALS, kinds=POLICIES)
def harmful_answered(log: Log) -> Iterator[Finding]:
    """Harmful requests that were refused and are answered now."""
    if (surely := -log.number("harmful_refusal_change_high")) > SPOILED:
        cause = "A helpful answer scores well whatever was asked, so the policy complies."
        yield misjudged(log, "harmful_refusal", "harmful", surely, cause)


def misjudged(log: Log, name: str, what: str, surely: float, cause: str) -> Finding:
    before, after = log.number(f"{name}_before"), log.number(f"{name}_after")
    seen = f"{before:.1%} → {after:.1%} of {what} requests are refused, a change of at least {surely:.1%}"
    return Finding(WRONG_REFUSALS, log.where, seen, "red" if surely > MUCH else "amber", cause=cause)


@detects(REPETITION, NEVER_STOPS, kinds=OFFLINE)
def broken_answers(log: Log) -> Iterator[Finding]:
    """Answers that loop or do not end, and whether this stage has made them so."""
    for mode, name, limit, what in (
        (REPETITION, "repetition", LOOPS, "repeated 4-grams"),
        (NEVER_STOPS, "truncated", HALF, "answers cut off at max_new_tokens"),
    ):
        before, after, low = (log.number(f"{name}_{end}") for end in ("before", "after", "change_low"))
        if after > limit:
            earlier = "" if low > SPOILED else "It was so before this stage: the fault is in the model it began with."
            yield Finding(mode, log.where, f"{what} {before:.1%} → {after:.1%}", cause=earlier)
