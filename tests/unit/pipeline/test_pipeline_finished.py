"""`assay doctor RUN`: a fault put into what a run has made is named; the run itself shows none of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from bench.doctor_trial import finished_runs
from bench.doctor_trial.broken_code import mean_of_means, with_dropout
from bench.doctor_trial.finished_runs import (
    artifact,
    bare_base,
    loading,
    padded_on_the_right,
    pairs,
    weights,
    without_head,
)
from typer.testing import CliRunner

from assay.cli.main import app
from assay.models.adapters import Adapters
from assay.pipeline import ask_reward, finished
from assay.pipeline.asking import ASKED
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import run


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_runs.made(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def again(healthy: Path, tmp_path: Path) -> Path:
    """A copy of the run and of all that it made."""
    return finished_runs.copied(healthy, tmp_path)


def named(folder: Path) -> dict[str, str]:
    """Every mode that is found, and where."""
    found = finished.of_run(folder, lambda line: None, seconds=math.inf).diagnosis.findings
    return {finding.mode.name: finding.where for finding in found}


def test_a_healthy_run_shows_nothing_when_its_models_are_asked(healthy: Path) -> None:
    given = finished.of_run(healthy, lambda line: None, seconds=math.inf)
    assert given.diagnosis.findings == ()
    asked = {(mode.name, where) for mode, where in given.diagnosis.checked}
    assert {
        ("eos-not-learned", "sft"),
        ("accumulation-bias", "sft"),
        ("label-noise", "reward"),
        ("reward-at-chance", "reward"),
        ("head-lost", "reward"),
        ("too-good-to-be-true", "reward"),
        ("kl-before-training", "ppo"),
        ("wrong-reference", "ppo"),
        ("right-padded-prompts", "ppo"),
        ("sampler-differs", "ppo"),
    } <= asked


def test_nothing_is_both_not_found_and_not_checked_and_what_a_stage_cannot_have_is_neither(healthy: Path) -> None:
    facts = finished.of_run(healthy, lambda line: None, seconds=math.inf).facts()
    known, unknown = ({(one["mode"], one["where"]) for one in facts[part]} for part in ("not_found", "unchecked"))
    assert known & unknown == set()
    assert {("kl-before-training", "sft"), ("wrong-reference", "sft"), ("frozen-adapter-blocks", "reward")} & (
        known | unknown
    ) == set()
    assert ("not-finite", "data") not in known | unknown


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def in_summary(run: Path, stage: str, entry: Callable[[dict[str, Any]], Any]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"][stage] = entry(summary["stages"][stage])
    (run / "summary.json").write_text(json.dumps(summary))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights cut": lambda run: cut(artifact(run, "reward") / "model.safetensors"),
    "config cut": lambda run: cut(artifact(run, "reward") / "config.json"),
    "config gone": lambda run: (artifact(run, "reward") / "config.json").unlink(),
    "tokenizer cut": lambda run: cut(artifact(run, "sft") / "tokenizer.json"),
    "data cut": lambda run: cut(artifact(run, "data") / "preferences.train.jsonl"),
    "index cut": lambda run: cut(artifact(run, "data") / "index.npz"),
    "recipe gone": lambda run: (run / "recipe.yaml").unlink(),
    "recipe cut": lambda run: cut(run / "recipe.yaml"),
    "log empty": lambda run: (artifact(run, "ppo") / "metrics.jsonl").write_text(""),
    "entry empty": lambda run: in_summary(run, "sft", lambda entry: {}),
    "entry odd": lambda run: in_summary(run, "sft", lambda entry: 3),
    "no artifact": lambda run: in_summary(run, "reward", lambda entry: {"kind": "reward", "metrics": {}}),
    "no metrics": lambda run: in_summary(run, "reward", lambda entry: {**entry, "metrics": None}),
}
TOLD = {"log empty", "entry empty", "entry odd", "no artifact", "no metrics"}
"""By the logs' reader: the models that are known are still asked."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_half_of_a_run_that_cannot_be_read_leaves_no_verdict_and_the_rest_is_looked_at(
    again: Path, damage: str
) -> None:
    DAMAGE[damage](again)
    given = finished.of_run(again, lambda line: None, seconds=math.inf)
    assert given.verdict == "unchecked"
    assert given.unread
    assert ("not-finite", "ppo") in {(mode.name, where) for mode, where in given.diagnosis.checked}
    if damage not in TOLD:
        reasons = {one.why for one in given.diagnosis.unchecked}
        assert any(line.endswith(why) for line in given.unread for why in reasons)


