"""What is wrong with a response as a piece of text, whatever it says. Pure functions, linear in the text's length.

check(prompt, text, finish=…) → flags: a reason, and in words what was seen and where

Thresholds are measured: docs/results/guard.md, docs/guard.md. A text with no flag may still be wrong, rude or useless;
and a text that was cut where a sentence may end cannot be told from one that was not, unless `finish` says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from assay.data.ngrams import ngrams, repetition
from assay.rollout import languages
from assay.rollout.ordinary import Ratios, mean, ordinary
from assay.types import FinishReason, Prompt

Reason = Literal["empty", "truncated", "loop", "gibberish", "echo", "language", "leak"]
REASONS: tuple[Reason, ...] = get_args(Reason)

SHOWN = 40
"""Characters of a response that a flag quotes at most."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that is broken."""

    reason: Reason
    says: str
    """What was seen, and where, in words."""


def check(
    prompt: Prompt | None,
    text: str | None,
    *,
    finish: FinishReason | None = None,
    leak: str = "",
) -> tuple[Flag, ...]:
    """Everything that is broken in a response; nothing where it is whole.

    Without a prompt nothing is compared with it. `finish`: how it ended, where that is known. `leak`: a special
    token before its end, where the text does not show those.
    """
    if not isinstance(text, str) or not (body := visible(text)):
        return (Flag("empty", "there is no text" if not text else "there is nothing to see in the text"),)
    asked = prompt.text if prompt is not None else ""
    found = [
        *_leaks(asked, text, leak),
        *_no_words(body),
        *_loops(asked, body),
        *_gibberish(asked, body),
        *_truncation(body, finish),
    ]
    if prompt is not None:
        found += [*_echo(prompt, body), *_language(asked, body)]
    return tuple(found)


def visible(text: str) -> str:
    """Without white space around it; empty where only characters without a shape are left."""
    text = text.strip()
    return text if any(not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc", "Mn") for c in text) else ""


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def _at(text: str, start: int) -> str:
    return f"at character {start + 1:,} of {len(text):,}"


# --- Empty

_NO_WORDS = re.compile(r"[\s.,;:!?…\-–—*#'\"`~]+")


def _no_words(text: str) -> Iterator[Flag]:
    """Punctuation alone; brackets, signs and symbols may be an answer."""
    if _NO_WORDS.fullmatch(text):
        yield Flag("empty", f"there is punctuation and nothing else: {_quoted(text)}")


# --- Leaks

_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<\uff5c[^<>\n]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|</s>|<s>(?!.*</s>)"
    r"|</?(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|sep|cls)>|\[(?:PAD|CLS|SEP|UNK|MASK|BOS|EOS)\]"
    r"|<0x[0-9A-F]{2}>|[Ġ▁Ċ]\w|\w##\w|\b##[a-z]{2}|</w>"
)
_ROLE = re.compile(
    r"^[ \t>*_]*(?:#{2,4}[ \t]*(?:Human|Assistant|User|System|Instruction|Response)\b[ \t]*:?"
    r"|(?:Human|Assistant|USER|ASSISTANT|SYSTEM|User|System|Bot|Chatbot|GPT|AI)[ \t*_]*:)",
    re.MULTILINE,
)
_WORDS_TOO = frozenset({"AI", "Bot", "Chatbot", "GPT", "System", "User"})
"""Markers that a glossary may explain."""
_LABEL = re.compile(r"[ \t>*_]*[A-Z]\w{1,20}[ \t*_]*:(?=[ \t*_])")
_DIALOGUE = re.compile(
    r"dialog|conversation|\bchat|script|interview|screenplay|\bscene|role[- ]?play|transcript|assistant|\bprompts?\b",
    re.IGNORECASE,
)


def _leaks(asked: str, text: str, leak: str) -> Iterator[Flag]:
    """What belongs to the format and not to the answer, unless the prompt holds it or asks for something like it."""
    if leak and leak not in asked:
        yield Flag("leak", f"special token {leak!r} before the end, which the text does not show")
        return
    for found in _SPECIAL.finditer(text):
        if found.group() not in asked:
            yield Flag("leak", f"special token {found.group()!r} {_at(text, found.start())}")
            return
    for found in _ROLE.finditer(text):
        marker = found.group().strip()
        if marker not in asked and not _DIALOGUE.search(asked) and not _is_defined(asked, text, found):
            yield Flag("leak", f"role marker {marker!r} {_at(text, found.start())}")
            return


