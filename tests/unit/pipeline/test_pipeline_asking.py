"""What a question may cost: every model is asked as much as it can answer in seconds, or it is told why it is not."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from bench.doctor_trial.words import spoken

from assay.data.prepared import Prepared, Splits
from assay.doctor.detector import Missing, examine
from assay.doctor.probe_reward import LabelProbe
from assay.models.locate import locate
from assay.pipeline.ask_reward import TAUGHT, lots
from assay.pipeline.asking import Stage, affordable
from assay.stages.config import RewardConfig
from assay.types import Preference, Prompt


def sized(folder: Path, parameters: int) -> Path:
    """A folder of so many weights in fp32, which nobody reads."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(4 * parameters)
    return folder


def test_a_question_that_costs_too_much_says_what_it_costs(tmp_path: Path) -> None:
    small = sized(tmp_path, 1_000_000)
    assert affordable(small, 1000, most=500) == 200  # 2·10⁶·1000 operations each, 2·10¹⁰ a second, 20 s
    assert affordable(small, 1000, most=50) == 50
    with pytest.raises(Missing, match=r"^with 1 M parameters that would take about 30 s: a question may take 20, of"):
        affordable(small, 1000, most=500, least=300)
    with pytest.raises(Missing, match=r"^with 300 M parameters .* of 200 M at most$"):
        affordable(sized(tmp_path, 300_000_000), 1, most=1)


def pairs(seed: int) -> list[Preference]:
    """As many as are taught, of eight words each."""
    rng = random.Random(seed)
    return [Preference(Prompt.ask(f"{spoken(rng, 8)}?"), spoken(rng, 8), spoken(rng, 8)) for _ in range(TAUGHT)]


@pytest.mark.parametrize(("seen", "found"), [(False, []), (True, ["too-good-to-be-true"])])
def test_the_embedded_model_is_asked_whether_it_knows_lots_that_it_has_not_seen(seen: bool, found: list[str]) -> None:
    held_out = pairs(0 if seen else 1)
    data = Prepared(preferences=Splits(train=pairs(0), test=held_out))
    given = examine(lots(Stage("reward", RewardConfig(), {"base": locate("embedded")}, data, "chat", "cpu")))
    assert [finding.mode.name for finding in given.findings] == found
    assert {(mode.name, where) for mode, where in given.checked} == {("too-good-to-be-true", "reward")}


def test_lots_that_could_not_be_learnt_tell_nothing(tmp_path: Path) -> None:
    data = Prepared(preferences=Splits(train=pairs(0), test=pairs(0)))
    (probe,) = lots(Stage("reward", RewardConfig(), {"base": locate("embedded")}, data, "chat", "cpu"))
    assert isinstance(probe, LabelProbe)
    (unchecked,) = examine([replace(probe, steps=0)]).unchecked
    assert unchecked.why == f"0 steps are too few to learn the lots of {TAUGHT} pairs by heart"
