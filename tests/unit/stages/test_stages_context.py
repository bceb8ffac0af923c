"""Rows that do not fit the model, and scores that survive reloading: what a stage does at its edges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.stages.toy import COLOURS, QUESTIONS, Memory, same, toy_data, weights
from transformers import AutoModelForSequenceClassification

from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer
from assay.models.config import LoraConfig
from assay.models.roles import load_policy, load_reward_model
from assay.rewards.learned import LearnedReward
from assay.rollout.engine import Engine
from assay.stages import ppo, reward, sft
from assay.stages.config import OptimConfig, PPOConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Preference, Prompt

CONTEXT = 32  # positions of the toy model
LONG = tuple(Prompt.ask("fire and grass and " * 30 + question.text) for question in QUESTIONS)
LORA = LoraConfig(r=2, alpha=4, target_modules=("q_proj", "v_proj"))


def long_data() -> Prepared:
    """The toy task, every question after a preamble of three times the context."""
    demonstrations = [Demonstration(prompt, colour) for prompt in LONG for colour in COLOURS]
    pairs = [Preference(prompt, "blue", other) for prompt in LONG for other in ("red", "green", "amber")]
    prompts = list(LONG)
    return Prepared(
        demonstrations=Splits(demonstrations, demonstrations, demonstrations),
        preferences=Splits(pairs, pairs, pairs),
        prompts=Splits(prompts, prompts, prompts),
    )


def train(kind: str, max_length: int, folder: Path, base: Path, rewarder: Path) -> dict[str, Any]:
    """One short run of a stage on the long data."""
    folder.mkdir(exist_ok=True)
    optim = OptimConfig(learning_rate=1e-3)
    if kind == "sft":
        config: Any = SFTConfig(epochs=1, batch_size=12, max_length=max_length, optim=optim)
        return sft.run(config, StageInputs(long_data(), str(base)), Memory(folder))
    if kind == "reward":
        config = RewardConfig(epochs=1, batch_size=9, max_length=max_length, optim=optim)
        return reward.run(config, StageInputs(long_data(), str(base)), Memory(folder))
    config = PPOConfig.model_validate(
        {
            "episodes": 24,
            "batch_size": 12,
            "inner_epochs": 1,
            "max_length": max_length,
            "optim": optim,
            "value_warmup": 0,
            "sampling": {"max_new_tokens": 4},
            "lora": LORA,
        }
    )
    return ppo.run(config, StageInputs(long_data(), str(base), reward=str(rewarder)), Memory(folder))


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_a_max_length_beyond_the_models_context_is_its_context(
    kind: str, sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    measured = [
        train(kind, length, tmp_path / str(length), sft_folder, reward_folder) for length in (CONTEXT, 10 * CONTEXT)
    ]
    assert same(weights(tmp_path / str(CONTEXT)), weights(tmp_path / str(10 * CONTEXT)))
    inside, beyond = ({k: v for k, v in one.items() if k != "episodes_per_s"} for one in measured)
    assert inside == beyond


def test_long_prompts_lose_their_beginning_and_no_pair_is_dropped(sft_folder: Path, tmp_path: Path) -> None:
    measured = train("reward", CONTEXT, tmp_path, sft_folder, sft_folder)
    assert (measured["pairs"], measured["dropped"]) == (3 * len(LONG), 0)
    model = load_reward_model(tmp_path, trainable=False)
    row = model.row(LONG[0], "blue")
    assert row is not None
    assert len(row.ids) == CONTEXT
    assert model.tokenizer.decode(row.ids[: row.prompt_length]).count(QUESTIONS[0].text) == 1
    short = model.row(QUESTIONS[0], "blue")
    assert short is not None
    answer = row.ids[row.prompt_length :]
    assert answer == short.ids[short.prompt_length :]


def test_pairs_without_an_answer_are_dropped_and_counted(sft_folder: Path, tmp_path: Path) -> None:
    data = long_data()
    blank = [Preference(prompt, "blue", "   ") for prompt in QUESTIONS]
    data = dataclasses.replace(data, preferences=dataclasses.replace(data.preferences, train=blank + toy_pairs()))
    config = RewardConfig(epochs=1, batch_size=10, max_length=CONTEXT)
    measured = reward.run(config, StageInputs(data, str(sft_folder)), Memory(tmp_path))
    assert (measured["pairs"], measured["dropped"]) == (len(toy_pairs()), len(blank))


def toy_pairs() -> list[Preference]:
    return list(toy_data().preferences.validation)


def test_ppo_answers_prompts_that_are_longer_than_the_context(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    ctx = Memory(tmp_path)
    inputs = StageInputs(long_data(), str(sft_folder), reward=str(reward_folder))
    config = PPOConfig.model_validate(
        {"episodes": 12, "batch_size": 12, "inner_epochs": 1, "max_length": CONTEXT, "sampling": {"max_new_tokens": 4}}
    )
    measured = ppo.run(config, inputs, ctx)
    assert (measured["episodes"], measured["prompts_cut"]) == (12, len(LONG))
    assert ctx.logged[1]["lengths/prompts_cut"] == 1
    assert [row["prompt"] for row in ctx.texts] == [prompt.text for prompt in LONG]  # all of them, in full

    policy = load_policy(sft_folder, trainable=False)
    unbounded = Renderer(policy.tokenizer, max_length=10_000)
    engine = Engine(policy, policy.renderer("chat", CONTEXT), max_batch=8)
    *cut, short = engine.generate([*LONG, QUESTIONS[0]], config.sampling, seeds=range(len(LONG) + 1))
    assert (short.cut, short.completion.cut) == (False, False)
    assert short.prompt_ids == unbounded.prompt(QUESTIONS[0])
    for generation in cut:
        assert generation.cut
        kept, whole = generation.prompt_ids, unbounded.prompt(generation.prompt)
        assert len(kept) == CONTEXT - 4 < len(whole)
        assert kept[0] == whole[0]
        assert kept[-20:] == whole[-20:]


def test_calibration_leaves_the_ranking_as_it_was_and_is_part_of_the_saved_model(
    sft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 12: gain and bias are saved with the model, in plain transformers too."""
    config = RewardConfig(epochs=2, batch_size=10, max_length=CONTEXT, optim=OptimConfig(learning_rate=3e-3))
    inputs = StageInputs(toy_data(), str(sft_folder))
    calibrated, raw_folder = tmp_path / "calibrated", tmp_path / "raw"
    calibrated.mkdir()
    raw_folder.mkdir()
    reward.run(config, inputs, Memory(calibrated))
    with monkeypatch.context() as patch:
        patch.setattr("assay.models.reward_model.preference_gain", lambda *given: 1.0)
        reward.run(config, inputs, Memory(raw_folder))

    pairs = toy_data().preferences.validation
    prompts = [pair.prompt for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    model = load_reward_model(calibrated, trainable=False)
    raw = np.array(load_reward_model(raw_folder, trainable=False).score_texts(prompts, answers))
    scores = np.array(model.score_texts(prompts, answers))
    gain = np.ptp(scores) / np.ptp(raw)
    assert gain > 0
    assert gain != pytest.approx(1, abs=1e-3)
    assert scores - scores.mean() == pytest.approx(gain * (raw - raw.mean()), abs=1e-4 * np.ptp(scores))
    centred = LearnedReward(model, batch_size=16)(prompts, answers, ["stop" for _ in answers])
    assert np.mean(centred) == pytest.approx(0, abs=1e-4)

    row = model.row(prompts[0], answers[0])
    assert row is not None
    plain = AutoModelForSequenceClassification.from_pretrained(calibrated)
    with torch.no_grad():
        assert plain(input_ids=torch.tensor([row.ids])).logits.item() == pytest.approx(scores[0], abs=1e-4)
