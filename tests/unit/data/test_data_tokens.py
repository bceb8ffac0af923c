"""Rows encoded together are the rows encoded alone; a second start finds them, and nothing else in their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from assay.data.records import from_line, to_line
from assay.data.render import Renderer, Row
from assay.data.stored import Stored, store
from assay.data.tokens import Rendered, RowRenderer, render
from assay.models.config import Template
from assay.models.pairs import PairRenderer
from assay.types import Demonstration, Message, Preference, Prompt, Ranking

TALK = (Message("user", "what time is it?"), Message("assistant", "noon, I think."), Message("user", "book a table"))
ASKED = [
    Prompt.ask("the quick brown fox"),
    Prompt(TALK),
    Prompt((Message("system", "help me, please"), *TALK)),
    Prompt.ask("<|endoftext|> [BOS] over a lazy dog " * 9),
]
ITEMS: list[Any] = [
    *(Preference(prompt, "yes, of course", "sorry, I cannot do that! " * n) for n, prompt in enumerate(ASKED)),
    Preference(ASKED[0], "", "no"),
    Ranking(ASKED[1], ("one", "two", "<|user|>three")),
    Demonstration(ASKED[2], "jumps " * 30),
]
REPLIES = [("yes, of course", "sorry, I cannot do that! " * n) for n in range(4)]
REPLIES += [("", "no"), ("one", "two", "<|user|>three"), ("jumps " * 30,)]


def renderers() -> list[RowRenderer]:
    templates: tuple[Template, ...] = ("plain", "tags", "chat")
    found: list[RowRenderer] = [
        Renderer(tiny.tokenizer(), template=template, max_length=length)
        for template in templates
        for length in (6, 24, 100_000)
    ]
    return [*found, PairRenderer(tiny.tokenizer(), max_length=20)]


@pytest.mark.parametrize("renderer", renderers(), ids=lambda r: f"{getattr(r, 'template', 'pair')}-{r.max_length}")
def test_rows_encoded_together_are_those_encoded_alone(renderer: Any) -> None:
    alone = [
        [renderer.row(item.prompt, reply) for reply in replies] for item, replies in zip(ITEMS, REPLIES, strict=True)
    ]
    rendered = render(renderer, ITEMS)
    assert rendered.rows == [row for rows in alone for row in rows]
    assert [rendered.of(i) for i in range(len(ITEMS))] == [tuple(filter(None, rows)) for rows in alone]
    assert rendered.counts().tolist() == [len(list(filter(None, rows))) for rows in alone]
    assert rendered.tokens().tolist() == [sum(len(row.ids) for row in rows if row) for rows in alone]
    assert list(rendered.whole()) == [row for rows in alone for row in rows if row]


class Deaf:
    """A renderer that must not be asked."""

    def __init__(self, renderer: RowRenderer) -> None:
        self.tokenizer, self.max_length, self.digest = renderer.tokenizer, renderer.max_length, renderer.digest

    def rows(self, asked: Sequence[tuple[Prompt, str]]) -> Sequence[Row | None]:
        raise AssertionError("rendered again")


def on_disk(items: Sequence[Any]) -> Stored[Any]:
    return store(items, to_line, from_line)


def same(one: Rendered, other: Rendered) -> bool:
    return one.rows == other.rows and one.starts.tolist() == other.starts.tolist()


def test_equal_items_are_found_again_and_other_ones_are_not(tmp_path: Path) -> None:
    renderer = Renderer(tiny.tokenizer(), template="plain", max_length=24)
    first = render(renderer, on_disk(ITEMS), tmp_path)
    assert same(render(Deaf(renderer), on_disk([ITEMS[0], *ITEMS])[1:], tmp_path), first)
    others: list[tuple[RowRenderer, Sequence[Any]]] = [
        (renderer, on_disk(ITEMS[1:])),
        (renderer, on_disk(ITEMS[::-1])),
        (Renderer(tiny.tokenizer(), template="tags", max_length=24), on_disk(ITEMS)),
        (Renderer(tiny.tokenizer(), template="plain", max_length=25), on_disk(ITEMS)),
        (renderer, ITEMS),  # what is in memory has no digest
    ]
    for other, items in others:
        with pytest.raises(AssertionError, match="rendered again"):
            render(Deaf(other), items, tmp_path)


@pytest.mark.parametrize("ending", [".rows", ".npz"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b""])
def test_rows_that_are_damaged_are_made_again(tmp_path: Path, ending: str, damage: Any) -> None:
    renderer, items = Renderer(tiny.tokenizer(), template="plain", max_length=24), on_disk(ITEMS)
    first = list(render(renderer, items, tmp_path).rows)
    (file,) = tmp_path.glob(f"*{ending}")
    file.write_bytes(damage(file.read_bytes()))
    assert render(renderer, items, tmp_path).rows == first
    assert render(Deaf(renderer), items, tmp_path).rows == first
