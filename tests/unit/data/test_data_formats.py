"""Every way of writing a row down: recognised from its columns, read to the same words."""

from __future__ import annotations

from typing import Any

import pytest

from assay.data.dialogue import Unfit
from assay.data.formats import BY_NAME, FORMATS
from assay.data.recognise import named, read_row, recognise
from assay.data.records import Item
from assay.errors import DataError
from assay.types import Demonstration, JudgedSteps, Message, Preference, Prompt, Ranking, Verdict

ASK = Prompt.ask("Where is the lift?", source="desk")
TALK = Prompt((Message("user", "Hello"), Message("assistant", "Hi!"), Message("user", "Where is the lift?")), "desk")
TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Where is the lift?"},
]
SHARED = [
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hi!"},
    {"from": "human", "value": "Where is the lift?"},
]
HH = "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Where is the lift?\n\nAssistant:"
GOOD, BAD = "Left of the desk.", "No idea."


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


PAIR = Preference(TALK, GOOD, BAD)
EXAMPLES: list[tuple[str, dict[str, Any], list[Item]]] = [
    ("hh", {"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"}, [PAIR]),
    ("hhh", {"prompt": "Choose:", "text_correct": f"{HH} {GOOD}", "text_incorrect": f"{HH} {BAD}"}, [PAIR]),
    ("rm-static", {"prompt": HH, "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}"}, [PAIR]),
    (
        "alpaca-pairs",
        {"instruction": "Where is it?", "input": "the lift", "output": GOOD, "chosen": GOOD, "rejected": BAD},
        [Preference(Prompt.ask("Where is it?\n\nthe lift", source="desk"), GOOD, BAD)],
    ),
    (
        "sharegpt-pairs",
        {"conversations": SHARED, "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
        [PAIR],
    ),
    ("trl-pairs", {"prompt": "Where is the lift?", "chosen": GOOD, "rejected": BAD}, [Preference(ASK, GOOD, BAD)]),
    (
        "trl-pairs",
        {"prompt": TURNS, "chosen": reply(GOOD), "rejected": reply(BAD), "margin": 0.5},
        [Preference(TALK, GOOD, BAD, 0.5)],
    ),
    ("chat-pairs", {"chosen": [*TURNS, *reply(GOOD)], "rejected": [*TURNS, *reply(BAD)]}, [PAIR]),
    (
        "annotated-pairs",
        {
            "instruction": "Where is the lift?",
            "input": "",
            "response1": BAD,
            "response2": GOOD,
            "annotator1": 2,
            "annotator2": 0,
            "annotator3": 2,
        },
        [Preference(ASK, GOOD, BAD)],
    ),
    (
        "qa-feedback",
        {
            "question": "Where is the lift?",
            "passages": [["Hotel", "It has a lift.", "It is old."]],
            **{f"prediction {k}": text for k, text in zip(range(1, 5), "abcd", strict=True)},
            "preference": [1, 2, 0, 0, 0, 0],
        },
        [
            Preference(Prompt.ask("Hotel: It has a lift. It is old.\n\nWhere is the lift?", source="desk"), "a", "b"),
            Preference(Prompt.ask("Hotel: It has a lift. It is old.\n\nWhere is the lift?", source="desk"), "c", "a"),
        ],
    ),
    (
        "judged-summaries",
        {
            "query": "Where is the lift?",
            "postprocessed_response": BAD,
            "reference_responses": GOOD,
            "preferred": "reference",
        },
        [Preference(ASK, GOOD, BAD)],
    ),
    (
        "options",
        {"prompt": "Where is the lift?", "corrects": [GOOD], "incorrects": [BAD, "Up."]},
        [Preference(ASK, GOOD, BAD), Preference(ASK, GOOD, "Up.")],
    ),
    ("ranking", {"prompt": "Where is the lift?", "responses": ["a", "b", "c"]}, [Ranking(ASK, ("a", "b", "c"))]),
    (
        "ranking",
        {"prompt": "Where is the lift?", "responses": ["a", "b", "c"], "ranks": [3, 1, 2]},
        [Ranking(ASK, ("b", "c", "a"))],
    ),
    (
        "ranking",
        {"prompt": "Where is the lift?", "responses": ["a", "b", "c"], "scores": [1.0, 2.0, 1.0]},
        [Preference(ASK, "b", "a"), Preference(ASK, "b", "c")],
    ),
    (
        "steps",
        {"prompt": "Where is the lift?", "completions": ["Go left.", "Go up."], "labels": [True, 0]},
        [JudgedSteps(ASK, ("Go left.", "Go up."), (True, False))],
    ),
    ("kto-messages", {"messages": [*TURNS, *reply(BAD)], "label": False}, [Verdict(TALK, BAD, False)]),
    ("kto", {"prompt": "Where is the lift?", "completion": GOOD, "label": "1"}, [Verdict(ASK, GOOD, True)]),
    ("trl-completion", {"prompt": TURNS, "completion": reply(GOOD)}, [Demonstration(TALK, GOOD)]),
    ("messages", {"messages": [*TURNS, *reply(GOOD)]}, [Demonstration(TALK, GOOD)]),
    (
        "sharegpt",
        {"system": "Be kind.", "conversations": [*SHARED, {"from": "gpt", "value": GOOD}]},
        [Demonstration(Prompt((Message("system", "Be kind."), *TALK.messages), "desk"), GOOD)],
    ),
    (
        "self-instruct",
        {"instruction": "Where is it?", "instances": [{"input": "", "output": "a"}, {"input": "lift", "output": "b"}]},
        [
            Demonstration(Prompt.ask("Where is it?", source="desk"), "a"),
            Demonstration(Prompt.ask("Where is it?\n\nlift", source="desk"), "b"),
        ],
    ),
    (
        "dolly",
        {"instruction": "Where is the lift?", "context": "", "response": GOOD, "category": "open_qa"},
        [Demonstration(Prompt.ask("Where is the lift?", source="desk", kind="open_qa"), GOOD)],
    ),
    (
        "alpaca",
        {"instruction": "Where is the lift?", "input": "", "output": GOOD, "history": [["Hello", "Hi!"]]},
        [Demonstration(TALK, GOOD)],
    ),
    ("alpaca-response", {"instruction": "Where is the lift?", "response": GOOD}, [Demonstration(ASK, GOOD)]),
    ("question-answer", {"question": "Where is the lift?", "answer": GOOD}, [Demonstration(ASK, GOOD)]),
    ("prompts", {"prompt": "Where is the lift?"}, [ASK]),
    ("prompts", {"prompt": TURNS}, [TALK]),
    ("instructions", {"instruction": "Where is the lift?", "input": None}, [ASK]),
    ("instruction-list", {"instructions": "Where is the lift?"}, [ASK]),
    ("text", {"text": "The lift is left of the desk."}, ["The lift is left of the desk."]),
]


@pytest.mark.parametrize(("name", "row", "items"), EXAMPLES, ids=[f"{i}-{e[0]}" for i, e in enumerate(EXAMPLES)])
def test_a_format_is_recognised_from_its_columns_and_read(name: str, row: dict[str, Any], items: list[Item]) -> None:
    format = recognise([row], "desk.jsonl")
    assert format.name == name
    assert read_row(format, row, "desk") == items


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Why?", "chosen": None, "rejected": BAD}, "trl-pairs"),
        ({"chosen": None, "rejected": f"{HH} {BAD}"}, "hh"),
        ({"prompt": "Why?", "completion": GOOD, "chosen": None, "rejected": None}, "trl-completion"),
        ({"prompt": "Why?", "chosen": None, "rejected": None}, "prompts"),
        ({"prompt": "Why?", "responses": None}, "prompts"),
    ],
)
def test_columns_that_hold_nothing_belong_to_the_format_that_the_others_are_in(row: dict[str, Any], name: str) -> None:
    assert recognise([row], "here").name == name


