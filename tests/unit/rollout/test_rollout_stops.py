"""Stop strings are found where a search of the whole text finds them, by decoding little more than themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny
from tests.unit.algorithms.batches import quick
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from assay.errors import UsageError
from assay.rollout.stops import CHARACTER, StopStrings

STRINGS = ("\n\n", " ", "a ", " a", "é\n", "\n€", "ab", "a b", "€€", "b\n ", "\t", "Human:", "a\n\nb")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama's kind: a space is ▁, a character without a token is its bytes, and a text loses its first space."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "▁▁", "Human", ":"]
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def word_ends() -> PreTrainedTokenizerFast:
    """GPT-1's kind: the end of a word is a space once another word follows."""
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>", "\n", "\n</w>", "é</w>", "Human:</w>", "\t"]
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    raw.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def continued() -> PreTrainedTokenizerFast:
    """BERT's kind: a space before every token that does not continue a word."""
    pieces = ["[UNK]", "a", "b", "##a", "##b", "ab", "\n", "##\n", "é", "Human", "##:", "\t"]
    raw = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


KINDS = {"bytes": tiny.tokenizer, "sentencepiece": sentencepiece, "word ends": word_ends, "continued": continued}


@cache
def words_of(kind: str) -> tuple[Any, tuple[int, ...]]:
    """A tokenizer, and tokens that make these strings, halves of characters, and nothing."""
    words = KINDS[kind]()
    vocabulary = words.get_vocab()
    if kind == "bytes":
        wanted = {"Ċ", "Ġ", "a", "b", "Ã", "©", "â", "Ĥ", "¬", "ĉ", *(p for p in vocabulary if p.startswith("Ġa"))}
    elif kind == "sentencepiece":
        broken = {f"<0x{byte:02X}>" for byte in (*"é€\n\tab ".encode(), 0xFF)}
        wanted = broken | {piece for piece in vocabulary if not piece.startswith("<0x")}
    else:
        wanted = set(vocabulary)
    beyond = [len(words), len(words) + 3]  # a model may have more rows than its tokenizer has tokens
    return words, (*sorted(vocabulary[piece] for piece in wanted), *beyond)


def first_end(words: Any, strings: Sequence[str], ids: Sequence[int]) -> int | None:
    """Tokens until one of the strings stands in the whole text."""
    texts = (
        words.decode(ids[:n], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for n in range(1, len(ids) + 1)
    )
    return next((n for n, text in enumerate(texts, start=1) if any(string in text for string in strings)), None)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data())
def test_a_string_is_found_with_the_token_that_completes_it(kind: str, data: st.DataObject) -> None:
    words, tokens = words_of(kind)
    strings = data.draw(st.lists(st.sampled_from(STRINGS), min_size=1, max_size=2))
    ids = data.draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=24))
    stops = StopStrings(words, strings)
    found = next((n for n in range(1, len(ids) + 1) if stops.end(ids[:n])), None)
    assert found == first_end(words, strings, ids)


def test_bytes_that_begin_no_character_hide_no_string_and_make_none() -> None:
    """<0xE2> spoils the whole run of bytes that it stands in, and with it the two ends of lines."""
    words = sentencepiece()
    code = words.get_vocab()
    newline, start, letter = code["<0x0A>"], code["<0xE2>"], code["a"]
    stops = StopStrings(words, ["\n\n"])
    assert not stops.end([letter] * 9 + [start, newline, newline])
    assert not stops.end([letter] * 9 + [start, *[newline] * 9])
    assert stops.end([letter] * 9 + [start, letter, newline, newline])


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_tokens_without_a_text_stand_between_the_parts_of_a_string(kind: str) -> None:
    words, (*_, silent) = words_of(kind)
    start, *rest = words("ab a", add_special_tokens=False)["input_ids"]
    ids = [start, *[silent] * 30, *rest]
    text = words.decode(ids, clean_up_tokenization_spaces=False)
    stops = StopStrings(words, [text])
    assert text == words.decode([start, *rest], clean_up_tokenization_spaces=False)
    assert stops.end(ids)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(("letter", "written"), [("€", "âĤ¬"), ("é", "Ã©")])
def test_little_more_than_the_string_is_decoded(
    kind: str, letter: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every character is several tokens; a string that ends in white space may be completed by any token."""
    words, _ = words_of(kind)
    code = words.get_vocab()
    character, newline = (
        ([code[c] for c in written], code["Ċ"])
        if kind == "bytes"
        else ([code[f"<0x{byte:02X}>"] for byte in letter.encode()], code["<0x0A>"])
    )
    ids = [*character * 100, newline, newline]
    stops = StopStrings(words, ["\n\n"])
    assert stops.speaking
    decoded: list[int] = []
    plain = words.decode

    def counted(some: Sequence[int], **options: Any) -> str:
        decoded.append(len(some))
        return plain(some, **options)

    monkeypatch.setattr(words, "decode", counted)
    assert not any(stops.end(ids[:n]) for n in range(1, len(ids)))
    assert max(decoded) <= len("\n\n") + 2 + CHARACTER
    assert stops.end(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("string", [*STRINGS, "zq", "ø", "\U0001f600"])
def test_a_string_is_refused_where_no_tokens_can_complete_it(kind: str, string: str) -> None:
    """Whole bytes write every character; a vocabulary of pieces only its own."""
    words, written = words_of(kind)[0], " \n\tabé" + "Human:"
    stops = StopStrings(words, [string])
    if kind in ("bytes", "sentencepiece") or set(string) <= set(written):
        stops.check([string])
        return
    with pytest.raises(UsageError, match=r"sampling\.stop: .* can never stand in an answer"):
        stops.check([string])


def test_no_strings_never_end_a_text() -> None:
    assert not StopStrings(tiny.tokenizer(), ()).end([1, 2, 3])