def head_drawn_anew(folder: Path) -> None:
    torch.manual_seed(0)
    weights(folder, "reward", lambda tensors: tensors["score.weight"].normal_(0, 1))


def labels_shifted(folder: Path) -> None:
    """Every row that is kept counts the prompt's last token among the labels."""
    (cache,) = (folder.parent / "cache").glob("*")
    for path in cache.glob("*.rows"):
        kept = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint16).to(torch.int64)
        with np.load(path.with_suffix(".npz")) as index:
            starts = np.cumsum([0, *index["sizes"][:-1]]) // 2
        kept[torch.from_numpy(starts)] -= 1
        path.write_bytes(kept.to(torch.uint16).numpy().tobytes())


@pytest.mark.parametrize(
    ("fault", "mode", "where"),
    [
        (head_drawn_anew, "head-lost", "reward"),
        (without_head, "head-lost", "reward"),
        (padded_on_the_right, "right-padded-prompts", "ppo"),
        (labels_shifted, "boundary-tokens", "reward"),
        (bare_base, "wrong-reference", "ppo"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_in_what_was_made_is_named(again: Path, fault: Callable[[Path], None], mode: str, where: str) -> None:
    fault(again)
    assert named(again).get(mode) == where


def first(folder: Path, *options: str) -> tuple[str, str]:
    """What `assay doctor RUN` names first, and where."""
    said = CliRunner().invoke(app, ["doctor", str(folder), "--json", *options], prog_name="assay")
    finding, *_ = json.loads(said.stdout)["findings"]
    return finding["mode"], finding["where"]


def turned(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def test_one_label_in_four_that_is_wrong_is_named_first(tmp_path: Path) -> None:
    rows = [turned(row) if number % 4 == 0 else row for number, row in enumerate(pairs(480))]
    slowly = {"optim": {"learning_rate": 1e-3}}
    assert first(finished_runs.made(tmp_path, rows, stages=["reward"], reward=slowly)) == ("label-noise", "reward")


def test_labels_by_lot_are_named_first(tmp_path: Path) -> None:
    coin = random.Random(1)
    rows = [turned(row) if coin.random() < 0.5 else row for row in pairs(320)]
    found = finished_runs.made(tmp_path, rows, stages=["reward"])
    assert first(found, "--no-probe") == ("reward-at-chance", "reward")  # which the log tells already


def test_held_out_pairs_that_were_learnt_under_another_system_turn_are_named_first(tmp_path: Path) -> None:
    with finished_runs.learnt_before(tmp_path) as folder:
        assert first(folder) == ("too-good-to-be-true", "reward")


def test_a_program_that_takes_the_mean_of_means_is_named_first(healthy: Path) -> None:
    with mean_of_means(ASKED):
        assert first(healthy) == ("accumulation-bias", "sft")


def test_dropout_while_scores_are_read_is_named_before_the_head_that_seems_lost(healthy: Path) -> None:
    with loading(ask_reward, "load_reward_model", lambda model: with_dropout(model.backbone.model)):
        assert named(healthy).keys() >= {"fluctuating-accuracy", "head-lost"}
        assert first(healthy) == ("fluctuating-accuracy", "reward")


def test_a_policy_whose_adapter_does_not_begin_at_nothing_is_named_first(again: Path) -> None:
    inject = Adapters._inject

    def begin_somewhere(self: Adapters, name: str, config: Any) -> None:
        config.init_lora_weights = name != "policy"
        inject(self, name, config)

    with patch.object(Adapters, "_inject", begin_somewhere):
        recipe = load_recipe(str(again / "recipe.yaml"), [f"runs_dir={again.parent}"], environment={})
        found = run(recipe, replace(finished_runs.QUIET, start="ppo"))["dir"]
        assert first(Path(found)) == ("kl-before-training", "ppo")


def test_what_the_logs_cannot_tell_stays_told_when_the_models_have_answered(again: Path) -> None:
    """Without a stage's log there is no verdict, whatever its model says; and stages keep their order of making."""
    (artifact(again, "sft") / "metrics.jsonl").unlink()
    given = finished.of_run(again, lambda line: None, seconds=0)
    assert given.verdict in ("unchecked", "red")
    assert any("metrics.jsonl" in line for line in given.unread)
    assert given.diagnosis.places["ppo"] == ["data", "sft", "reward"]