def _is_defined(asked: str, text: str, found: re.Match[str]) -> bool:
    """Whether a marker is a word that is explained: the prompt has the word, or the line beside it explains another."""
    word = found.group().strip(" \t>*_:")
    if word not in _WORDS_TOO:
        return False
    lines = [text[: found.start()].rstrip().rpartition("\n")[2], text[found.start() :].partition("\n")[2].lstrip()]
    labels = [label for line in lines if (label := _LABEL.match(line))]
    others = [label for label in labels if not _ROLE.match(label.group())]
    return bool(others) or re.search(rf"\b{word}\b", asked) is not None


# --- Loops

CYCLE_WORDS, CYCLE_LETTERS = 4, 6
"""Words and letters that must come again in the same distance to be part of a cycle."""
CYCLE_TIMES, CYCLE_SPAN = 5, 48
"""A cycle is a loop if it goes round so often and fills so many characters;"""
MANY_TIMES, SHORT_SPAN = 8, 30
"""or if it goes round more often, and fills fewer."""
DIGITS_SPAN, RULE_SPAN = 100, 400
"""The same without a letter in it, and with neither letter nor digit: rules and rows of tables are long."""
SAME_SENTENCES, SAME_SHARE = 4, 0.5
"""Sentences that were said before: so many, and such a share of all."""
VERSES = 10
"""Rounds from which a stretch is a loop in a song, too."""
REPEATED, REPEATED_WORDS = 0.6, 60
"""Share of 4-grams that occurred before, in a text of so many words."""

_ITEM = re.compile(r"^[ \t]*(?:\d+[.):]|[-*•+])[ \t]+", re.MULTILINE)
_AGAIN = re.compile(
    r"\b(?:repeat|(?:(\d{1,9})|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|a hundred) times"
    r"|over and over|again and again)\b",
    re.IGNORECASE,
)
"""A prompt that asks to say something again."""
_SUNG = re.compile(r"\b(?:songs?|chorus|refrain|lyrics|chant|mantra|nursery rhyme|hymn|jingle|litany)\b", re.IGNORECASE)
"""A prompt that asks for what says its sentences again."""
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)*]*(?=\s|$)|[\u3002\uff01\uff1f]|\n+")


def _loops(asked: str, text: str) -> Iterator[Flag]:
    """What goes round in circles, and what is said before; unless the prompt asks to repeat it, or for a song."""
    plain = _ITEM.sub("", text).lower()
    words = plain.split()
    sung = _SUNG.search(asked) is not None
    if found := _cycle_of(words, " ", CYCLE_WORDS):
        once, times, start = found
        if _is_asked_again(asked, once, times) or (sung and times < VERSES):
            return
        yield Flag("loop", f"{_quoted(once)} {times} times in a row, from word {start + 1} of {len(words)}")
        return
    for word in set(words):
        if len(word) >= CYCLE_SPAN and (found := _cycle_of(word, "", CYCLE_LETTERS)):
            once, times, start = found
            yield Flag("loop", f"{_quoted(once)} {times} times in a row, from letter {start + 1} of {_quoted(word)}")
            return
    if sung:
        return
    sentences = [" ".join(s.split()) for s in _SENTENCE_END.split(plain)]
    sentences = [s for s in sentences if len(s) >= 12 and s[:1] != "|"]
    same = len(sentences) - len(set(sentences))
    if same >= SAME_SENTENCES and same >= SAME_SHARE * len(sentences):
        most, times = Counter(sentences).most_common(1)[0]
        yield Flag("loop", f"{same} of {len(sentences)} sentences were said before, {_quoted(most)} {times} times")
    elif len(words) >= REPEATED_WORDS and (share := repetition(words)) >= REPEATED:
        most, times = Counter(ngrams(words, 4)).most_common(1)[0]
        yield Flag("loop", f"{share:.0%} of the 4-word runs were said before, {_quoted(' '.join(most))} {times} times")


def _is_asked_again(asked: str, once: str, times: int) -> bool:
    """Whether the prompt asks to repeat these words, and not much less often than that."""
    asks, unit = list(_AGAIN.finditer(asked)), _WORD.findall(once)
    if not (asks and unit and _is_within(unit, _WORD.findall(asked.lower()))):
        return False
    counts = [int(ask[1]) for ask in asks if ask[1]]
    return times <= 2 * max(counts, default=times)


def _is_within(words: list[str], others: list[str]) -> bool:
    """Whether words, begun anywhere in their cycle, stand among others."""
    turns = [words[i:] + words[:i] for i in range(len(words))]
    return any(others[i : i + len(words)] in turns for i in range(len(others) - len(words) + 1))


