"""How ordinary a text in Latin letters is: two small tables of what follows what, counted on ordinary English.

A table holds log-likelihood ratios in nats: how much likelier one thing is after another than in noise. Their sum over
a text is the logarithm of the likelihood ratio that tests text against noise (Neyman & Pearson 1933). `python -m
bench.guard --fit` counts them; assets/ordinary.npz holds the ratios and the frequent words, and no other text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Ratios = NDArray[np.float32]
Numbers = NDArray[np.int64]

LETTERS = 27
"""a–z, accents taken off, after 0, which is everything else."""
SUFFIXES = (
    *("tion", "sion", "ment", "ness", "ing", "ity", "ous", "ive", "ble", "est", "ed", "ly", "al", "ic", "er", "or"),
    *("es", "s", "y", "e", "n", "t", "d", ""),
)
"""Classes of words that have none of their own: the first ending that fits; the last one fits always."""
OTHERS = (*SUFFIXES, "Name", ".", ",", "\n", "0", "other mark")
"""All classes that come after those of the frequent words."""
MARKS = len(OTHERS) - len(SUFFIXES) - 1
"""How many classes at the end are not words."""
STEPS = 16
"""Steps of a stored ratio in a nat."""
MEMORY = 50_000
"""Tokens whose class is kept at hand."""

_TOKEN = re.compile(r"[a-zA-Z]+(?:['’][a-z]+)?|[^\sa-zA-Z]|\n")


def _letter(code: int) -> int:
    base = unicodedata.normalize("NFD", chr(code))[0].lower()
    return ord(base) - 96 if "a" <= base <= "z" else 0


_LETTER_OF_BYTE = np.array([_letter(code) for code in range(256)])


def letters(text: str) -> Numbers:
    """Numbers of the letters, 0 for everything else, with one 0 around the text."""
    return _LETTER_OF_BYTE[np.frombuffer(f" {text} ".encode("latin-1", "replace"), np.uint8)]


@dataclass(frozen=True)
class Classes:
    """Which class a word or a mark belongs to."""

    words: tuple[str, ...]
    """Frequent words, each a class of its own."""
    known: dict[str, int] = field(default_factory=dict)
    """Classes of tokens that were met before."""

    def __len__(self) -> int:
        return len(self.words) + len(OTHERS)

    @functools.cached_property
    def own(self) -> dict[str, int]:
        """Numbers of the frequent words."""
        return {word: number for number, word in enumerate(self.words)}

    def of(self, text: str) -> Numbers:
        """Classes of the words and marks of a text, in order."""
        known, numbers = self.known, []
        for token in _TOKEN.findall(text):
            number = known.get(token)
            if number is None:
                number = self._class(token)
                if len(known) < MEMORY:
                    known[token] = number
            numbers.append(number)
        return np.array(numbers, np.int64)

    def _class(self, token: str) -> int:
        first, count = token[0], len(self.words)
        if first.isascii() and first.isalpha():
            word = token.lower().replace("’", "'")
            if word in self.own:
                return self.own[word]
            if first.isupper():
                return count + len(SUFFIXES)
            return count + next(number for number, suffix in enumerate(SUFFIXES) if word.endswith(suffix))
        kind = next((n for n, marks in enumerate((".!?:;", ",", "\n")) if first in marks), 3 if first.isdigit() else 4)
        return count + len(SUFFIXES) + 1 + kind


@dataclass(frozen=True)
class Ordinary:
    """The tables, and what they say of a text."""

    letters_LLL: Ratios
    """log P(c | a, b) · 27: a letter after two others, against letters that are equally likely."""
    order_CC: Ratios
    """log P(d | c) / P(d): a class of words after another, against the same words in no order."""
    classes: Classes

    def spelling(self, text: str) -> Ratios:
        """One ratio for each letter and for each end of a word: above 0 where it is spelt as English is."""
        codes = letters(text)
        a, b, c = codes[:-2], codes[1:-1], codes[2:]
        return self.letters_LLL[a, b, c][(b > 0) | (c > 0)]

    def order(self, text: str) -> tuple[Ratios, int]:
        """One ratio for each word that follows a word with no mark between: above 0 where the order is English.

        And of how many such pairs neither word is frequent.
        """
        numbers, frequent = self.classes.of(text), len(self.classes.words)
        before, after = numbers[:-1], numbers[1:]
        pairs = np.maximum(before, after) < len(self.classes) - MARKS
        before, after = before[pairs], after[pairs]
        return self.order_CC[before, after], int((np.minimum(before, after) >= frequent).sum())

    def ends_like_a_word(self, word: str) -> float:
        """The ratio of the end of a word after its last two letters."""
        return float(self.spelling(word)[-1])


def mean(ratios: Ratios) -> float:
    """0 of none: they say nothing either way."""
    return float(ratios.mean()) if len(ratios) else 0.0


@functools.cache
def ordinary() -> Ordinary:
    """The tables that come with the package."""
    with files("assay").joinpath("assets", "ordinary.npz").open("rb") as file, np.load(file) as stored:
        letters_LLL, order_CC = (stored[name].astype(np.float32) / STEPS for name in ("letters", "order"))
        return Ordinary(letters_LLL, order_CC, Classes(tuple(stored["words"].tolist())))
