"""Distillation: the student comes to speak as its teacher does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.unit.stages.test_stages_learning import LORA, SAMPLING, answers
from tests.unit.stages.toy import QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights
from transformers import AutoModelForCausalLM

from assay.algorithms.distill_loss import reverse_kl
from assay.data.pack import collate
from assay.data.prepared import Prepared, Splits
from assay.errors import DataError, ModelError
from assay.models.roles import load_policy
from assay.stages import distill, sft
from assay.stages.config import DistillConfig, OptimConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration


def config(**changes: object) -> DistillConfig:
    return DistillConfig.model_validate(
        {
            "sequences": 960,
            "batch_size": 16,
            "max_length": 32,
            "optim": {"learning_rate": 5e-3},
            "sampling": SAMPLING,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def teacher(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says green nine times in ten, else blue."""
    folder = tmp_path_factory.mktemp("teacher")
    shown = [Demonstration(q, colour) for q in QUESTIONS for colour in ["green"] * 9 + ["blue"]]
    training = SFTConfig(epochs=12, batch_size=15, max_length=32, optim=OptimConfig(learning_rate=1e-2))
    sft.run(training, StageInputs(Prepared(demonstrations=Splits(shown)), str(base)), Memory(folder))
    return folder


@pytest.fixture
def inputs(sft_folder: Path, teacher: Path) -> StageInputs:
    return StageInputs(toy_data(), str(sft_folder), teacher=str(teacher))


@pytest.mark.parametrize(
    "changes",
    [
        {"divergence": "forward", "on_policy": 0.0, "off_policy": "teacher"},
        {"divergence": "reverse", "on_policy": 1.0},
        {"divergence": "jsd", "beta": 0.3, "on_policy": 0.5},
    ],
    ids=["off-policy", "on-policy", "mixed"],
)
def test_the_student_learns_what_the_teacher_says(
    inputs: StageInputs, sft_folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    metrics = distill.run(config(**changes), inputs, Memory(tmp_path))
    before, after = answers(sft_folder), answers(tmp_path)
    assert share(before, "green") < 0.4
    assert share(after, "green") > 0.75
    assert metrics["loss_last"] < 0.2 * metrics["loss_first"]
    assert metrics["teacher_kl_after"] < 0.2 * metrics["teacher_kl_before"]
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_adapter_learns_too_and_leaves_a_plain_model(inputs: StageInputs, tmp_path: Path) -> None:
    """Less than all weights do: so small a base has hardly any features for an adapter to turn."""
    metrics = distill.run(config(lora=LORA), inputs, Memory(tmp_path))
    assert metrics["loss_last"] < 0.2 * metrics["loss_first"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert share(answers(tmp_path), "green") > 0.33


def share(counts: Counter[str], answer: str) -> float:
    return counts[answer] / counts.total()


def test_an_interrupted_distillation_ends_with_the_same_weights(inputs: StageInputs, tmp_path: Path) -> None:
    short = config(sequences=80, checkpoint_every=2)
    whole = distill.run(short, inputs, Memory(tmp_path / "whole"))
    parts = run_in_two_parts(distill.run, short, inputs, Memory(tmp_path / "parts"), stop_at=3)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert whole == parts


@pytest.mark.parametrize("micro", [5, 1])
def test_how_a_batch_is_split_changes_nothing(inputs: StageInputs, tmp_path: Path, micro: int) -> None:
    def train(size: int | None, name: str) -> Path:
        distill.run(config(sequences=32, micro_batch_size=size), inputs, Memory(tmp_path / name))
        return tmp_path / name

    whole, parts = weights(train(None, "whole")), weights(train(micro, "parts"))
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-4


def test_the_divergence_of_a_row_does_not_depend_on_the_rows_beside_it(sft_folder: Path, teacher: Path) -> None:
    student, other = load_policy(sft_folder, trainable=False), load_policy(teacher, trainable=False)
    renderer = student.renderer("chat", 32)
    rows = [renderer.row(QUESTIONS[0], "blue"), renderer.row(QUESTIONS[1], "red and blue and green")]
    batch = collate([row for row in rows if row], student.pad_id)
    together, mask = distill.divergence_BR(student, other, batch, reverse_kl)
    alone, _ = distill.divergence_BR(
        student, other, collate([row for row in rows[:1] if row], student.pad_id), reverse_kl
    )
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-6)
    assert (together[~mask] == 0).all()
    assert (together[mask] > 0).all()


def test_another_vocabulary_is_refused_before_anything_is_loaded(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="different vocabularies"):
        distill.run(config(), replace(inputs, teacher=str(tiny.folder("llama"))), Memory(tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (lambda i: replace(i, teacher=i.base), ModelError, "the same model"),
        (lambda i: replace(i, teacher=None), DataError, "no teacher"),
        (lambda i: replace(i, data=replace(i.data, demonstrations=Splits())), DataError, "no demonstrations"),
        (lambda i: replace(i, data=replace(i.data, prompts=replace(i.data.prompts, train=[]))), DataError, "prompts"),
    ],
)
def test_missing_inputs_are_one_clear_error(
    inputs: StageInputs,
    tmp_path: Path,
    change: Callable[[StageInputs], StageInputs],
    error: type[Exception],
    what: str,
) -> None:
    with pytest.raises(error, match=what):
        distill.run(config(), change(inputs), Memory(tmp_path))
