"""The groups of the group methods: whether their answers differ in score, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterator

from assay.doctor.detector import detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log
from assay.doctor.window import LATE, bounds, late

GROUPS_WITHOUT_SIGNAL = Mode(
    41,
    "groups-without-signal",
    "policy",
    "Groups whose answers all score alike",
    "In most groups every answer gets the same reward: the prompts are too easy or too hard, or the reward does not "
    "look at the answer.",
    "Filter prompts that are always or never solved, draw new ones for them (resample: 3), and raise group_size (16).",
    ("nothing-moves",),
)
BROKEN_GROUPS = Mode(
    42,
    "broken-groups",
    "policy",
    "A group holds answers to different prompts",
    "Answers were put in another order than their prompts before they were compared with each other.",
    "Group by the prompt's id, and do not shuffle or filter single answers between sampling and the advantages.",
)
MOST = 0.5
"""Share of groups without spread, over the whole run."""


@detects(GROUPS_WITHOUT_SIGNAL, kinds=("group",))
def groups_without_signal(log: Log) -> Iterator[Finding]:
    """Over the whole run: a policy that has solved its task has such groups at the end, too."""
    if log.config.get("group_size") == 1:
        return
    share = log["objective/groups_without_signal"]
    low, _ = bounds(late(share, max(LATE, len(share))))
    if low > MOST:
        seen = f"{share.values.mean():.0%} of the groups (at least {low:.0%}, {len(share)} steps) have no spread"
        if share.values.min() >= 1:  # new prompts would be drawn for ever
            cause = "The reward does not look at the answer: to every prompt it gives the same score whatever is said."
            cure = "Score two different answers to one prompt by hand: the reward must tell them apart."
            yield Finding(GROUPS_WITHOUT_SIGNAL, log.where, seen, "red", "certain", cause, cure)
        else:
            yield Finding(GROUPS_WITHOUT_SIGNAL, log.where, seen, "amber", "likely", change={"resample": 3})


@detects(BROKEN_GROUPS, kinds=("group",))
def broken_groups(log: Log) -> Iterator[Finding]:
    prompts = log["objective/prompts_per_group"].values
    if prompts.max() > 1:
        seen = f"up to {prompts.max():.3g} different prompts in a group, on average {prompts.mean():.2g}"
        yield Finding(BROKEN_GROUPS, log.where, seen, "red", "certain")