def _cycle_of(items: Sequence[str], between: str, n: int) -> tuple[str, int, int] | None:
    """What is said again and again, how often, and from which item on."""
    start, period, length = cycle(items, n, CYCLE_TIMES)
    if not period:
        return None
    once, whole = (between.join(items[start : start + count]) for count in (period, length))
    times = length // period
    span = SHORT_SPAN if times >= MANY_TIMES else CYCLE_SPAN
    letters, digits = (sum(map(kind, once)) for kind in (str.isalpha, str.isdigit))
    if letters <= digits:
        span = DIGITS_SPAN if digits else RULE_SPAN
    return (once, times, start) if len(whole) >= span else None


def cycle(items: Sequence[str], n: int, times: int) -> tuple[int, int, int]:
    """Start, period and length of the longest stretch that goes round so many times; (0, 0, 0) where none does.

    A stretch of period p is where runs of n items come again p later, one after the other: one pass.
    """
    last: dict[Sequence[str], int] = {}
    whole = isinstance(items, str)
    best, period, running = (0, 0, 0), 0, 0
    for i in range(len(items) - n + 1):
        run = items[i : i + n] if whole else tuple(items[i : i + n])
        gap = i - last.get(run, i)
        last[run] = i
        running = running + 1 if gap == period else 1
        period = gap
        length = running + n - 1 + gap
        if gap and length >= times * gap and length > best[2]:
            best = (i - running + 1 - gap, gap, length)
    return best


# --- Gibberish

