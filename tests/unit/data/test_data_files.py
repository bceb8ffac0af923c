"""Containers: the same rows from every one; what is broken is one clear error with its place."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from assay.data import hub
from assay.data.config import FileData, FileSource
from assay.data.files import read_rows
from assay.data.load import content_hashes, read
from assay.errors import DataError
from assay.pipeline.steps import data_hashes
from assay.types import Preference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {"prompt": "Where is the lift?\u2028And the bar?", "chosen": 'Left, then "up".', "rejected": "No\nidea."},
    {"prompt": "Is there, by chance, a pool?", "chosen": "Yes — ünder the roof", "rejected": "Who knows"},
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "pairs.jsonl": lambda path: path.write_text(lines(ROWS), encoding="utf-8"),
    "windows.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n").encode()),
    "pairs.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS).encode())),
    "pairs.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "lines.json": lambda path: path.write_text(lines(ROWS), encoding="utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"data": ROWS}), encoding="utf-8"),
    "columns.json": lambda path: path.write_text(json.dumps({k: [row[k] for row in ROWS] for k in ROWS[0]})),
    "pairs.csv": as_csv,
    "pairs.tsv": lambda path: as_csv(path, "\t"),
    "pairs.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    assert [located.row for located in read_rows(path)] == ROWS


def test_places_are_the_lines_an_editor_shows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + lines(ROWS))
    as_csv(tmp_path / "a.csv")
    assert [located.place.split()[-2:] for located in read_rows(tmp_path / "a.jsonl")] == [["line", "2"], ["line", "3"]]
    assert [located.number for located in read_rows(tmp_path / "a.csv")] == [2, 4], (
        "a cell of the first row has two lines"
    )


def test_a_folder_is_read_file_by_file_without_its_licence(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.jsonl").write_text(lines(ROWS[:1]))
    (tmp_path / "a.jsonl").write_text(lines(ROWS[1:]))
    (tmp_path / "LICENSE.txt").write_text("All rights")
    (tmp_path / "notes.docx").write_text("?")
    loaded = read(tmp_path)
    assert [Path(name).name for name in loaded.files] == ["a.jsonl", "b.jsonl"]
    assert [entry.item.prompt.source for entry in loaded.entries if isinstance(entry.item, Preference)] == ["a", "b"]
    assert list(read(FileSource(path=str(tmp_path), include="*.jsonl")).files) == [str(tmp_path / "a.jsonl")]


BROKEN: dict[str, tuple[str, str | bytes, str, str]] = {
    "an empty file": ("x.jsonl", "", "x.jsonl: the file is empty", "remove it"),
    "only blank lines": ("x.jsonl", "\n\n", "x.jsonl: the file is empty", "remove it"),
    "an empty list": ("x.json", "[]", "x.json: the file is empty", "remove it"),
    "a header without rows": ("x.csv", "prompt,chosen,rejected\n", "x.csv: the file is empty", "remove it"),
    "broken lines, all named": (
        "x.jsonl",
        '{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n[1]\n',
        "x.jsonl line 2: not a JSON object: Expecting value at column 12",
        "2 broken: lines 2, 4",
    ),
    "broken JSON": (
        "x.json",
        '[{"a": 1},\n {"a" 2}]',
        "x.json line 2: not valid JSON: Expecting ':'",
        "repair it there",
    ),
    "JSON that is no list": ("x.json", "3", "x.json: a JSON int that is no list of rows", "list of objects"),
    "columns of unequal length": ("x.json", '{"a": ["x"], "b": ["x", "y"]}', "no list of rows", "equally long columns"),
    "a row with too many cells": ("x.csv", 'prompt\n"a"\nb, c\n', "x.csv line 3: more cells", "double quotes"),
    "no UTF-8": ("x.jsonl", '{"prompt": "\xfc"}\n'.encode("latin-1"), "x.jsonl: not UTF-8 text", "iconv"),
    "a damaged gzip": ("x.jsonl.gz", b"no gzip", "x.jsonl.gz: damaged gzip file", "fetch it again"),
    "a cut gzip": ("x.jsonl.gz", gzip.compress(lines(ROWS * 99).encode())[:-20], "damaged gzip file", "fetch it again"),
    "a damaged parquet": ("x.parquet", b"PAR1 no", "x.parquet: not a readable parquet file", "again"),
    "an unknown ending": ("x.docx", "?", "x.docx: unknown kind of file", ".jsonl"),
    "a missing column": (
        "x.jsonl",
        '{"chosen": "a", "rejected": "b"}\n',
        'no known format has the columns "chosen", "rejected"',
        'the nearest, \'hh\', has "chosen" (dialogue), "rejected" (dialogue)',
    ),
    "a column that the wanted format needs": ("x.jsonl", '{"prompt": "p"}\n', 'needs "completion"', "rename"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_clear_error(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, what, hint = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    wanted = "trl-completion" if "wanted format" in case else "auto"
    with pytest.raises(DataError) as error:
        read(path, format=wanted)
    assert what in error.value.what
    assert hint in error.value.hint
    assert error.value.exit_code == 2


def test_rows_without_text_are_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "p", "chosen": None, "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": ""}]
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(rows) + '{"prompt": "p", "chosen": NaN, "rejected": "a"}\n')
    loaded = read(path)
    assert len(loaded.entries) == 2
    assert loaded.rows == 5
    assert loaded.drops.counts == {'"chosen" is null': 2, '"rejected" is empty': 1}
    places = [example["place"] for example in loaded.drops.examples['"chosen" is null']]
    assert places == [f"{path} line 3", f"{path} line 5"]


def test_a_missing_cell_of_a_table_is_null_and_the_answer_none_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\np,None,b\np,nan,b\np,,b\np,a\n")
    loaded = read(path)
    assert [entry.item.chosen for entry in loaded.entries if isinstance(entry.item, Preference)] == ["None"]
    assert loaded.drops.counts == {'"chosen" is null': 1, '"chosen" is empty': 1, '"rejected" is null': 1}


def test_strict_reading_refuses_and_names_every_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    bad = {"prompt": "p", "chosen": "a", "rejected": None}
    path.write_text(lines([ROWS[0], bad, ROWS[1], bad]))
    with pytest.raises(DataError) as error:
        read(path, strict=True)
    assert error.value.what == f'{path} line 2: "rejected" is null'
    assert "2 of 4 rows cannot be used (lines 2, 4)" in error.value.hint
    assert "clean.drop_invalid=true" in error.value.hint


def test_a_file_of_unusable_rows_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([{"prompt": "p", "chosen": " ", "rejected": "a"}] * 3))
    with pytest.raises(DataError, match=r'none of 3 rows can be used: "chosen" is empty \(3\)'):
        read(path)


def test_a_missing_path_is_an_error() -> None:
    with pytest.raises(DataError, match=r"nowhere/pairs\.jsonl: no such file or folder"):
        read("nowhere/pairs.jsonl")


def test_a_subset_is_drawn_by_seed_over_all_files_and_keeps_their_order(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 50)):
        rows = [{"prompt": f"p{i:02}"} for i in range(start, start + 50)]
        (tmp_path / f"{name}.jsonl").write_text(lines(rows))

    def drawn(seed: int, **settings: Any) -> list[str]:
        source = FileSource(path=str(tmp_path), subset_size=20, **settings)
        return [entry.item.text for entry in read(source, seed=seed).entries]  # type: ignore[union-attr]

    assert drawn(0) == sorted(drawn(0)) == drawn(0) != drawn(1)
    assert len(drawn(0)) == 20
    assert {text >= "p50" for text in drawn(0)} == {True, False}
    assert drawn(0, streaming=True) == [f"p{i:02}" for i in range(20)]


def test_streaming_reads_no_further_than_it_must(tmp_path: Path) -> None:
    path = tmp_path / "endless.jsonl"
    path.write_text(lines(ROWS) + "not json\n" * 3)
    assert len(read(FileSource(path=str(path), subset_size=2, streaming=True)).entries) == 2


def test_the_content_hash_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    source = FileSource(path=str(path))
    path.write_text(lines(ROWS))
    first = content_hashes(source)
    path.write_text(lines(ROWS[::-1]))
    second = content_hashes(source)
    path.write_text(lines(ROWS))
    assert first == content_hashes(source) != second


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_id_is_read_through_datasets(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, **settings: Any) -> Any:
        asked.append((path, settings))
        whole = datasets.Dataset.from_list(ROWS)
        return whole.to_iterable_dataset() if settings["streaming"] else whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_resolves", lambda: True)
    monkeypatch.setattr(HfApi, "dataset_info", lambda api, name, timeout: SimpleNamespace(sha=COMMIT))
    loaded = read(FileSource(path="Anthropic/hh-rlhf/harmless-base", split="test", streaming=streaming, subset_size=2))
    assert asked == [("Anthropic/hh-rlhf", {"data_dir": "harmless-base", "split": "test", "streaming": streaming})]
    assert len(loaded.entries) == 2
    assert (
        loaded.files["Anthropic/hh-rlhf/harmless-base"]["hash"] == f"hub:Anthropic/hh-rlhf/harmless-base@{COMMIT} test"
    )


def test_the_content_of_a_hub_data_set_is_its_latest_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def dataset_info(api: HfApi, name: str, timeout: float) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(hub, "_hub_resolves", lambda: True)
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    source = FileData(path="own/er", prompts=FileSource(path="a/b/folder"))
    assert data_hashes(source) == {"own/er": f"hub:own/er@{COMMIT}", "a/b/folder": f"hub:a/b/folder@{COMMIT}"}
    assert asked == ["own/er", "a/b"]


@pytest.mark.parametrize("online", [True, False])
def test_without_an_answer_of_the_hub_the_newest_cached_commit_counts(
    online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(api: HfApi, name: str, timeout: float) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub, "_hub_resolves", lambda: online)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    assert hub.hub_content("Own/er_x") == "hub:Own/er_x"
    for age, name in enumerate(("0" * 40, COMMIT, "1" * 40, "no-commit")):
        copy = tmp_path / "Own___er_x" / "default" / "0.0.0" / name
        copy.mkdir(parents=True)
        made = 1e9 - 60 * abs(age - 1)
        os.utime(copy, (made, made))
    assert hub.hub_content("Own/er_x") == f"hub:Own/er_x@{COMMIT}"


def test_a_hub_id_without_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_resolves", lambda: False)
    with pytest.raises(DataError) as error:
        read("nobody/nothing-at-all")
    assert "there is no network" in error.value.what
    assert "local path" in error.value.hint


def test_what_the_hub_refuses_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **settings: Any) -> Any:
        raise DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_resolves", lambda: True)
    with pytest.raises(DataError, match=r"doesn't exist on the Hub\n"):
        read("nobody/nothing-at-all")
