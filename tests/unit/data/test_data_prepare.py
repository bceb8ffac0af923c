"""Files → what every stage reads: purposes made of one another, one split for all, a report that adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.data.config import CleanConfig, FileData, FileSource
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared, Splits
from assay.data.records import from_record, to_record
from assay.errors import DataError, StorageError
from assay.types import Demonstration, Message, Preference, Prompt, Ranking, Verdict


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"prompt": f"Question {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    same = {"prompt": "Question 7?", "chosen": "even better", "rejected": "bad 7"}
    bad = {"prompt": "Question 8?", "chosen": "same", "rejected": "same"}
    return write(tmp_path / "pairs.jsonl", [*rows, same, rows[3], bad])


def every(splits: Splits[Any]) -> list[Any]:
    return [item for _, items in splits.items() for item in items]


def test_pairs_alone_also_give_demonstrations_and_prompts(pairs: str) -> None:
    prepared = prepare_files(FileData(path=pairs), seed=0)
    found = every(prepared.preferences)
    assert len(found) == 61
    assert {(d.prompt, d.response) for d in every(prepared.demonstrations)} == {(p.prompt, p.chosen) for p in found}
    assert sorted(p.text for p in every(prepared.prompts)) == sorted(f"Question {i}?" for i in range(60))
    assert prepared.text == []


def test_a_prompt_is_in_one_split_for_every_purpose(pairs: str) -> None:
    prepared = prepare_files(FileData(path=pairs), seed=0)
    for name in ("train", "validation", "test"):
        ids = {prompt.id for prompt in getattr(prepared.prompts, name)}
        assert ids
        assert {item.prompt.id for item in getattr(prepared.preferences, name)} == ids
        assert {item.prompt.id for item in getattr(prepared.demonstrations, name)} == ids


def test_the_report_counts_what_was_dropped_and_what_is_left(pairs: str) -> None:
    report = prepare_files(FileData(path=pairs), seed=0).report
    assert report["rows"] == 63
    assert {drop["reason"]: drop["count"] for drop in report["dropped"]} == {
        "exact duplicate": 1,
        "chosen and rejected are the same text": 1,
    }
    assert sum(report["counts"]["preferences"].values()) == 61
    assert report["by_source"]["preferences"] == {"pairs": 61}
    assert report["sources"]["data"][pairs]["format"] == "trl-pairs"
    assert report["leakage"]["test"]["equal"] == 0
    json.dumps(report)


def test_the_same_seed_gives_the_same_data_and_hash_another_another_split(pairs: str) -> None:
    first, again, other = (prepare_files(FileData(path=pairs), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.report["hashes"] != other.report["hashes"]
    assert sorted(map(repr, every(first.preferences))) == sorted(map(repr, every(other.preferences)))


def test_each_purpose_may_have_a_source_of_its_own(pairs: str, tmp_path: Path) -> None:
    demos = write(tmp_path / "demos.jsonl", [{"instruction": f"Do {i}", "output": f"done {i}"} for i in range(40)])
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n")
    config = FileData(path=demos, preferences=FileSource(path=pairs), text=FileSource(path=str(text)))
    prepared = prepare_files(config, seed=0)
    assert len(prepared.demonstrations) == 40
    assert len(prepared.preferences) == 61
    assert {p.source for p in every(prepared.prompts)} == {"demos"}
    assert prepared.text == ["one", "two"]


def test_only_preferences_also_make_the_other_purposes(pairs: str) -> None:
    prepared = prepare_files(FileData(preferences=FileSource(path=pairs)), seed=0)
    assert len(prepared.demonstrations) == len(prepared.preferences) == 61
    assert len(prepared.prompts) == 60


def test_rankings_become_all_their_pairs_and_verdicts_show_what_was_good(tmp_path: Path) -> None:
    ranked = [{"prompt": f"Rank {i}", "responses": ["a", "b", "c"]} for i in range(9)]
    judged = [{"prompt": f"Judge {i}", "completion": f"r{i}", "label": i % 2 == 0} for i in range(10)]
    write(tmp_path / "ranked.jsonl", ranked)
    write(tmp_path / "judged.jsonl", judged)
    prepared = prepare_files(FileData(path=str(tmp_path)), seed=0)
    first = [(p.chosen, p.rejected) for p in every(prepared.preferences) if p.prompt.text == "Rank 0"]
    assert first == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(prepared.preferences) == 27
    assert {(v.response, v.good) for v in every(prepared.verdicts)} == {(f"r{i}", i % 2 == 0) for i in range(10)}
    assert sum(prepared.report["counts"]["verdicts"].values()) == 10
    assert {p.text for p in every(prepared.prompts)} >= {f"Judge {i}" for i in range(10)}
    shown = {d.response for d in every(prepared.demonstrations)}
    assert shown == {"a", *(f"r{i}" for i in range(0, 10, 2))}


def test_decontamination_drops_training_rows_that_share_eight_words(tmp_path: Path) -> None:
    words = "one two three four five six seven eight"
    rows = [{"prompt": f"{words} {i}" if i % 2 else f"Question {i}", "completion": "a"} for i in range(100)]
    path = write(tmp_path / "a.jsonl", rows)
    dirty = prepare_files(FileData(path=path), seed=0)
    clean = prepare_files(FileData(path=path, decontaminate=True), seed=0)
    assert dirty.report["leakage"]["test"]["shared_8_words"] > 0
    assert clean.report["leakage"]["test"]["shared_8_words"] == 0
    assert all("Question" in d.prompt.text for d in clean.demonstrations.train)
    assert clean.demonstrations.test == dirty.demonstrations.test


def test_balancing_is_by_source(pairs: str, tmp_path: Path) -> None:
    write(tmp_path / "few.jsonl", [{"prompt": f"Few {i}", "chosen": "a", "rejected": "b"} for i in range(10)])
    report = prepare_files(FileData(path=str(tmp_path), balance_by="source"), seed=0).report
    assert report["by_source"]["preferences"] == {"few": 10, "pairs": 10}


def test_cleaning_everything_away_is_an_error_with_the_reason(pairs: str) -> None:
    with pytest.raises(DataError, match=r"leaves none of 63 items: a response longer than 1 characters \(63\)"):
        prepare_files(FileData(path=pairs, clean=CleanConfig(max_response_chars=1, identical=False)), seed=0)


def test_refusing_invalid_rows_names_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "a"}, {"prompt": "q", "completion": None}])
    with pytest.raises(DataError, match=r'line 2: "completion" is null'):
        prepare_files(FileData(path=path, clean=CleanConfig(drop_invalid=False)), seed=0)


def test_what_is_saved_is_what_is_loaded(pairs: str, tmp_path: Path) -> None:
    prepared = prepare_files(FileData(path=pairs), seed=0)
    prepared.save(tmp_path / "artifact")
    assert Prepared.load(tmp_path / "artifact") == prepared


def test_a_damaged_folder_is_a_storage_error(tmp_path: Path) -> None:
    Prepared().save(tmp_path)
    (tmp_path / "preferences.train.jsonl").write_text('{"prompt"\n')
    with pytest.raises(StorageError, match="not readable as prepared data"):
        Prepared.load(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"cannot be written: No space left on device"):
        Prepared(text=["a"]).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


SAID = st.text(max_size=20)
PROMPTS = st.builds(
    Prompt,
    st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), SAID), min_size=1).map(tuple),
    SAID,
    SAID,
)
ITEMS = st.one_of(
    SAID,
    PROMPTS,
    st.builds(Demonstration, PROMPTS, SAID),
    st.builds(Preference, PROMPTS, SAID, SAID, st.none() | st.floats(allow_nan=False)),
    st.builds(Ranking, PROMPTS, st.lists(SAID, min_size=2).map(tuple)),
    st.builds(Verdict, PROMPTS, SAID, st.booleans()),
)


@given(item=ITEMS)
def test_every_item_survives_being_a_record(item: Any) -> None:
    assert from_record(json.loads(json.dumps(to_record(item)))) == item


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no data"),
        ({"path": "x", "streaming": True}, "subset_size"),
        ({"path": "x", "validation_split": 0.6, "test_split": 0.4}, "nothing to train on"),
        ({"path": "x", "subset": 3}, "Extra inputs"),
        ({"path": "x", "subset_size": 0}, "greater than 0"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FileData(**settings)
