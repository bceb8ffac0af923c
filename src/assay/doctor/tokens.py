"""What is wrong with tokens: rows as training sees them, and whether a trained policy ends its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from assay.data.items import prompt_of, replies_of
from assay.data.records import Item
from assay.data.render import Renderer, Row
from assay.data.tokens import Rendered
from assay.doctor.data import IDENTICAL_PAIRS, RARE, SURE, at_least, evenly, percent, severity
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.statistics import Floats, wilson
from assay.types import Demonstration, Prompt

if TYPE_CHECKING:
    from assay.models.policy import Policy

SAMPLE = 1000
"""Items that are rendered: a second or two."""
PROBED = 64
"""Demonstrations at whose end a policy is asked: one batch."""
CUT = 0.02
"""Share of answers cut off that costs little: a set has its few long ones."""
MOST, NEARLY_ALL = 0.5, 0.9
"""Shares of prompts that lose their beginning. Dialogues may: their last turns say most."""
ENDS = 0.1
"""Mean probability of the end token where a demonstration ends (the catalogue's limit). Healthy policies: above 0.5."""

RESPONSE_CUT = Mode(
    6,
    "response-cut-away",
    "data",
    "Answers do not fit into the rows",
    "Rows are shorter than prompt and answer together, so the end of the answer, or all of it, is never learned.",
    "Raise max_length of the stage, or drop long rows (data.clean.max_prompt_chars, max_response_chars).",
    ("eos-not-learned", "never-stops", "identical-pairs", "stuck-at-ln2", "reward-at-chance"),
)
EOS_NOT_LEARNED = Mode(
    9,
    "eos-not-learned",
    "data",
    "The model never learned to end an answer",
    "The end token is no label in training, most often because it is also the pad token and pads are masked by id.",
    "Give the tokenizer a pad token of its own, mask by length and not by pad id, and train SFT again.",
    ("never-stops", "repetition", "length-growth"),
)
BOUNDARY = Mode(
    7,
    "boundary-tokens",
    "data",
    "The prompt has other tokens in training than when it is asked",
    "Prompt and answer were encoded as one text, and a token grew together across the boundary.",
    "Encode prompt and answer apart and join the ids; let no template end in a space.",
)
PROMPTS_CUT = Mode(
    57,
    "prompts-cut-away",
    "data",
    "Most prompts lose their beginning",
    "What a row has room for, less the answer, is shorter than most prompts, so the question itself is cut away.",
    "Raise max_length of the stage, lower sampling.max_new_tokens, or drop long prompts (data.clean.max_prompt_chars).",
    ("reward-at-chance", "repetition"),
)
DOUBLE_BOS = Mode(
    8,
    "double-bos",
    "data",
    "Rows begin with two begin tokens",
    "The template writes a begin token and the tokenizer adds another, which the model has never seen before.",
    "Encode rendered text with add_special_tokens=False, or take the begin token out of the chat template.",
)


@dataclass(frozen=True)
class Tokens:
    """Items as rows: what a stage with this tokenizer, template and `max_length` would train on."""

    where: str
    renderer: Renderer
    items: Sequence[Item]
    embeddings: int | None = None
    """Tokens that the model has an embedding for, where that is known."""
    kept: Rendered | None = None
    """The rows of a run as it has kept them; where there are none, rows are made."""
    kind: str = "tokens"

    @cached_property
    def asked(self) -> list[list[tuple[Prompt, str]]]:
        """Of each item of a sample the prompt with each of its replies."""
        sample = [(prompt_of(item), replies_of(item)) for item in evenly(self.items, SAMPLE)]
        found = [[(prompt, reply) for reply in replies if reply.strip()] for prompt, replies in sample if prompt]
        if not any(found):
            raise Missing("there is nothing to render")
        return found

    @cached_property
    def rows(self) -> list[list[Row | None]]:
        """A row for each of them."""
        if self.kept is None:
            return [[self.renderer.row(prompt, reply) for prompt, reply in item] for item in self.asked]
        found: list[list[Row | None]] = []
        for number in evenly(range(len(self.items)), SAMPLE):
            item = self.items[number]
            rows = self.kept.rows[int(self.kept.starts[number]) : int(self.kept.starts[number + 1])]
            if prompt_of(item):
                found.append([row for row, reply in zip(rows, replies_of(item), strict=True) if reply.strip()])
        return found

    @property
    def whole(self) -> list[Row]:
        """All rows that there are."""
        return [row for rows in self.rows for row in rows if row]


@dataclass(frozen=True)
class Prompts:
    """Prompts as a stage that answers them would read them, with `room` tokens for each."""

    where: str
    renderer: Renderer
    prompts: Sequence[Prompt]
    room: int
    kind: str = "prompts-as-tokens"


@dataclass(frozen=True)
class Endings:
    """The probability that a trained policy ends where demonstrations do."""

    where: str
    probabilities: Floats
    kind: str = "endings"

    @classmethod
    def of(cls, where: str, policy: Policy, renderer: Renderer, shown: Sequence[Demonstration]) -> Endings:
        """Ask it, once for each of at most `PROBED` demonstrations that fit."""
        import torch

        from assay.data.pack import collate

        rows = [renderer.row(one.prompt, one.response) for one in evenly(shown, PROBED)]
        ended = [row for row in rows if row and row.ids[-1] == renderer.eos_id]
        if not ended:
            raise Missing("no demonstration fits with its end")
        policy.eval()
        with torch.no_grad():
            scored = policy.logprobs(collate(ended, policy.pad_id).to(policy.backbone.device))
        ends = scored.mask_BR.sum(1, keepdim=True) - 1
        return cls(where, scored.logprobs_BR.gather(1, ends).exp().flatten().double().cpu().numpy())


@detects(RESPONSE_CUT)
def cut_away(tokens: Tokens) -> Iterator[Finding]:
    """Rows that lost the end of their answer, or all of it."""
    rows = [row for item in tokens.rows for row in item]
    cut = [row for row in rows if row is None or row.ids[-1] != tokens.renderer.eos_id]
    seen = wilson(len(cut), len(rows), confidence=SURE)
    if at_least(seen, CUT):
        needed = _needed(tokens)
        said = f"{len(cut):,} of {len(rows):,} answers ({percent(seen)}) lose their end at {tokens.renderer.max_length}"
        said += f" tokens; nineteen of twenty need at most {needed:,}"
        yield Finding(
            RESPONSE_CUT, tokens.where, said, severity(seen), "certain", change={f"{tokens.where}.max_length": needed}
        )


@detects(PROMPTS_CUT)
def prompts_cut_away(prompts: Prompts) -> Iterator[Finding]:
    """Prompts longer than their room; the last turn's end is what is kept."""
    asked = evenly(prompts.prompts, SAMPLE)
    if not asked:
        raise Missing("there are no prompts")
    whole = unlimited(prompts.renderer)
    lengths = [len(whole.prompt(prompt)) for prompt in asked]
    cut = sum(length > prompts.room for length in lengths)
    seen = wilson(cut, len(asked), confidence=SURE)
    if at_least(seen, MOST):
        needed = int(np.quantile(lengths, 0.95, method="higher")) + prompts.renderer.max_length - prompts.room
        said = f"{cut:,} of {len(asked):,} prompts ({percent(seen)}) are longer than the {prompts.room} tokens there "
        said += f"are for them; with max_length {needed:,} nineteen of twenty are whole"
        grave = "red" if at_least(seen, NEARLY_ALL) else "amber"
        yield Finding(
            PROMPTS_CUT, prompts.where, said, grave, "certain", change={f"{prompts.where}.max_length": needed}
        )


@detects(IDENTICAL_PAIRS)
def same_rows(tokens: Tokens) -> Iterator[Finding]:
    """Pairs whose two answers have the same tokens, cut as they are."""
    pairs = [rows for item in tokens.rows if len(rows := [row for row in item if row]) > 1]
    same = sum(rows[0].ids == rows[1].ids for rows in pairs)
    if pairs and at_least(seen := wilson(same, len(pairs), confidence=SURE), RARE):
        said = f"{same:,} of {len(pairs):,} pairs ({percent(seen)}) have the same tokens on both sides"
        yield Finding(IDENTICAL_PAIRS, tokens.where, said, severity(seen), "certain")


@detects(BOUNDARY)
def grown_together(tokens: Tokens) -> Iterator[Finding]:
    """Rows whose prompt is not what a sampler would be given: the two are encoded differently."""
    pairs = [
        (prompt, row)
        for item, rows in zip(tokens.asked, tokens.rows, strict=True)
        for (prompt, _), row in zip(item, rows, strict=True)
        if row
    ]
    odd = sum(
        tokens.renderer.prompt(prompt, reserve=len(row.ids) - row.prompt_length) != row.ids[: row.prompt_length]
        for prompt, row in pairs
    )
    if pairs and at_least(seen := wilson(odd, len(pairs), confidence=SURE), 0.0) and odd:
        said = (
            f"in {odd:,} of {len(pairs):,} rows ({percent(seen)}) the prompt's tokens are others than when it is asked"
        )
        yield Finding(BOUNDARY, tokens.where, said, sureness="certain")


@detects(DOUBLE_BOS)
def begins_twice(tokens: Tokens) -> Iterator[Finding]:
    """Rows that begin with the begin token twice."""
    begin = tokens.renderer.tokenizer.bos_token_id
    odd = sum(row.ids[:2] == [begin, begin] for row in tokens.whole)
    if odd:
        said = f"{odd:,} of {len(tokens.whole):,} rows begin with {tokens.renderer.tokenizer.bos_token!r} twice"
        yield Finding(DOUBLE_BOS, tokens.where, said, sureness="certain")


@detects(EOS_NOT_LEARNED)
def does_not_end(endings: Endings) -> Iterator[Finding]:
    """A policy that gives the end token next to no probability where an answer ends."""
    p = endings.probabilities
    if len(p) < 2:
        raise Missing("one demonstration is too few to tell")
    error = float(p.std(ddof=1)) / len(p) ** 0.5
    if p.mean() + 2.58 * error < ENDS:
        said = (
            f"where an answer ends, the policy ends with probability {p.mean():.3g} ± {error:.1g} on {len(p)} answers"
        )
        yield Finding(EOS_NOT_LEARNED, endings.where, said)


def _needed(tokens: Tokens) -> int:
    """Tokens that 95 % of prompts and answers have together, uncut."""
    free = unlimited(tokens.renderer)
    rows = [free.row(prompt, reply) for item in tokens.asked for prompt, reply in item]
    return int(np.quantile([len(row.ids) for row in rows if row], 0.95, method="higher"))


def unlimited(renderer: Renderer) -> Renderer:
    """The same, with room for everything."""
    return Renderer(renderer.tokenizer, template=renderer.template, max_length=2**20)
