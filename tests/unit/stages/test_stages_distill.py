"""Distillation: the student comes to speak as its teacher does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.oracles import divergences
from tests.unit.stages.test_stages_learning import LORA, SAMPLING, answers
from tests.unit.stages.toy import QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights
from transformers import AutoModelForCausalLM

from assay.algorithms.distill_loss import reverse_kl
from assay.data.pack import collate
from assay.data.prepared import Prepared, Splits
from assay.data.render import Row
from assay.errors import DataError, ModelError
from assay.models.roles import Policy, load_policy
from assay.rollout import collect
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.stages import distill, sft
from assay.stages.config import DistillConfig, OptimConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Prompt


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


@pytest.mark.parametrize(
    ("changes", "of_token"),
    [
        ({"divergence": "forward", "temperature": 2.0}, divergences.forward),
        ({"divergence": "reverse"}, divergences.reverse),
        ({"divergence": "jsd", "beta": 0.3}, partial(divergences.jensen_shannon, beta=0.3)),
    ],
    ids=["forward", "reverse", "jsd"],
)
def test_the_loss_is_the_mean_divergence_of_all_response_tokens(
    sft_folder: Path, teacher: Path, changes: dict[str, Any], of_token: Callable[[list[float], list[float]], float]
) -> None:
    settings = config(micro_batch_size=1, **changes)
    student, other = load_policy(sft_folder), load_policy(teacher, trainable=False)
    rows = responses(student)
    loss = distill.imitate_teacher(student, other, rows, distill.divergence_of(settings), settings, "cpu")
    tokens = [token for row in per_token(sft_folder, teacher, rows, of_token, settings.temperature) for token in row]
    assert loss == pytest.approx(sum(tokens) / len(tokens), rel=1e-4)


def test_the_kl_to_the_teacher_is_that_of_whole_answers(sft_folder: Path, teacher: Path) -> None:
    student, other = load_policy(sft_folder), load_policy(teacher, trainable=False)
    rows = responses(student)
    answers = [
        Generation(QUESTIONS[0], row.ids[: row.prompt_length], row.ids[row.prompt_length :], [], "", "stop")
        for row in rows
    ]
    by_row = per_token(sft_folder, teacher, rows, divergences.reverse)
    expected = sum(sum(row) for row in by_row) / len(rows)
    assert distill.teacher_kl(student, other, answers, 1) == pytest.approx(expected, rel=1e-4)


def responses(student: Policy) -> list[Row]:
    """A short one and a long one."""
    renderer = student.renderer("chat", 32)
    rows = [renderer.row(QUESTIONS[0], "blue"), renderer.row(QUESTIONS[1], "red and blue and green")]
    return [row for row in rows if row]


def per_token(
    student: Path,
    teacher: Path,
    rows: list[Row],
    of_token: Callable[[list[float], list[float]], float],
    temperature: float = 1.0,
) -> list[list[float]]:
    """The divergence at each response token from plain transformers and plain floats, a row at a time."""
    found = []
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (student, teacher)]
    for row in rows:
        with torch.no_grad():
            logits = [model(torch.tensor([row.ids])).logits[0].tolist() for model in models]
        places = range(row.prompt_length - 1, len(row.ids) - 1)
        softmax = [[divergences.softmax(side[t], temperature) for t in places] for side in logits]
        found.append([of_token(own, others) for own, others in zip(*softmax, strict=True)])
    return found


def test_student_and_teacher_each_speak_their_share_and_say_something_new_at_each_step(
    inputs: StageInputs, sft_folder: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[tuple[str, int]] = []
    seeds: set[int] = set()
    sample = collect.sample

    def watched(engine: Engine, prompts: Sequence[Prompt], params: Any, seed: int) -> list[Generation]:
        spoken.append((engine.policy.source, len(prompts)))
        seeds.add(seed)
        return sample(engine, prompts, params, seed)

    monkeypatch.setattr(collect, "sample", watched)
    distill.run(config(sequences=48, on_policy=0.25, off_policy="teacher"), inputs, Memory(tmp_path))
    assert spoken[1:-1] == [(str(sft_folder), 4), (str(teacher), 12)] * 3
    assert len(seeds) == 1 + 2 * 3  # the evaluations before and after share theirs


def test_every_demonstration_is_learned_from_once_before_one_comes_again(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[int, ...]] = []

    def imitate(student: Policy, teacher: Policy, rows: list[Row], *_: object) -> float:
        learned.extend(tuple(row.ids) for row in rows)
        return 0.0

    monkeypatch.setattr(distill, "imitate_teacher", imitate)
    count = len(inputs.data.demonstrations.train)
    distill.run(config(sequences=count, on_policy=0.0), inputs, Memory(tmp_path))
    renderer = load_policy(inputs.base, trainable=False).renderer("chat", 32)
    rows = [renderer.row(d.prompt, d.response) for d in inputs.data.demonstrations.train]
    assert Counter(learned) == Counter(tuple(row.ids) for row in rows if row)


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
