"""Prompt and response as the two texts of an encoder: `tokenizer(prompt, response)`, with room kept for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assay.data.render import Piece, Row, digest_of_tokenizer, encode_all
from assay.types import Prompt

NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}


class PairRenderer:
    """Rows `[CLS] prompt [SEP] response [SEP]`, in whatever special tokens the tokenizer itself puts there."""

    def __init__(self, tokenizer: Any, *, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._known: dict[Piece, list[int]] = {}
        a, b, pair = self._ids("a"), self._ids("b"), tokenizer("a", "b").input_ids
        first = _find(pair, a, 0)
        second = _find(pair, b, first + len(a))
        self._before, self._between = pair[:first], pair[first + len(a) : second]
        self._after = pair[second + len(b) :]

    @property
    def digest(self) -> str | None:
        """32 hex digits of what decides the ids of a text, this file's code aside; None where that is not known."""
        return digest_of_tokenizer(self.tokenizer, "pair", self.max_length)

    def rows(self, asked: Sequence[tuple[Prompt, str]]) -> list[Row | None]:
        """`row` of each; the texts are encoded in one call, which the tokenizer spreads over the cores."""
        texts = {text for prompt, response in asked for text in (dialogue(prompt), response)}
        self._known = encode_all(self.tokenizer, {(text, False) for text in texts})
        try:
            return [self.row(prompt, response) for prompt, response in asked]
        finally:
            self._known = {}

    def row(self, prompt: Prompt, response: str) -> Row | None:
        """At most `max_length` ids: the prompt loses its beginning, but keeps a quarter; None without a response."""
        asked, reply = self._ids(dialogue(prompt)), self._ids(response)
        if not reply:
            return None
        room = self.max_length - len(self._before) - len(self._between) - len(self._after)
        reply = reply[: max(room - min(len(asked), room // 4), 1)]
        asked = asked[max(len(asked) - (room - len(reply)), 0) :]
        head = [*self._before, *asked, *self._between]
        return Row([*head, *reply, *self._after], len(head))

    def _ids(self, text: str) -> list[int]:
        piece = (text, False)
        return self._known[piece] if piece in self._known else encode_all(self.tokenizer, [piece])[piece]


def dialogue(prompt: Prompt) -> str:
    """One question as it stands; a longer dialogue with the speaker's name before each turn."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"{NAMES[turn.role]}: {turn.content}" for turn in prompt.messages)


def _find(ids: list[int], part: list[int], start: int) -> int:
    return next(i for i in range(start, len(ids)) if ids[i : i + len(part)] == part)