NOISE = (12, -30.0, -2.0)
"""Letters of no language at all: how many at least, and their ratios below this in sum and in the mean."""
MISSPELT = (40, -20.0, -0.3)
"""The same where English is expected."""
DISORDER = (8, -6.0, -0.15)
"""Neighbouring words in no order: how many pairs at least, and their ratios in sum and in the mean."""
SOUP = (12, -2.0, 0.0)
SOUP_SPELLING = 0.9
"""An order that says nothing either way is not believed where words are spelt oddly, too."""
LETTERS_WINDOW, LETTERS_FLOOR = 60, -2.0
WORDS_WINDOW, WORDS_FLOOR = 30, -0.6
"""So many neighbours are judged alone, for texts that begin well."""
PROSE_WORDS = 10
"""Words from which a line is taken for prose: lists and titles know no order."""
SCRIPTS = 4
"""Scripts that no single answer needs."""
NO_SMALL_WORDS = (20, 0.85)
"""Neighbouring words of which neither is frequent: of how many pairs, and their share."""
FOREIGN_SPELLING = 0.9
"""Spelling above which a text is in English letters, also where the prompt speaks of other languages."""
JUMPS = (40, 0.3)
"""Letters beside a capital, digit or sign that no word has there: in how many characters, and their share."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_NOTHING = re.compile(r"[\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffd-\uffff]")
_LATE = "[\x80-\xbf" + "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xA0)) + "]"
"""What the later bytes of a character become where UTF-8 is read as Latin-1 or as Windows-1252."""
_MOJIBAKE = re.compile(rf"Ã{_LATE}|Â[\x80-\xbf]|â€{_LATE}|ðŸ|ð\x9f|(?:[ÐÑ]{_LATE}){{3}}|(?:[ãäåæçèé]{_LATE}{{2}}){{2}}")
_MARKS_OF_NOISE = (
    ("a control character", _CONTROL),  # the only one that ASCII has
    ("a character that stands for nothing", _NOTHING),
    ("letters of a wrong encoding", _MOJIBAKE),
)
_PLAIN_WORD = re.compile(r"(?<!\S)[\"“\u2018(*]*[^\W\d_][^\s\d/_@\\=<>{}\[\]|#$%^&~+]*(?!\S)")
_BASES = re.compile(r"(?<!\S)[ACGTUN]{8,}(?!\S)")
"""A sequence of DNA or RNA has its own order."""
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(
    r"^(?: {4}|\t)|[;{}\\]\s*$|^\s*(?:#|//|\||@)|</?[a-zA-Z]\w*(?:\s[^<>]*)?/?>"
    r"|^\s*(?:def|class|import|from|return|for|if|elif|else|while|try|except|with|print)\b.*[(=\[{].*|^\s*return\b[^.]*$"
    r"|^\s*[\w.\[\]]+(?:, ?[\w.\[\]]+)* [-+*/]?= \S"
)
_JUMP = re.compile(r"[a-z](?=[^a-z\s.,;:!?'’\")-])|[^\w\s('\"“/-](?=[A-Za-z])|\d(?=[A-Za-z])", re.ASCII)


def _gibberish(asked: str, text: str) -> Iterator[Flag]:
    for what, pattern in _MARKS_OF_NOISE[: 1 if text.isascii() else None]:
        if (found := pattern.search(text)) and not pattern.search(asked):
            yield Flag("gibberish", f"{what}, {found.group()!r} {_at(text, found.start())}")
            return
    here = languages.scripts(text)
    foreign = here.keys() - languages.scripts(asked).keys()
    if len(foreign) >= SCRIPTS and 8 * sum(here[script] for script in foreign) >= len(text):
        yield Flag("gibberish", f"{len(here)} scripts in one text: {', '.join(sorted(here))}")
    elif 2 * here["Latin"] >= here.total():
        yield from _noise(asked, text)


def _noise(asked: str, text: str) -> Iterator[Flag]:
    """Letters or words in no order, in the whole text or in its worst stretch; code is not judged."""
    known = ordinary()
    lines = _written(text)
    size = len("".join(text.split()))
    if size >= JUMPS[0] and (jumps := len(_JUMP.findall(text))) >= JUMPS[1] * size and "```" not in text:
        yield Flag("gibberish", f"letters, digits and signs in no order: {jumps} changes in {size} characters")
        return
    spelling = known.spelling(" ".join(_PLAIN_WORD.findall(_BASES.sub("", " ".join(lines)))))
    level, spoken = mean(spelling), languages.language(text)
    expected = languages.expects_english(asked) and spoken in (None, "English")
    if _below(spelling, NOISE) or (expected and _below(spelling, MISSPELT)):
        yield Flag("gibberish", f"letters in no order: {level:+.2f} nats a letter in {_quoted(text)}")
        return
    worst, at = _worst(spelling, LETTERS_WINDOW)
    if expected and worst < LETTERS_FLOOR:
        yield Flag("gibberish", f"letters in no order: {worst:+.2f} nats a letter from letter {at + 1:,} on")
        return
    if not expected and (spoken not in (None, "English") or level < FOREIGN_SPELLING):
        return
    prose = "\n".join(line for line in lines if line.count(" ") + 1 >= PROSE_WORDS)
    order, rare = known.order(prose)
    if _below(order, DISORDER) or (level < SOUP_SPELLING and _below(order, SOUP)):
        yield Flag("gibberish", f"words in no order: {mean(order):+.2f} nats a word in {_quoted(prose)}")
        return
    if len(order) >= NO_SMALL_WORDS[0] and rare >= NO_SMALL_WORDS[1] * len(order):
        yield Flag("gibberish", f"hardly one of the small words that English needs, in {_quoted(prose)}")
        return
    worst, at = _worst(order, WORDS_WINDOW)
    if worst < WORDS_FLOOR:
        yield Flag("gibberish", f"words in no order: {worst:+.2f} nats a word from word {at + 1:,} on")


def _written(text: str) -> list[str]:
    """The lines that are no code."""
    if "```" in text:
        text = _FENCED.sub("", text)
    return [line for line in text.splitlines() if not _CODE_LINE.search(line)]


def _below(ratios: Ratios, limits: tuple[int, float, float]) -> bool:
    """Whether there are so many, and both their sum and their mean are too low."""
    count, total, level = limits
    return len(ratios) >= count and float(ratios.sum()) < total and mean(ratios) < level


def _worst(ratios: Ratios, window: int) -> tuple[float, int]:
    """The lowest mean of so many neighbours, and where they begin."""
    if len(ratios) <= window:  # the whole text was judged already
        return 0.0, 0
    sums = np.concatenate([[0], np.cumsum(ratios, dtype=np.float64)])
    means = (sums[window:] - sums[:-window]) / window
    at = int(means.argmin())
    return float(means[at]), at


# --- Truncation

DANGLING = frozenset(
    [
        *("a", "an", "the", "my", "our", "their", "your", "whose", "of", "and", "or", "but", "into", "than", "because"),
        *("if", "very", "such", "i", "i'm", "i'll", "i'd", "i've", "we're", "they're", "you're", "is", "are", "was"),
        *("were", "will", "would", "should", "could", "can", "may", "might", "must", "been"),
    ]
)
"""Words that no sentence stops at, but questions and answers of few words do."""
SENTENCES = 2
"""Sentences with their marks after which the last one should have its own."""
UNLIKELY_END = -2.5
"""Ratio below which a word does not end with these two letters."""

_MARK = re.compile(r"[^\W\d][.!?][\"'”’)*]*\s+\S")
_LAST_WORD = re.compile(r"[^\W\d_]+(?:['’][a-z]+)?$")


def _truncation(text: str, finish: FinishReason | None) -> Iterator[Flag]:
    """Cut off: known from how it ended, or else read from its end."""
    if finish == "length":
        yield Flag("truncated", f"the limit on tokens cut it off after {_quoted(text[-SHOWN + 1 :])}")
        return
    if text.count("```") % 2:
        yield Flag("truncated", f"a block of code that begins {_at(text, text.rfind('```'))} does not end")
        return
    line = text.rsplit("\n", 1)[-1]
    words = line.split()
    if len(words) < 4 or _CODE_LINE.search(line):
        return
    ending = f"it ends with {_quoted(text[-SHOWN + 1 :])}"
    if line[-1] in ",([{“\u2018-–—/&" and line[-2] not in ":;=-" and len(words) >= 6:
        yield Flag("truncated", f"{ending}, and {line[-1]!r} ends no sentence")
        return
    last = _LAST_WORD.search(line)
    if last is None or words[-1][0] in "#@" or "://" in words[-1]:
        return
    word = last.group()
    if word.replace("’", "'").lower() in DANGLING and (word == "I" or not word.isupper()) and len(words) >= 5:
        yield Flag("truncated", f"{ending}, and no sentence ends with {word!r}")
    elif word.islower() and word.isascii() and len(word) < len(words[-1]) + 1:
        marks = len(_MARK.findall(text))
        unlikely = ordinary().ends_like_a_word(word) < UNLIKELY_END
        if unlikely and len(words) >= 5:
            yield Flag("truncated", f"{ending}, in the middle of a word")
        elif marks >= SENTENCES and _MARK.search(line):
            yield Flag("truncated", f"{ending}, without the mark that its other sentences have")


# --- Echo

ECHO_WORDS = 5
"""Fewer words than these are never an echo."""
OWN_WORDS = 8
"""Words from which an answer that was given before is given again, and not a phrase."""
RESTATED = 8
"""Words from which a question that stands before its answer is an echo, and not said again for the reader."""
ECHO_ALIKE = 0.8
"""Share of 3-word runs that an altered echo has in common with the prompt."""

_WORD = re.compile(r"\w+(?:['’]\w+)?")


def _echo(prompt: Prompt, text: str) -> Iterator[Flag]:
    """The prompt's text instead of an answer, or an earlier answer once more."""
    answer = _WORD.findall(text.lower())
    if len(answer) < ECHO_WORDS:
        return
    for message in prompt.messages:
        said = _WORD.findall(message.content.lower())
        if message.role == "assistant":
            if len(answer) >= OWN_WORDS and said == answer:
                yield Flag("echo", "it is an earlier answer of the same dialogue, word for word")
                return
        elif (
            len(said) >= ECHO_WORDS
            and not _is_said_again(message.content.strip(), said, text)
            and (_begins_with(message.content, text) or _is_echo(said, answer))
        ):
            yield Flag("echo", f"it says what the {message.role} said: {_quoted(text)}")
            return


