"""Which items to leave out, and why. Every rule has a reason; every reason is counted, with examples."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from assay.data.config import CleanConfig
from assay.data.items import identity, prompt_of, replies_of, texts_of
from assay.data.load import Drops, Entry
from assay.data.near import near_duplicates
from assay.data.ngrams import repetition
from assay.data.records import Item
from assay.data.stored import leave_out
from assay.rng import python_rng
from assay.types import Preference, Prompt

Rule = Callable[[Item], str | None]  # the reason to drop, or None to keep

ARTEFACTS = {
    "mojibake": re.compile("\ufffd|â€[™œ\x9d“”¦]|Ã[©¨¼¶¤±]"),
    "special tokens of a chat template": re.compile(
        r"<\|(?:endoftext|im_start|im_end|user|assistant|system|eot_id|start_header_id)\|>|\[/?INST\]|<</?SYS>>"
    ),
    "unfilled placeholder": re.compile(r"\{\{\s*\w+\s*\}\}|\[(?:INSERT|YOUR) [A-Z ]+\]"),
    "deleted by its author": re.compile(r"\A\s*\[(?:deleted|removed)\]\s*\Z"),
}
TURN_MARKER = re.compile(r"\n\n(?:Human|Assistant):")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
SCRIPT_SHARE = 0.5


def clean(entries: Iterable[Entry], config: CleanConfig, drops: Drops) -> list[Entry]:
    """The entries that pass every rule, in order; what does not is counted in `drops` under the first rule it fails."""
    kept = list(sound(entries, config, drops))
    return list(without_twins(kept, config.near_duplicates, drops)) if config.near_duplicates else kept


def sound(entries: Iterable[Entry], config: CleanConfig, drops: Drops) -> Iterator[Entry]:
    """The same, one entry after the other, for all rules but the one about near duplicates."""
    rules = _rules(config)
    seen: set[int] = set()  # 64-bit hashes: among a million items two differing ones agree once in forty million times
    for entry in entries:
        reason = next(filter(None, (rule(entry.item) for rule in rules)), None)
        if reason is None and config.exact_duplicates:
            key = hash(identity(entry.item))
            reason = "exact duplicate" if key in seen else None
            seen.add(key)
        if reason is None:
            yield entry
        else:
            drops.add(reason, entry.place, " ¦ ".join(texts_of(entry.item)[-2:]))


def without_twins(entries: Sequence[Entry], threshold: float, drops: Drops) -> Sequence[Entry]:
    """Compare the last question with its replies: a long dialogue that two rows share does not make them alike."""
    twins = near_duplicates([" ".join(_compared(entry.item)) for entry in entries], threshold)
    for index, earlier in twins.items():
        entry = entries[index]
        drops.add("near duplicate", entry.place, f"like {entries[earlier].place}: {' '.join(_compared(entry.item))}")
    return leave_out(entries, twins)


def balance(entries: Sequence[Entry], by: str, seed: int, drops: Drops) -> Sequence[Entry]:
    """As many items of every source or kind as the rarest has, drawn by seed, in order. Documents are left alone."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if (prompt := prompt_of(entry.item)) is not None:
            groups[prompt.source if by == "source" else prompt.kind].append(index)
    if by == "none" or len(groups) < 2:
        return entries
    size = min(map(len, groups.values()))
    out: set[int] = set()
    for name, members in groups.items():
        picked = set(python_rng(seed, "data", "balance", name).sample(members, size))
        out |= {index for index in members if index not in picked}
    for index in sorted(out):
        drops.add(f"more than the smallest {by} has", entries[index].place)
    return leave_out(entries, out)


def script_share(text: str, script: str) -> float:
    """Share of the letters that belong to a Unicode script; 1 for text without letters."""
    letters = Counter(char for char in text if char.isalpha())
    total = letters.total()
    return sum(n for char, n in letters.items() if _in_script(char, script)) / total if total else 1.0


def artefact_in(item: Item) -> str | None:
    """The first sign that this is not what a person wrote."""
    for text in texts_of(item):
        for name, pattern in ARTEFACTS.items():
            if pattern.search(text):
                return f"artefact: {name}"
    if not isinstance(item, str) and any(TURN_MARKER.search(reply) for reply in replies_of(item)):
        return "artefact: a response goes on into the next turn"
    return None


def _rules(config: CleanConfig) -> list[Rule]:
    rules: list[tuple[bool, Rule]] = [
        (config.artefacts, artefact_in),
        (config.control_characters, _control),
        (config.identical, _identical),
        (True, lambda item: _length(item, config)),
        (config.script is not None, lambda item: _script(item, config.script or "")),
        (config.max_repetition is not None, lambda item: _repeats(item, config.max_repetition or 1.0)),
    ]
    return [rule for wanted, rule in rules if wanted]


def _control(item: Item) -> str | None:
    return "control characters" if any(CONTROL.search(text) for text in texts_of(item)) else None


def _identical(item: Item) -> str | None:
    if isinstance(item, Preference) and item.chosen.split() == item.rejected.split():
        return "chosen and rejected are the same text"
    return None


def _length(item: Item, config: CleanConfig) -> str | None:
    replies = replies_of(item)
    if any(len(reply) < config.min_response_chars for reply in replies):
        return f"a response shorter than {config.min_response_chars:,} characters"
    if isinstance(item, str):
        return None
    if config.max_response_chars and any(len(reply) > config.max_response_chars for reply in replies):
        return f"a response longer than {config.max_response_chars:,} characters"
    prompt = item if isinstance(item, Prompt) else item.prompt
    if config.max_prompt_chars and sum(len(turn.content) for turn in prompt.messages) > config.max_prompt_chars:
        return f"a prompt longer than {config.max_prompt_chars:,} characters"
    return None


def _script(item: Item, script: str) -> str | None:
    if all(script_share(text, script) >= SCRIPT_SHARE for text in texts_of(item)):
        return None
    return f"not mostly in {script} script"


def _repeats(item: Item, limit: float) -> str | None:
    worst = max((repetition(reply.lower().split()) for reply in replies_of(item)), default=0.0)
    return f"more than {limit:.0%} of its runs of 4 words are repeats" if worst > limit else None


@lru_cache(maxsize=4096)
def _in_script(char: str, script: str) -> bool:
    return unicodedata.name(char, "").startswith(script.upper())


def _compared(item: Item) -> tuple[str, ...]:
    prompt = prompt_of(item)
    return replies_of(item) if prompt is None else (prompt.text, *replies_of(item))
