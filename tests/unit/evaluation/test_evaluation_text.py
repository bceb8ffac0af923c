"""Text statistics against hand counts, brute force and the published formulas."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.evaluation import slow_bleu, slow_longest_common, slow_repeated_share

from assay.data.ngrams import repetition
from assay.errors import DataError
from assay.evaluation.text import bleu, distinct, rouge, text_report, words
from assay.types import Completion, Prompt

LETTERS = st.lists(st.sampled_from("abc"), min_size=0, max_size=14)


def completion(response: str, *, finish: str = "stop", tokens: int = 5) -> Completion:
    return Completion(Prompt.ask("why"), response, finish, tokens)  # type: ignore[arg-type]


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert words("Well, it's 3.5!") == ["well", ",", "it", "'", "s", "3", ".", "5", "!"]


@given(letters=LETTERS)
def test_repetition_is_the_share_of_4_grams_seen_before(letters):
    assert repetition(letters) == pytest.approx(slow_repeated_share(letters, 4))


def test_repetition_by_hand():
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition([7] * 13) == pytest.approx(9 / 10)
    assert repetition(["too", "short", "here"]) == 0


def test_distinct_counts_over_all_texts_together():
    assert distinct(["a b", "a b c"], 1) == pytest.approx(3 / 5)
    assert distinct(["a b", "a b c"], 2) == pytest.approx(2 / 3)
    assert distinct(["a"], 2) is None


def test_bleu_matches_the_definition():
    responses = ["the cat sat on the mat today", "there is a dog in the big garden"]
    references = ["the cat sat on the red mat today", "there is a dog in our big garden now"]
    expected = slow_bleu([r.split() for r in responses], [r.split() for r in references])
    report = bleu(responses, references)
    assert report["bleu"] == pytest.approx(expected)
    assert report["bleu_brevity"] < 1
    assert "tok:13a" in report["bleu_signature"]


def test_a_copy_of_its_reference_scores_100_and_one_of_several_is_enough():
    text = "one two three four five"
    assert bleu([text], [text])["bleu"] == pytest.approx(100)
    assert bleu([text, text], [[text], ["something else entirely here", text]])["bleu"] == pytest.approx(100)
    assert rouge([text], [["nothing", text]], seed=0)["rougeL"] == 1


@given(ours=LETTERS.filter(len), theirs=LETTERS.filter(len))
def test_rouge_matches_the_definition(ours, theirs):
    report = rouge([" ".join(ours)], [" ".join(theirs)], seed=0)
    hits = sum(min(ours.count(letter), theirs.count(letter)) for letter in "abc")
    common = slow_longest_common(ours[:9], theirs[:9]) if max(len(ours), len(theirs)) <= 9 else None
    assert report["rouge1"] == pytest.approx(2 * hits / (len(ours) + len(theirs)))
    if common is not None:
        assert report["rougeL"] == pytest.approx(2 * common / (len(ours) + len(theirs)))


def test_the_report_by_hand():
    report = text_report(
        [completion("a b c d a b c d", tokens=9), completion("", tokens=1), completion("a", finish="length", tokens=2)],
        seed=0,
    )
    json.dumps(report, allow_nan=False)
    assert report["n"] == 3
    assert report["repetition"] == pytest.approx(0.2 / 3)
    assert (report["length_words"], report["length_tokens"], report["length_tokens_median"]) == (3, 4, 2)
    assert report["truncated"] == report["empty"] == pytest.approx(1 / 3)
    assert report["truncated_low"] < 1 / 3 < report["truncated_high"]
    assert "bleu" not in report


def test_the_report_holds_overlap_where_there_is_a_reference():
    report = text_report([completion("a fine day")], references=["a fine day"], seed=0)
    assert report["rouge1"] == 1
    assert report["rouge1_low"] is None
    json.dumps(report, allow_nan=False)


def test_texts_without_their_references_are_refused():
    with pytest.raises(DataError, match="responses has 2, references has 1"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no reference"):
        rouge(["a"], [[]], seed=0)
    with pytest.raises(DataError, match="completions: there is nothing"):
        text_report([], seed=0)
