"""How answers are read: words, numbers, times, prices, places, repetition, grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import phrases

from assay.worlds.frontdesk.content import content
from assay.worlds.frontdesk.grammar import grammar_faults
from assay.worlds.frontdesk.language import find, read, repeated_words, stem
from assay.worlds.frontdesk.values import mentions

WORDS = st.lists(st.sampled_from(["pool", "lift", "cat", "tram", "roof", "zoo"]), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's £5, I can't say.", "it is five pounds i can not say"),
        ("The pool isn’t open at 8:00 a.m.", "the pool is not open at eight am"),
        ("We'll ask at 10 o'clock", "we will ask at ten oclock"),
        ("a café, naïve", "a cafe naive"),
        ("Room 412", "room 412"),
        ("¿¡ 你好 !", ""),
    ],
)
def test_contractions_digits_and_accents_are_read_as_plain_words(text, words):
    assert " ".join(read(text).words) == words


def test_an_answer_without_a_final_stop_is_unfinished():
    assert read("It is here.").ended
    assert not read("It is").ended
    assert read("Yes! No?").sentences == (("yes",), ("no",))


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("It opens at seven in the morning.", [{"7"}]),
        ("7 am", [{"7"}]),
        ("From 7:00 p.m. on", [{"19"}]),
        ("six in the evening or 6 in the afternoon", [{"18"}, {"18"}]),
        ("at seven", [{"7", "19"}]),
        ("noon to midnight", [{"12"}, {"0"}]),
        ("half past eight in the morning", [{"8:30"}]),
        ("twelve at night", [{"0"}]),
        ("seven pounds and two bikes", []),
    ],
)
def test_times_are_read_as_hours_of_the_day(text, hours):
    assert [set(mention.meanings) for mention in mentions(read(text), "time")] == hours


@pytest.mark.parametrize(
    ("text", "kind", "meanings"),
    [
        ("It is £10.", "price", ["ten"]),
        ("one hundred pounds, not ninety quid", "price", ["one hundred", "ninety"]),
        ("It is free.", "price", ["free"]),
        ("every Monday", "day", ["monday"]),
        ("on Fridays and Sundays", "day", ["friday", "sunday"]),
        ("up on the rooftop", "place", ["on the roof"]),
        ("It is next to our church.", "place", ["beside the church"]),
        ("Welcome to Harbour House in the garden", "place", ["in the garden"]),
    ],
)
def test_prices_days_and_places_are_read_in_other_words(text, kind, meanings):
    assert [next(iter(mention.meanings)) for mention in mentions(read(text), kind)] == meanings


def test_the_places_are_those_that_some_fact_names_and_no_others():
    places = [fact for fact in content().facts if fact.type == "place"]
    assert set(content().values) == {value for fact in places for value in (fact.value, *fact.wrong)}


def test_a_denied_value_is_marked_as_denied():
    assert [mention.negated for mention in mentions(read("It is not on Monday but on Friday."), "day")] == [True, False]


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_repetition_matches_the_definition(sentences):
    text = " ".join(f"{' '.join(sentence)}." for sentence in sentences)
    assert repeated_words(read(text)) == phrases.repeated_words(sentences, 4)


@given(
    WORDS,
    st.lists(st.sampled_from(["pool", "lift", "cat", "tram", "roof", "zoo"]), min_size=1, unique=True, max_size=4),
)
def test_the_closest_window_matches_the_definition(words, phrase):
    stems = [stem(word) for word in words]
    expected = phrases.best_share(stems, [stem(word) for word in phrase], window=len(phrase) + 2)
    assert find(read(" ".join(words)), " ".join(phrase)).share == pytest.approx(expected)


def test_inflected_words_still_match():
    assert find(read("Please hold your cards to the locks."), "hold your card to the lock").share == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "You will find the pool up on the roof, and it opens at eight.",
        "I am not sure where they come from.",
        "No, not at all.",
        "Ask the person you spoke to.",
        "It is on the first floor, next to the stairs.",
    ],
)
def test_plain_english_has_no_faults(text):
    assert grammar_faults(read(text)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "The of pool.",
        "It is on the.",
        "It is is here.",
        "The a pool.",
        "Pool roof eight morning open lift.",
        "Go to the and then.",
        " ".join(["you can go up"] * 9) + ".",
    ],
)
def test_word_salad_has_faults(text):
    assert grammar_faults(read(text)) >= 1