def test_every_format_has_an_example_here_or_is_never_recognised() -> None:
    assert {format.name for format in FORMATS} - {name for name, _, _ in EXAMPLES} == {"text-prompts"}


def test_texts_can_be_read_as_prompts_when_asked_for() -> None:
    row = {"text": "Where is the lift?"}
    assert read_row(named("text-prompts", [row], "desk.txt"), row, "desk") == [ASK]


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("hh", {"chosen": f"{HH} {GOOD}", "rejected": HH}, "the last reply is empty"),
        ("hh", {"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {GOOD}"}, "chosen and rejected are the same dialogue"),
        (
            "hh",
            {"chosen": f"{HH} {GOOD}", "rejected": f"\n\nHuman: Hey\n\nAssistant: {BAD}"},
            "the two dialogues part before the last reply",
        ),
        (
            "hh",
            {"chosen": f"{HH} a\n\nHuman: b", "rejected": f"{HH} c"},
            "the dialogue does not end with an assistant turn",
        ),
        ("hh", {"chosen": f"Well. {HH} a", "rejected": f"{HH} c"}, "text before the first turn marker"),
        ("hh", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "no prompt before the reply"),
        ("trl-pairs", {"prompt": "p", "chosen": None, "rejected": "b"}, '"chosen" is null'),
        ("trl-pairs", {"prompt": "p", "chosen": "a", "rejected": float("nan")}, '"rejected" is null'),
        ("trl-pairs", {"prompt": "p", "chosen": "a", "rejected": " \n"}, '"rejected" is empty'),
        (
            "trl-pairs",
            {"prompt": "p", "chosen": "a", "rejected": 7},
            '"rejected" is not text',
        ),
        ("trl-pairs", {"prompt": "", "chosen": "a", "rejected": "b"}, '"prompt" is empty'),
        (
            "trl-pairs",
            {"prompt": TURNS[:2], "chosen": "a", "rejected": "b"},
            "the prompt does not end with a user turn",
        ),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, 'a turn by "tool"'),
        ("messages", {"messages": []}, "a dialogue without turns"),
        ("messages", {"messages": "hello"}, "a dialogue that is no list of turns"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a turn with something other than text",
        ),
        ("kto", {"prompt": "p", "completion": "c", "label": "maybe"}, '"label" is neither true nor false'),
        ("ranking", {"prompt": "p", "responses": ["a"]}, "fewer than two responses"),
        ("steps", {"prompt": "p", "completions": ["a", "b"], "labels": [True]}, "not one label for each step"),
        ("steps", {"prompt": "p", "completions": ["a"], "labels": ["perhaps"]}, '"labels" is neither true nor false'),
        ("ranking", {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}, "all responses tie"),
        ("ranking", {"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "not one rank or score for each response"),
        (
            "annotated-pairs",
            {"instruction": "p", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2, "annotator3": 0},
            "the annotators have no majority",
        ),
        ("judged-summaries", {"query": "p", "postprocessed_response": "a", "reference_responses": "b"}, "no verdict"),
    ],
)
def test_a_row_that_does_not_fit_says_why(format: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit) as unfit:
        read_row(BY_NAME[format], row, "desk")
    assert str(unfit.value) == reason


