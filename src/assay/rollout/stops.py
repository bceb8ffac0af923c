"""Stop strings in a text that grows token by token: only its end is decoded, and the rest of it when that has one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from assay.errors import UsageError
from assay.models.load import Tokenizer

BROKEN = "\ufffd"
"""What half a character is decoded to."""
CHARACTER = 4
"""Bytes, and so tokens, of a character at most."""


class StopStrings:
    """Whether one of some strings has come to stand in a text; asked after every token, it misses none."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        self.longest = max((len(string.encode()) for string in strings), default=0)

    def check(self, asked: Sequence[str]) -> None:
        """UsageError for a string that can never come: with a character that no token has, or half of.

        White space is not looked for: some tokenizers drop that of a lone token.
        """
        spelt = set().union(*self.alone)
        for string in asked:
            for character in string:
                in_parts = BROKEN in spelt and not character.isascii()
                if not (character in spelt or in_parts or character.isspace()):
                    raise UsageError(
                        f"sampling.stop: {string!r} can never stand in an answer, for no token of this model holds "
                        f"{character!r}",
                        hint="take it out of sampling.stop, or write it as this model's tokenizer does",
                    )

    def end(self, ids: Sequence[int]) -> bool:
        """Whether a string stands in the text of these tokens, the newest of which completed it."""
        if not self.strings or (self.completing is not None and ids[-1] not in self.completing):
            return False
        return self._in(self.tail(ids)) and self._in(self.text(ids))

    def tail(self, ids: Sequence[int]) -> str:
        """The end of the text, in which a string that the newest token completes stands whole.

        It begins as many tokens earlier as the longest string has bytes, and two more: decoders strip the first one's
        white space, and some give a token its own only when the next one comes. One of four neighbouring tokens begins
        a character, where text is valid; where all is broken, so is what the newest token adds.
        """
        start, needed = len(ids) - 1, self.longest + 2
        while start > 0 and needed > 0:
            start -= 1
            needed -= ids[start] in self.speaking
        if start < CHARACTER:
            return self.text(ids)
        text = ""
        for earlier in range(CHARACTER):
            text = self.text(ids[start - earlier :])
            if not text.startswith(BROKEN):
                return text
        return text if not text.strip(BROKEN) else self.text(ids)

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """With white space as it is, for stop strings may begin or end with some."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def before(self, ids: Sequence[int]) -> str:
        """The text in front of the first of the strings, without special tokens."""
        text = self.text(ids, skip_special_tokens=True)
        for string in self.strings:
            text = text.split(string, 1)[0]
        return text

    @cached_property
    def completing(self) -> frozenset[int] | None:
        """Tokens that may complete a string: their text holds its last character, or half of one; None when any may."""
        if any(string[-1].isspace() for string in self.strings):
            return None  # some tokenizers drop the white space of a lone token
        last = {string[-1] for string in self.strings} | {BROKEN}
        return frozenset(token for token, text in enumerate(self.alone) if last & set(text))

    @cached_property
    def speaking(self) -> frozenset[int]:
        """Tokens that have a text of their own."""
        return frozenset(token for token, text in enumerate(self.alone) if text)

    @cached_property
    def alone(self) -> list[str]:
        """The text of every token."""
        return self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])

    def _in(self, text: str) -> bool:
        return any(string in text for string in self.strings)
