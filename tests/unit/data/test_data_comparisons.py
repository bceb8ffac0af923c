"""Rankings, judged steps, and what a comparison was asked about: kept from the file to the stages."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from assay.data.config import FileData
from assay.data.items import as_demonstration, as_preferences, identity
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared, Splits
from assay.data.records import Item, from_record, to_record
from assay.errors import DataError
from assay.types import JudgedSteps, Preference, Prompt, Ranking

ASK = Prompt.ask("Where is the lift?", source="desk")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def every(splits: Splits[Any]) -> list[Any]:
    return list(itertools.chain.from_iterable(items for _, items in splits.items()))


@pytest.mark.parametrize(
    "item",
    [
        Preference(ASK, "a", "b", 0.5, "helpful"),
        Ranking(ASK, ("a", "b", "c"), "harmless"),
        JudgedSteps(ASK, ("a", "b"), (True, False)),
    ],
)
def test_what_was_asked_and_judged_survives_writing_and_reading(item: Item) -> None:
    assert from_record(json.loads(json.dumps(to_record(item)))) == item


def test_the_same_pair_under_another_question_is_another_item() -> None:
    pairs = [Preference(ASK, "a", "b", objective=name) for name in ("", "helpful", "harmless")]
    steps = [JudgedSteps(ASK, ("a", "b"), good) for good in ((True, True), (True, False))]
    assert len({identity(item) for item in [*pairs, *steps]}) == 5


def test_the_pairs_of_a_ranking_were_asked_the_same() -> None:
    assert {pair.objective for pair in as_preferences(Ranking(ASK, ("a", "b", "c"), "helpful"))} == {"helpful"}


def test_a_response_is_worth_imitating_only_if_all_its_steps_are_good() -> None:
    assert as_demonstration(JudgedSteps(ASK, ("a", "b"), (True, False))) is None
    demonstration = as_demonstration(JudgedSteps(ASK, ("a", "b"), (True, True)))
    assert demonstration is not None
    assert demonstration.response == "a\nb"


def test_rankings_stay_whole_and_their_pairs_are_preferences_too(tmp_path: Path) -> None:
    write(tmp_path / "ranked.jsonl", [{"prompt": f"Question {n}?", "responses": ["a", "b", "c"]} for n in range(40)])
    prepared = prepare_files(FileData(path=str(tmp_path / "ranked.jsonl")), seed=0)
    assert len(prepared.rankings) == 40
    assert len(prepared.preferences) == 120
    for split, rankings in prepared.rankings.items():
        pairs = [pair for ranking in rankings for pair in as_preferences(ranking)]
        assert pairs == getattr(prepared.preferences, split)
    prepared.save(tmp_path / "saved")
    assert Prepared.load(tmp_path / "saved") == prepared


def test_judged_steps_are_split_with_their_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"Sum {n}?", "completions": ["x", "y"], "labels": [True, n % 2 == 0]} for n in range(40)]
    write(tmp_path / "steps.jsonl", rows)
    prepared = prepare_files(FileData(path=str(tmp_path / "steps.jsonl")), seed=0)
    assert len(prepared.steps) == 40
    for split, items in prepared.steps.items():
        assert {item.prompt.id for item in items} == {prompt.id for prompt in getattr(prepared.prompts, split)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("helpful-base", "harmless-base"):
        rows = [{"prompt": f"{name} {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)]
        write(tmp_path / f"{name}.jsonl", [*rows, {**rows[0], "objective": "brief"}])
    return tmp_path


def test_the_source_says_what_was_asked(folder: Path) -> None:
    objectives = {"helpful": "helpful*", "harmless": "harmless-*"}
    prepared = prepare_files(FileData(path=str(folder), objectives=objectives), seed=0)
    assert {(pair.prompt.source, pair.objective) for pair in every(prepared.preferences)} == {
        ("helpful-base", "helpful"),
        ("harmless-base", "harmless"),
    }


def test_a_row_says_what_was_asked_where_no_source_does(folder: Path) -> None:
    pairs = every(prepare_files(FileData(path=str(folder), objectives={"helpful": "helpful*"}), seed=0).preferences)
    assert {(p.prompt.source, p.objective) for p in pairs} == {
        ("helpful-base", "helpful"),
        ("harmless-base", ""),
        ("harmless-base", "brief"),
    }


def test_a_pattern_that_no_source_is_like_is_an_error_that_names_the_sources(folder: Path) -> None:
    with pytest.raises(DataError, match=r'like "harmles-\*", so none asks about harmless') as error:
        prepare_files(FileData(path=str(folder), objectives={"harmless": "harmles-*"}), seed=0)
    assert "harmless-base, helpful-base" in error.value.hint
