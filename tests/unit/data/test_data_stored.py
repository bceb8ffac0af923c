"""Data on disk behave like lists, say what is damaged, and take little memory while they are prepared."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.config import FileData
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared, Splits
from assay.data.records import from_line, to_line
from assay.data.split import contaminated, leakage
from assay.data.stored import Lazily, Stored, lengths_of, select, store
from assay.errors import StorageError
from assay.types import Message, Prompt

PROMPTS = [Prompt.ask(f"Question {i} \u2028 é?", source="a") for i in range(9)]


def on_disk(prompts: list[Prompt]) -> Stored[Prompt]:
    return store(prompts, to_line, from_line)


@given(index=st.integers(-9, 8), cut=st.slices(9), which=st.lists(st.integers(0, 8)))
def test_stored_items_behave_like_a_list(index: int, cut: slice, which: list[int]) -> None:
    stored = on_disk(PROMPTS)
    assert stored == PROMPTS
    assert list(stored) == PROMPTS
    assert stored[index] == PROMPTS[index]
    assert stored[cut] == PROMPTS[cut]
    assert stored[cut][::-1] == PROMPTS[cut][::-1]
    assert stored.take(which) == [PROMPTS[i] for i in which]
    kept = select(stored, lambda prompt: prompt.text[9] in "258")
    assert isinstance(kept, Stored)
    assert kept == [PROMPTS[2], PROMPTS[5], PROMPTS[8]]
    assert stored != PROMPTS[:-1]
    assert stored != [*PROMPTS[:-1], PROMPTS[0]]
    with pytest.raises(IndexError):
        stored[9]


def test_a_digest_is_of_the_items_and_their_order_wherever_they_stand() -> None:
    stored, other = on_disk(PROMPTS), on_disk(PROMPTS[3:] + PROMPTS[:3])
    assert stored[3:].digest == other[:6].digest
    assert stored.digest != other.digest
    assert stored[3:].digest != stored[4:].digest


def test_lengths_that_are_known_are_not_measured() -> None:
    def make(number: int) -> str:
        made.append(number)
        return "x" * number

    made: list[int] = []
    numbers = on_disk(PROMPTS).sizes
    lazy = Lazily(numbers, make, numbers)
    assert lengths_of(lazy[1:3], len) == numbers[1:3].tolist()
    assert made == []
    assert lengths_of(Lazily(numbers, make), len) == numbers.tolist()
    assert lazy[-1] == "x" * int(numbers[-1])


def test_a_damaged_item_is_a_storage_error_when_it_is_read(tmp_path: Path) -> None:
    Prepared(prompts=Splits(PROMPTS)).save(tmp_path)
    file = tmp_path / "prompts.train.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"role"', b'"rule"', 1))
    loaded = Prepared.load(tmp_path)
    assert loaded.prompts.train[1:] == PROMPTS[1:]
    with pytest.raises(StorageError, match=r"prompts\.train\.jsonl is damaged"):
        loaded.prompts.train[0]


def test_preparing_holds_a_small_part_of_the_data_in_memory(tmp_path: Path) -> None:
    rows, length = 4000, 2500
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for i in range(rows):
            row = {"prompt": f"Question {i}?", "chosen": f"{i} " + "a" * length, "rejected": "b" * length}
            file.write(json.dumps(row) + "\n")
    prepare_files(FileData(path=str(tmp_path / "pairs.jsonl"), subset_size=40), seed=0)  # imports what it needs
    tracemalloc.start()
    prepared = prepare_files(FileData(path=str(tmp_path / "pairs.jsonl")), seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(prepared.preferences) == rows
    assert peak < 2 * rows * length / 4  # of which the 200 rows that a format is told by are a part


WORDS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)
DIALOGUES = st.lists(
    st.tuples(WORDS, WORDS, WORDS).map(
        lambda said: Prompt((Message("user", said[0]), Message("assistant", said[1]), Message("user", said[2])))
    ),
    max_size=6,
)


def slow_runs(prompt: Prompt) -> set[tuple[str, ...]]:
    turns = [re.findall(r"\w+", turn.content) for turn in prompt.messages if turn.role == "user"]
    return {tuple(words[i : i + 8]) for words in turns for i in range(len(words) - 7)}


@given(train=DIALOGUES, held_out=DIALOGUES)
def test_leaks_are_those_that_comparing_every_run_of_words_finds(train: list[Prompt], held_out: list[Prompt]) -> None:
    known = set(itertools.chain.from_iterable(map(slow_runs, train)))
    found = leakage(Splits(train, [], held_out))["test"]
    assert found["shared_8_words"] == sum(bool(slow_runs(prompt) & known) for prompt in held_out)
    assert found["equal"] == sum(prompt in train for prompt in held_out)
    there = set(itertools.chain.from_iterable(map(slow_runs, held_out)))
    assert contaminated(train, held_out) == {prompt.id for prompt in train if slow_runs(prompt) & there}
