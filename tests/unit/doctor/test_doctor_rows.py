"""Histories and tables as rows of numbers: gaps are no NaN, and what holds no rows is refused with the reason."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from assay.doctor.rows import Rows, of_history, of_table
from assay.errors import UsageError


def table(folder: Path, text: str) -> tuple[Rows, list[str]]:
    (path := folder / "metrics.csv").write_text(text, encoding="utf-8")
    notes: list[str] = []
    return of_table(path, notes), notes


def column(rows: Rows, name: str) -> list[tuple[int, float]]:
    return [(step, row[name]) for step, row in rows if name in row]


def test_cells_that_are_empty_or_words_are_gaps(tmp_path: Path) -> None:
    rows, notes = table(tmp_path, "\ufeffstep,kl,colour,lr\n1,-0.5,red,1e-5\n2,,blue,\n3,0.5,,1e-5\n")
    assert column(rows, "kl") == [(1, -0.5), (3, 0.5)]
    assert column(rows, "lr") == [(1, 1e-5), (3, 1e-5)]
    assert column(rows, "colour") == []
    assert notes == ["metrics.csv: cells that are no numbers are left out: colour (2, such as 'red')"]


@pytest.mark.parametrize(
    ("cells", "lost"),
    [
        ("nan 1 nan 2 nan 3", []),  # every other line has it
        ("1 nan 2 nan nan 3 nan nan", []),
        ("1 nan 2 nan 3 nan nan", [6, 7]),  # it ends with more than the gaps before
        ("1 2 3 nan nan", [4, 5]),
        ("nan nan", [1, 2]),
        ("1 inf 2 nan 3", [2]),  # an infinity was measured
    ],
)
def test_nan_is_a_gap_where_numbers_follow_it_and_a_loss_of_numbers_at_the_end(
    tmp_path: Path, cells: str, lost: list[int]
) -> None:
    lines = "".join(f"{step},{cell}\n" for step, cell in enumerate(cells.split(), start=1))
    rows, notes = table(tmp_path, f"step,loss\n{lines}")
    assert [step for step, value in column(rows, "loss") if not math.isfinite(value)] == lost
    gaps = cells.split().count("nan") - len([value for _, value in column(rows, "loss") if math.isnan(value)])
    assert notes == ([f"metrics.csv: nan is taken for a gap where numbers follow it: loss ({gaps})"] if gaps else [])


def test_a_line_whose_step_is_no_number_is_left_out(tmp_path: Path) -> None:
    rows, notes = table(tmp_path, "step,loss\ninf,1\nnan,2\n,3\n1e300,4\n0,5\n3,6\n")
    assert column(rows, "loss") == [(0, 5.0), (3, 6.0)]
    assert notes == ["metrics.csv: 4 of 6 lines are left out, for their step is no number (inf, nan, nothing)"]


def test_lines_without_a_step_are_numbered(tmp_path: Path) -> None:
    rows, notes = table(tmp_path, "loss\n0.5\n0.4\n")
    assert column(rows, "loss") == [(1, 0.5), (2, 0.4)]
    (said,) = notes
    assert said == (
        "metrics.csv has no column named step, global_step, train/global_step, Step or episode: lines are numbered"
    )


def test_epochs_are_no_steps_and_every_line_stays(tmp_path: Path) -> None:
    rows, _ = table(tmp_path, "epoch,loss\n0.02,3\n0.04,2\n1.0,1\n")
    assert column(rows, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert column(rows, "epoch") == [(1, 0.02), (2, 0.04), (3, 1.0)]


def test_the_trainers_own_steps_are_taken_before_those_of_weights_and_biases(tmp_path: Path) -> None:
    rows, _ = table(tmp_path, "Step,train/global_step,train/loss\n1,10,3\n2,20,2\n")
    assert column(rows, "train/loss") == [(10, 3.0), (20, 2.0)]


def test_steps_may_have_commas_between_thousands_and_nothing_else_may(tmp_path: Path) -> None:
    rows, notes = table(tmp_path, 'step,loss\n500,"0,693"\n"1,000",0.5\n')
    assert column(rows, "loss") == [(1000, 0.5)]
    assert notes == ["metrics.csv: cells that are no numbers are left out: loss (1, such as '0,693')"]


def test_a_chart_of_weights_and_biases_is_read_without_the_name_of_its_run(tmp_path: Path) -> None:
    header = "Step,my - run7 - train/loss,my - run7 - train/loss__MIN,my - run7 - train/loss__MAX"
    rows, notes = table(tmp_path, f"{header}\n1,0.6,0.6,0.6\n2,0.5,0.5,0.5\n")
    assert (column(rows, "train/loss"), notes) == ([(1, 0.6), (2, 0.5)], [])
    assert set(rows[0][1]) == {"Step", "train/loss"}


def test_of_two_columns_with_one_name_it_is_told_which_is_read(tmp_path: Path) -> None:
    rows, notes = table(tmp_path, "step,loss,loss\n1,2.0,1.0\n")
    assert column(rows, "loss") == [(1, 1.0)]
    assert notes == ["metrics.csv: of columns with one name the last is read: loss"]


def test_in_a_history_nan_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}, "odd"]}))
    ((first, row), second), _ = of_history(path, [])
    assert (first, math.isnan(row["loss"]), second) == (1, True, (2, {"step": 2.0, "loss": 1.0}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"step,loss\n", "has a header and no line below it"),
        ("x.csv", b"step;loss\n1;0,5\n", "separates its columns with ';'"),
        ("x.csv", b"step\tloss\n1\t0.5\n", r"separates its columns with '\\t'"),
        ("x.csv", b"step,loss\nfirst,0.5\n", r": 1 of 1 lines are left out, for their step is no number \(first\)"),
        ("x.csv", b"Step,a - loss,b - loss\n1,0.5,0.4\n", "holds metrics of 2 runs: a, b"),
        ("x.csv", bytes(range(256)), r"is no text in UTF-8 \(byte 128\)"),
        ("x.csv", b"step,loss\n1," + b"9" * 200_000, "is no table: field larger than field limit"),
        ("state.json", bytes(range(256)), "is no text in UTF-8"),
        ("state.json", b'{"log_history": [{"step": 1, "lo', "is no JSON, or was cut off"),
        ("state.json", b"{}", "has no log_history"),
        ("state.json", b"[]", "has no log_history"),
        ("state.json", b'{"log_history": []}', "has an empty log_history"),
    ],
)
def test_a_file_without_rows_is_refused_with_the_reason_and_the_way_out(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (path := tmp_path / name).write_bytes(content)
    csv.field_size_limit(2**17)  # of the whole process; who reads large tables raises it
    with pytest.raises(UsageError, match=rf"{name} ?{said}") as error:
        (of_table if name == "x.csv" else of_history)(path, [])
    assert error.value.hint
