"""What the doctor says about settings, number formats, and a run that was resumed."""

from __future__ import annotations

import pytest
import torch
import yaml

from assay.doctor import machine as doctor
from assay.doctor.detector import Missing
from assay.doctor.log import Log
from assay.doctor.machine import Cursor, Machine, Settings
from assay.document import read_yaml
from assay.stages import loop
from assay.stages.config import RewardConfig
from assay.tracking.metrics import MetricsLine


def test_text_that_a_schema_refuses_for_a_number_is_named_with_its_key() -> None:
    text = "id: seven\nepochs: two\noptim:\n  learning_rate: 5%\n  warmup: 0.1\n"
    settings = Settings.of(read_yaml(text, "recipe.yaml"), RewardConfig)
    assert settings.texts == {"epochs": "two", "optim.learning_rate": "5%"}
    (finding,) = doctor.text_for_a_number(settings)
    assert (finding.where, finding.change) == ("recipe.yaml", {"optim.learning_rate": 0.05})


def test_numbers_however_they_are_written_and_faults_of_another_kind_are_no_text() -> None:
    for text in ("optim: {learning_rate: 1e-5}", 'optim: {learning_rate: "1e-5"}', "id: '7'", "epochs: 0", "epoch: x"):
        assert list(doctor.text_for_a_number(Settings.of(read_yaml(text, "r"), RewardConfig))) == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *(("1e-5", 1e-5), ("2E6", 2e6), ("1.0e5", 1e5), ("5,0e-7", 5e-7), (" +3e2 ", 300.0)),
        *(("10%", 0.1), ("2,5 %", 0.025), ("'0.1'", 0.1), ("'.05'", 0.05), ("0,05", 0.05)),
    ],
)
def test_without_a_schema_a_number_that_yaml_reads_as_text_is_named_and_written_plainly(
    written: str, meant: float
) -> None:
    values = yaml.safe_load(f"train: {{rates: [1.0e-5, 7]}}\nlr: {written}")
    (finding,) = doctor.text_for_a_number(Settings.foreign("train.yaml", values))
    assert finding.change == {"lr": pytest.approx(meant)}


@pytest.mark.parametrize("written", ["1,000", "0,001", "12,000,000.5"])
def test_a_comma_that_may_part_thousands_or_decimals_is_named_and_not_guessed_at(written: str) -> None:
    (finding,) = doctor.text_for_a_number(Settings.foreign("train.yaml", {"steps": written}))
    assert finding.change == {}
    assert written in finding.evidence


def test_texts_that_hold_numbers_and_are_none_are_left_alone() -> None:
    texts = ["3", "e5", "0,1", "0,1,2", "127.0.0.1", "1.2.3", "2024-01-01", "8x22B", "100%|###", "0.9,0.999"]
    values = {"names": texts, "version": "0.1", "model_revision": "1.0"}
    assert list(doctor.text_for_a_number(Settings.foreign("train.yaml", values))) == []


@pytest.mark.parametrize(("ratio", "found"), [(0.5, False), (3.0, False), (60.0, True)])
def test_a_format_that_is_imitated_is_many_times_slower(ratio: float, found: bool) -> None:
    timed = Machine("machine", "bfloat16", {"float32": 0.001, "bfloat16": 0.001 * ratio})
    assert bool(list(doctor.imitated(timed))) is found


def test_a_format_that_was_not_timed_is_unchecked() -> None:
    with pytest.raises(Missing):
        list(doctor.imitated(Machine("machine", "bfloat16", {"float32": 0.001})))


def test_formats_are_timed_on_this_machine() -> None:
    assert Machine.of("machine", torch.float64).seconds.keys() == {"float32", "float64"}
    assert list(doctor.imitated(Machine.of("machine", torch.float32))) == []


def test_examples_that_come_again_or_never() -> None:
    planned = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert list(doctor.lost_its_place(Cursor("sft", planned, planned[:2]))) == []  # it has not come further
    assert list(doctor.lost_its_place(Cursor("sft", planned, [[1, 0], [3, 2]]))) == []
    (finding,) = doctor.lost_its_place(Cursor("sft", planned, [[0, 1], [2, 3], [0, 1], [2, 3]]))
    assert finding.evidence == "from step 3 on other examples than planned: 4 too often and 4 not at all, of 8"
    with pytest.raises(Missing):
        list(doctor.lost_its_place(Cursor("sft", planned, [])))


def passes(batches: list[list[int]], epochs: int) -> Log:
    """The log of a stage that takes these batches, as many in each pass over the data."""
    lines = [
        MetricsLine(step, 0.0, loop.cursor(batch, step, batches, epochs)) for step, batch in enumerate(batches, start=1)
    ]
    return Log.of("sft", "sft", lines)


def test_a_batch_that_comes_twice_in_one_pass_over_the_data_is_a_lost_place() -> None:
    once = [[0, 1], [2, 3], [4, 5]]
    assert list(doctor.comes_again(passes([*once, *once[::-1]], epochs=2))) == []  # once in each pass
    (finding,) = doctor.comes_again(passes([*once, [0, 1], [3, 2], [2, 3]], epochs=2))
    assert finding.evidence.startswith("step 6 takes the batch of step 5 once more")  # in whatever order
    (finding,) = doctor.comes_again(passes([[0, 1], [2, 3], [0, 1], [2, 3]], epochs=1))
    assert finding.evidence.endswith("2 of 4 steps do")
    with pytest.raises(Missing):
        list(doctor.comes_again(Log.of("sft", "sft", [MetricsLine(1, 0.0, {"loss": 1.0})])))
