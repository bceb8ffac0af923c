"""Dialogues → token ids, once. What is asked and what is answered are encoded apart and joined as ids.

The ids of a prompt are therefore always a prefix of the ids of prompt + response: no boundary is ever
tokenised twice, and the ids a policy samples are the ids it is trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from assay.errors import ModelError
from assay.types import Message, Prompt

Template = Literal["chat", "plain", "tags"]
Piece = tuple[str, bool]
"""A text, and whether special tokens are read as such in it."""

PLAIN = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
TAGS = {"system": "<|system|>\n", "user": "<|user|>\n", "assistant": "<|assistant|>\n"}
SENTINEL = "assay7reply"
TEMPLATED = 4096  # prompts whose text under a chat template is remembered: it is asked for several times in a row


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one dialogue; the response, with its end, is `ids[prompt_length:]`."""

    ids: list[int]
    prompt_length: int


class Renderer:
    """Turns prompts and responses into ids of one tokenizer under one template.

    "chat" is the tokenizer's own chat template; "plain" is HH-RLHF's `\\n\\nHuman: … \\n\\nAssistant: …`;
    "tags" is `<|user|>…<|assistant|>…`. `max_length` is in tokens and bounds every row. Special tokens that
    are spelled out in someone's text are never read as special.
    """

    def __init__(self, tokenizer: Any, *, template: Template = "chat", max_length: int) -> None:
        if max_length < 2:
            raise ModelError(f"max_length is {max_length}", hint="a row needs a prompt and a response token")
        self.tokenizer = tokenizer
        self.template: Template = template
        self.max_length = max_length
        self._known: dict[Piece, list[int]] = {}
        self._lead = _leading_specials(tokenizer)
        self._special_ids, self._specials = _special_ids(tokenizer), _special_strings(tokenizer)
        style = _chat_style(tokenizer) if template == "chat" else _marker_style(tokenizer, template)
        self._forced, self._opening, self.eos_id, self.stop_strings = style
        self._ends = {self.eos_id, *(ids[0] for ids in map(self._marker_ids, self.stop_strings) if len(ids) == 1)}
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._chat = lru_cache(maxsize=TEMPLATED)(self._in_chat)

    @property
    def digest(self) -> str | None:
        """32 hex digits of what decides the ids of a text, this file's code aside; None where that is not known."""
        return digest_of_tokenizer(self.tokenizer, self.template, self.max_length)

    def prompt(self, prompt: Prompt, *, reserve: int = 1) -> list[int]:
        """Ids up to where the assistant speaks, at most `max_length - reserve`, so that `reserve` more fit.

        Too long a dialogue loses its oldest turns first, then the beginning of its last turn; a system turn,
        the leading BOS and the last turn's own header stay.
        """
        return self.fitted(prompt, reserve=reserve)[0]

    def fitted(self, prompt: Prompt, *, reserve: int = 1) -> tuple[list[int], bool]:
        """`prompt`, and whether the dialogue was too long and is cut."""
        room = max(self.max_length - reserve, 1)
        turns = prompt.messages
        ids = self._prompt_ids(turns)
        if len(ids) <= room:
            return ids, False
        while len(ids) > room and (shorter := _without_oldest(turns)):
            turns = shorter
            ids = self._prompt_ids(turns)
        return ids if len(ids) <= room else self._cut(turns, ids, room), True

    def response(self, text: str, *, end: bool = True) -> list[int]:
        """Ids to append to a prompt's; `end` adds the token that ends the turn."""
        ids = self._ids(self._reply(text))
        return [*ids, self.eos_id] if end else ids

    def row(self, prompt: Prompt, response: str) -> Row | None:
        """Prompt and response as one row of at most `max_length` ids; None when no label would remain.

        The response has the right of way, but leaves the prompt a quarter of the row: what is longer loses
        its end, and with it the token that says the answer is complete.
        """
        reply = self.response(response)
        if len(reply) < 2:
            return None
        least = min(len(reply), self.max_length - self.max_length // 4)
        asked = self.prompt(prompt, reserve=least)
        reply = reply[: self.max_length - len(asked)]
        return Row(asked + reply, len(asked))

    def rows(self, asked: Sequence[tuple[Prompt, str]]) -> list[Row | None]:
        """`row` of each; the texts are encoded in one call, which the tokenizer spreads over the cores."""
        self._known = encode_all(self.tokenizer, self.pieces(asked))
        try:
            return [self.row(prompt, response) for prompt, response in asked]
        finally:
            self._known = {}

    def pieces(self, asked: Sequence[tuple[Prompt, str]]) -> set[Piece]:
        """The texts that these rows are made of, each once."""
        said = {piece for prompt, _ in asked for piece in self._pieces(prompt.messages)}
        return said | {self._reply(response) for _, response in asked}

    def steps(self, prompt: Prompt, steps: Sequence[str]) -> tuple[Row, list[int]] | None:
        """Prompt and steps, each on a line of its own, as one row without an end token, and where each step ends.

        Steps are encoded apart: the ids of the first ones do not depend on what follows. Those that no longer fit
        `max_length` are left out; None when nothing remains.
        """
        parts = [
            self._text_ids(("\n" if number else self._opening) + step.strip()) for number, step in enumerate(steps)
        ]
        wanted = sum(map(len, parts))
        ids = self.prompt(prompt, reserve=min(wanted, self.max_length - self.max_length // 4))
        start, ends = len(ids), []
        for part in parts:
            if not part or len(ids) + len(part) > self.max_length:
                break
            ids = ids + part
            ends.append(len(ids) - 1)
        return (Row(ids, start), ends) if ends else None

    def text(self, response_ids: Sequence[int]) -> str:
        """What a person reads: up to the end token or a stop string, without specials, stripped."""
        ids = list(itertools.takewhile(lambda token: token not in self._ends, response_ids))
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for stop in self.stop_strings:
            text = text.split(stop, 1)[0]
        return text.strip()

    def leak(self, response_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The first special token in what a person reads, which `text` leaves out; empty where there is none."""
        ends = {*self._ends, self.tokenizer.eos_token_id}
        ids = list(itertools.takewhile(lambda token: token not in ends, response_ids))
        if self._special_ids.isdisjoint(ids):
            return ""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for string in (*self.stop_strings, *stop):
            text = text.split(string, 1)[0]
        found = self._specials.search(text)
        return found[0] if found else ""

    def document(self, text: str) -> Row:
        """A raw document as one row, all of it to be learnt (pretraining); not cut to `max_length`."""
        return Row([*self._lead, *self._text_ids(text), self.eos_id], 0)

    def _prompt_ids(self, turns: Sequence[Message]) -> list[int]:
        ids: list[int] = []
        for piece in self._pieces(turns):
            ids += self._ids(piece)
        return ids if self.template == "chat" and ids[: len(self._lead)] == self._lead else self._lead + ids

    def _pieces(self, turns: Sequence[Message]) -> list[Piece]:
        """What is encoded apart and then makes up a prompt."""
        if self.template == "chat":
            return [(self._chat(tuple(turns)), True)]
        markers, end = (PLAIN, []) if self.template == "plain" else (TAGS, [("\n", False)])
        said = ([(markers[t.role], True), (self._opening + t.content.strip(), False), *end] for t in turns)
        return [*itertools.chain.from_iterable(said), (markers["assistant"], True)]

    def _in_chat(self, turns: tuple[Message, ...]) -> str:
        cleaned = [{"role": turn.role, "content": self._specials.sub("", turn.content)} for turn in turns]
        rendered = self.tokenizer.apply_chat_template(cleaned, tokenize=False, add_generation_prompt=True)
        return rendered + self._forced

    def _reply(self, text: str) -> Piece:
        return self._opening + text.strip(), False

    def _cut(self, turns: Sequence[Message], ids: list[int], room: int) -> list[int]:
        """Keep what stands before the last turn's text, and the text's end."""
        blank = self._prompt_ids([*turns[:-1], Message(turns[-1].role, "")])
        header = next((i for i, (a, b) in enumerate(zip(ids, blank, strict=False)) if a != b), len(blank))
        tail = len(blank) - header
        if header + tail >= room:
            return ids[-room:]
        return ids[:header] + ids[len(ids) - (room - header) :]

    def _marker_ids(self, text: str) -> list[int]:
        return self._ids((text, True))

    def _text_ids(self, text: str) -> list[int]:
        return self._ids((text, False))

    def _ids(self, piece: Piece) -> list[int]:
        return self._known[piece] if piece in self._known else encode_all(self.tokenizer, [piece])[piece]


def encode_all(tokenizer: Any, pieces: Collection[Piece]) -> dict[Piece, list[int]]:
    """Ids of every piece, without special tokens around it."""
    found: dict[Piece, list[int]] = {}
    for markup in (False, True):
        wanted = [piece for piece in pieces if piece[1] == markup]
        if wanted:
            found |= zip(wanted, _encoded(tokenizer, [text for text, _ in wanted], markup), strict=True)
    return found


def _encoded(tokenizer: Any, texts: list[str], markup: bool) -> list[list[int]]:
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=not markup, verbose=False).input_ids
    backend = tokenizer.backend_tokenizer  # as transformers calls it, less half a second for every 10,000 texts
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not markup
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def digest_of_tokenizer(tokenizer: Any, *settings: object) -> str | None:
    """32 hex digits of a tokenizer that the tokenizers library runs, and of settings; None for another tokenizer."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    facts = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map, *settings)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _without_oldest(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The dialogue without its oldest exchange, still opened by a user; () when only one exchange is left."""
    system = tuple(turns[:1]) if turns[0].role == "system" else ()
    rest = turns[len(system) :]
    start = next((i for i in range(1, len(rest)) if rest[i].role == "user"), None)
    return () if start is None else (*system, *rest[start:])


def _leading_specials(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text: [BOS], [CLS] or nothing."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:start]


def _special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}


def _special_strings(tokenizer: Any) -> re.Pattern[str]:
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    specials |= {str(token) for token in tokenizer.all_special_tokens}
    longest_first = sorted(filter(None, specials), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _end_id(tokenizer: Any) -> int:
    """The token that ends a text: EOS, or [SEP] for encoders."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise ModelError("the tokenizer has no end-of-sequence token", hint="set tokenizer.eos_token and save it again")
    return end


Style = tuple[str, str, int, tuple[str, ...]]  # forced start of a reply, its opening space, end id, stop strings


def _marker_style(tokenizer: Any, template: Template) -> Style:
    if template == "plain":
        return "", " ", _end_id(tokenizer), (PLAIN["user"], PLAIN["assistant"])
    return "", "", _end_id(tokenizer), (TAGS["user"].strip(), TAGS["assistant"].strip())


def _chat_style(tokenizer: Any) -> Style:
    """Learn from one rendered exchange how this template opens and closes a reply."""
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template", hint='use template "plain" (Human:/Assistant:) or "tags" (<|user|>)'
        )
    ask = [{"role": "user", "content": "hello"}]
    asked = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    answered = tokenizer.apply_chat_template([*ask, {"role": "assistant", "content": SENTINEL}], tokenize=False)
    before, _, after = answered.partition(SENTINEL)
    opening = before[len(asked) :] if before.startswith(asked) else ""
    # An opening that is more than white space (an empty <think> block) is the template's, not the model's, to say.
    forced, opening = (opening, "") if opening.strip() else ("", opening)
    specials, closing = _special_ids(tokenizer), tokenizer(after, add_special_tokens=False).input_ids
    end = next((token for token in closing if token in specials), None)
    return forced, opening, _end_id(tokenizer) if end is None else end, ()