def test_neighbouring_turns_of_one_speaker_become_one() -> None:
    row = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: e",
    }
    assert read_row(BY_NAME["hh"], row, "") == [Preference(Prompt.ask("a\n\nb"), "c\n\nd", "e")]


def test_openai_content_parts_are_read_as_their_text() -> None:
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "the lift?"}]
    row = {"messages": [{"role": "user", "content": parts}, *reply(GOOD)]}
    assert read_row(BY_NAME["messages"], row, "desk") == [Demonstration(ASK, GOOD)]


def test_source_and_kind_come_from_the_row_where_it_names_them() -> None:
    row = {"prompt": "p", "dataset": "mine", "category": "harmless"}
    assert read_row(BY_NAME["prompts"], row, "file") == [Prompt.ask("p", source="mine", kind="harmless")]


def test_unknown_columns_are_an_error_that_names_them_and_the_nearest_format() -> None:
    with pytest.raises(DataError) as error:
        recognise([{"prompt": {"x": 1}, "rejected": "b", "winner": "a"}], "pairs.jsonl")
    assert error.value.what == 'pairs.jsonl: no known format has the columns "prompt", "rejected", "winner"'
    assert '\'trl-pairs\', has "prompt" (text or turns), "chosen" (text or turns)' in error.value.hint


def test_a_format_that_was_asked_for_but_lacks_a_column_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        named("trl-pairs", [{"prompt": "p", "chosen": "a"}], "pairs.jsonl")
    assert '"rejected"' in error.value.what
    assert '"prompt", "chosen"' in error.value.what


def test_a_misspelt_format_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="unknown data format 'alpacca'") as error:
        named("alpacca", [{}], "x")
    assert error.value.hint == "did you mean 'alpaca'?"
