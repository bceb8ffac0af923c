"""Each cleaning rule drops what it should, keeps what it should, and says how many and which."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.padding import similarity

from assay.data.clean import balance, clean, script_share
from assay.data.config import CleanConfig
from assay.data.load import Drops, Entry
from assay.data.near import near_duplicates
from assay.data.records import Item
from assay.types import Demonstration, Preference, Prompt

ASK = Prompt.ask("Where is the lift?")
FINE = Preference(ASK, "Left of the desk.", "No idea.")
NOTHING: dict[str, Any] = dict.fromkeys(("artefacts", "control_characters", "identical", "exact_duplicates"), False)


def entries(*items: Item) -> list[Entry]:
    return [Entry(item, f"desk.jsonl line {n}") for n, item in enumerate(items, start=1)]


def said(text: str) -> Demonstration:
    return Demonstration(ASK, text)


RULES: list[tuple[dict[str, Any], Item, str, Item]] = [
    ({"artefacts": True}, said("itâ€™s left"), "artefact: mojibake", said("it’s left")),
    ({"artefacts": True}, said("left<|im_end|>"), "artefact: special tokens of a chat template", said("left <i>")),
    ({"artefacts": True}, said("Dear {{name}},"), "artefact: unfilled placeholder", said("{a: {b: 1}}")),
    ({"artefacts": True}, said(" [deleted] "), "artefact: deleted by its author", said("It was [deleted].")),
    ({"artefacts": True}, said("a\n\nHuman: b"), "artefact: a response goes on into the next turn", said("Human: b")),
    ({"control_characters": True}, said("le\x00ft"), "control characters", said("le\tft\n")),
    ({"control_characters": True}, Demonstration(Prompt.ask("a\u202eb"), "c"), "control characters", said("é")),
    ({"identical": True}, Preference(ASK, "a  b", "a b"), "chosen and rejected are the same text", FINE),
    ({"min_response_chars": 3}, Preference(ASK, "yes", "no"), "a response shorter than 3 characters", FINE),
    ({"max_response_chars": 20}, said("x" * 21), "a response longer than 20 characters", said("x" * 20)),
    (
        {"max_prompt_chars": 18},
        Demonstration(Prompt.ask("x" * 19), "a"),
        "a prompt longer than 18 characters",
        said("a"),
    ),
    ({"script": "latin"}, said("Слева от стойки."), "not mostly in latin script", said("Left (лево) of it, 你")),
    ({"script": "cyrillic"}, said("Left."), "not mostly in cyrillic script", Demonstration(Prompt.ask("где?"), "там")),
    (
        {"max_repetition": 0.3},
        said("go left and up and " * 5),
        "more than 30% of its runs of 4 words are repeats",
        said("go left and up and then right and down and out"),
    ),
    ({"exact_duplicates": True}, FINE, "exact duplicate", Preference(ASK, "Left.", "No idea.")),
    (
        {"near_duplicates": 0.6},
        Preference(Prompt.ask("where is the lift"), "Left of the desk!", "No idea."),
        "near duplicate",
        Preference(ASK, "Second floor, past the bar.", "I would not know that."),
    ),
]


@pytest.mark.parametrize(("rule", "bad", "reason", "good"), RULES, ids=[f"{i}-{r[2]}" for i, r in enumerate(RULES)])
def test_a_rule_drops_what_it_names_and_nothing_else(rule: dict[str, Any], bad: Item, reason: str, good: Item) -> None:
    config = CleanConfig(**(NOTHING | rule))
    first = [FINE] if "duplicate" in reason else []
    drops = Drops()
    kept = clean(entries(*first, bad, good), config, drops)
    assert [entry.item for entry in kept] == [*first, good]
    assert drops.counts == {reason: 1}
    assert drops.examples[reason][0]["place"] == f"desk.jsonl line {len(first) + 1}"


@pytest.mark.parametrize(("rule", "bad", "reason", "good"), RULES, ids=[f"{i}-{r[2]}" for i, r in enumerate(RULES)])
def test_a_rule_that_is_off_drops_nothing(rule: dict[str, Any], bad: Item, reason: str, good: Item) -> None:
    drops = Drops()
    assert len(clean(entries(FINE, bad, good), CleanConfig(**NOTHING), drops)) == 3
    assert drops.total == 0


def test_examples_are_few_and_short() -> None:
    drops = Drops()
    clean(entries(*[said("\x00" + "x" * 999)] * 9), CleanConfig(), drops)
    (entry,) = drops.report()
    assert entry["count"] == 9
    assert len(entry["examples"]) == 5
    assert all(len(example["text"]) < 150 for example in entry["examples"])


def test_script_share_counts_letters_only() -> None:
    assert script_share("ab, где 123!", "latin") == pytest.approx(2 / 5)
    assert script_share("123 …", "latin") == 1.0


@given(seed=st.integers(0, 50), threshold=st.sampled_from([0.7, 0.8, 0.9]))
def test_near_duplicates_are_those_that_comparing_every_pair_finds(seed: int, threshold: float) -> None:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(12)]
    for text in list(texts):
        copy = text.split()
        copy[draw.randrange(len(copy))] = draw.choice(words)
        texts.append(" ".join(copy).upper() if draw.random() < 0.5 else " ".join(copy))
    kept: list[int] = []
    expected: set[int] = set()
    for i in range(len(texts)):
        if any(similarity(texts[k], texts[i]) >= threshold for k in kept):
            expected.add(i)
        else:
            kept.append(i)
    found = near_duplicates(texts, threshold)
    assert set(found) == expected
    assert all(similarity(texts[i], texts[twin]) >= threshold and twin not in found for i, twin in found.items())


def test_balancing_leaves_as_many_of_each_source_as_the_rarest_has() -> None:
    items = [
        Prompt.ask(f"{source}{i}", source=source) for source, n in (("a", 9), ("b", 4), ("c", 6)) for i in range(n)
    ]
    drops = Drops()
    kept = [entry.item for entry in balance(entries(*items), "source", 0, drops)]
    assert [sum(item.source == source for item in kept) for source in "abc"] == [4, 4, 4]  # type: ignore[union-attr]
    assert kept == [item for item in items if item in kept], "the order stays"
    assert drops.counts == {"more than the smallest source has": 7}
    assert balance(entries(*items), "none", 0, Drops()) == entries(*items)