def _is_said_again(turn: str, said: list[str], text: str) -> bool:
    """Whether a short question is said once more, for the reader, before its answer."""
    return turn.endswith("?") and len(said) < RESTATED and text.startswith(turn) and len(text) > len(turn)


def _begins_with(said: str, text: str) -> bool:
    """Whether the whole turn stands before the answer, its last mark included: who restates a question changes that."""
    return said.strip()[-1:] in (*".!?:", "\u3002", "\uff01", "\uff1f") and text.startswith(said.strip())


def _is_echo(said: list[str], answer: list[str]) -> bool:
    """Whether an answer is the turn, most of its beginning, or nearly the same words with the same ends."""
    if not ECHO_ALIKE * len(said) <= len(answer) <= len(said) / ECHO_ALIKE:
        return False
    if said[: len(answer)] == answer[: len(said)]:
        return True
    runs, others = set(ngrams(said, 3)), set(ngrams(answer, 3))
    ends = {tuple(said[:3]), tuple(said[-3:])} <= others
    return ends and len(runs & others) >= ECHO_ALIKE * len(runs | others)


# --- Language


def _language(asked: str, text: str) -> Iterator[Flag]:
    """Another script or language than the prompt's; code is in none."""
    if said := languages.another(asked, text, prose="\n".join(_written(text))):
        yield Flag("language", said)
