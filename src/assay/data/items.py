"""What the items have in common: their prompt, their texts, and what one purpose can be made of another."""

from __future__ import annotations

import itertools

from assay.data.records import Item
from assay.types import Demonstration, JudgedSteps, Preference, Prompt, Ranking, Verdict


def prompt_of(item: Item) -> Prompt | None:
    """The item's prompt; None for a raw document."""
    if isinstance(item, str):
        return None
    return item if isinstance(item, Prompt) else item.prompt


def replies_of(item: Item) -> tuple[str, ...]:
    """The item's responses, the best first; a document is its own text."""
    match item:
        case str():
            return (item,)
        case Prompt():
            return ()
        case Demonstration(_, response) | Verdict(_, response):
            return (response,)
        case Preference(_, chosen, rejected):
            return (chosen, rejected)
        case Ranking(_, responses):
            return responses
        case JudgedSteps(_, steps):
            return ("\n".join(steps),)


def texts_of(item: Item) -> tuple[str, ...]:
    """Every text a person wrote in it: the turns of the prompt, then the responses."""
    prompt = prompt_of(item)
    turns = () if prompt is None else tuple(turn.content for turn in prompt.messages)
    return turns + replies_of(item)


def identity(item: Item) -> tuple[object, ...]:
    """Equal for items that say the same, whatever their source."""
    prompt = prompt_of(item)
    judged = item.good if isinstance(item, Verdict | JudgedSteps) else None
    asked = item.objective if isinstance(item, Preference | Ranking) else ""
    return (type(item).__name__, prompt.id if prompt else "", *replies_of(item), judged, asked)


def as_preferences(item: Item) -> list[Preference]:
    """A pair as it is; a ranking of K as its K(K-1)/2 pairs (InstructGPT, arXiv 2203.02155, sec. 3.5)."""
    if isinstance(item, Preference):
        return [item]
    if isinstance(item, Ranking):
        pairs = itertools.combinations(item.responses, 2)
        return [Preference(item.prompt, good, bad, objective=item.objective) for good, bad in pairs]
    return []


def as_demonstration(item: Item) -> Demonstration | None:
    """The response worth imitating: the demonstrated, chosen, best-ranked or approved one; None if there is none."""
    if isinstance(item, Demonstration):
        return item
    if isinstance(item, str | Prompt) or (isinstance(item, Verdict) and not item.good):
        return None
    if isinstance(item, JudgedSteps) and not all(item.good):
        return None
    return Demonstration(item.prompt, replies_of(item)[0])
