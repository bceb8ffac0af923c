"""Best-of-n as a policy, and rounds of imitating it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.stages.test_stages_learning import LORA, SAMPLING, answers
from tests.unit.stages.toy import QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights
from transformers import AutoModelForCausalLM

from assay.algorithms.bestof import kl_bound
from assay.data.prepared import Prepared, Splits
from assay.errors import DataError, TrainingError
from assay.pipeline.evaluators import Evaluators
from assay.pipeline.graph import link
from assay.pipeline.plan import optimizer_steps
from assay.rollout import collect
from assay.rollout.sampler import Generation
from assay.stages import bestof
from assay.stages.bestof import Answers, powers_of_two
from assay.stages.config import BestOfConfig, EvaluateConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Completion, FinishReason, Prompt


def config(**changes: object) -> BestOfConfig:
    return BestOfConfig.model_validate(
        {
            "answers": 8,
            "prompts": 24,
            "batch_size": 12,
            "max_length": 32,
            "optim": {"learning_rate": 3e-3, "schedule": "constant"},
            "sampling": SAMPLING,
            **changes,
        }
    )


@pytest.fixture
def inputs(sft_folder: Path, reward_folder: Path) -> StageInputs:
    def truth(prompts: object, responses: object) -> list[float]:
        assert isinstance(responses, list)
        return [float(response == "blue") for response in responses]

    data = toy_data()
    test = replace(data.prompts, test=[*data.prompts.test] * 20)
    return StageInputs(replace(data, prompts=test), str(sft_folder), reward=str(reward_folder), truth=truth)


def test_the_best_of_more_answers_is_better_and_as_far_from_the_policy_as_theory_says(
    inputs: StageInputs, tmp_path: Path
) -> None:
    """Four answers of about equal probability: of n answers one is blue, the best, with probability 1 − (3/4)^n."""
    ctx = Memory(tmp_path)
    answered: list[list[Prompt]] = []

    def evaluate(before: list[Completion], after: list[Completion]) -> dict[str, Any]:
        answered.extend([completion.prompt for completion in side] for side in (before, after))
        return {}

    inputs = replace(inputs, mean=Evaluators(Prepared(), 0).mean, evaluate_policy=evaluate)
    metrics = bestof.run(config(answers=16), inputs, ctx)
    assert answered == [inputs.data.prompts.test] * 10  # before and after, five times: each answer at its prompt
    for n in (1, 2, 4, 8, 16):
        assert metrics[f"best_of_{n}/truth"] == pytest.approx(1 - 0.75**n, abs=0.12)
        assert metrics[f"best_of_{n}/kl_bound"] == pytest.approx(kl_bound(n))
        assert -1e-6 <= metrics[f"best_of_{n}/kl"] <= kl_bound(n) + 1e-6
        for name in ("reward", "truth", "kl"):
            low, value, high = (metrics[f"best_of_{n}/{name}{end}"] for end in ("_low", "", "_high"))
            assert low < value < high or (n == 1 and name == "kl" and low == value == high)
    rewards = [metrics[f"best_of_{n}/reward"] for n in (1, 2, 4, 8, 16)]
    assert rewards == sorted(rewards)
    # The best is one answer in four or so: its KL is log 4, far below the bound of 1.84.
    assert metrics["kl"] == metrics["best_of_16/kl"] == pytest.approx(math.log(4), abs=0.25)
    assert len(ctx.texts) == len(inputs.data.prompts.test)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    # So small a base has hardly any features for an adapter to turn: full training is held to more.
    ("lora", "rate", "rounds", "least"),
    [(None, 3e-3, 4, 0.7), (LORA, 1e-2, 8, 0.36)],
    ids=["full", "lora"],
)
def test_rounds_move_the_policy_to_the_preferred_answer(
    inputs: StageInputs, sft_folder: Path, tmp_path: Path, lora: object, rate: float, rounds: int, least: float
) -> None:
    ctx = Memory(tmp_path)
    metrics = bestof.run(config(rounds=rounds, lora=lora, optim={"learning_rate": rate}), inputs, ctx)
    before, after = answers(sft_folder), answers(tmp_path)
    assert before["blue"] / before.total() < 0.33
    assert after["blue"] / after.total() > least
    assert metrics["reward_after"] > metrics["reward_before"]
    assert metrics["kl"] > 0
    assert metrics["episodes"] == rounds * 24 * 8
    assert all(measured["objective/kept"] == 1 for measured in ctx.logged.values())  # of eight some are whole
    scores = [ctx.logged[done]["objective/score"] for done in (1, rounds)]
    assert scores[0] < scores[1] < ctx.logged[rounds]["objective/best_score"]
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_best_is_whole_if_any_is_and_brings_its_own_score() -> None:
    said: list[tuple[str, FinishReason, float]] = [
        ("", "stop", 9.0),
        ("cut off", "length", 8.0),
        ("good", "stop", 1.0),
        ("better", "stop", 2.0),
    ]
    row = [Generation(QUESTIONS[0], [1], [2, 3], [-0.5, -1.0], text, finish) for text, finish, _ in said]
    answers = Answers([row, row[::-1]], torch.tensor([[9.0, 8.0, 1.0, 2.0], [2.0, 1.0, 8.0, 9.0]]))
    found = [(best.texts, best.scores_B.tolist()) for best in (answers.best(4), answers.best(3))]
    assert found == [(["better", "better"], [2.0, 2.0]), (["good", "better"], [1.0, 2.0])]
    assert answers.logprobs_PK.tolist() == [[-1.5] * 4] * 2


def test_what_the_best_of_two_is_worth_and_its_kl_where_the_better_answer_is_the_rarer_one(tmp_path: Path) -> None:
    """Good once in four; the best of two is good with 1 − (3/4)² = 7/16, and people want it bad."""
    good, bad = (Generation(QUESTIONS[0], [1], [2], [math.log(p)], f"{p}", "stop") for p in (0.25, 0.75))

    def sample(prompts: Sequence[Prompt], count: int, *purpose: object) -> Answers:
        row = [bad if number % 4 else good for number in range(count)]
        return Answers([row], torch.tensor([[float(answer is good) for answer in row]]))

    data = replace(Prepared(), prompts=Splits([], [], list(QUESTIONS[:1])))
    inputs = StageInputs(data, "", reward="r", truth=lambda prompts, texts: [float(text == "0.75") for text in texts])
    report = bestof.measure(sample, config(answers=400), inputs, Memory(tmp_path))
    share = 7 / 16
    kl = share * math.log(share / 0.25) + (1 - share) * math.log((1 - share) / 0.75)
    assert report["best_of_2/reward"] == pytest.approx(share, abs=2e-3)
    assert report["best_of_2/truth"] == pytest.approx(1 - share, abs=2e-3)
    assert report["best_of_2/kl"] == pytest.approx(kl, abs=2e-3)  # of the worse answers it would be 0.123


def test_every_round_has_its_own_prompts_noise_and_rates(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[Prompt, ...], int]] = []
    sample = collect.sample

    def watched(engine: Any, prompts: Sequence[Prompt], params: Any, seed: int) -> list[Generation]:
        if len(prompts) == 24 * 8:  # not those of an evaluation
            asked.append((tuple(prompts), seed))
        return sample(engine, prompts, params, seed)

    monkeypatch.setattr(collect, "sample", watched)
    ctx = Memory(tmp_path)
    optim = {"learning_rate": 1e-3, "schedule": "linear", "warmup": 0.0}
    bestof.run(config(rounds=3, optim=optim), inputs, ctx)
    assert len({prompts for prompts, _ in asked}) == len({seed for _, seed in asked}) == 3
    rates = [ctx.logged[done]["train/learning_rate"] for done in (1, 2, 3)]
    assert rates == pytest.approx([5e-3 / 6, 3e-3 / 6, 1e-3 / 6])  # the second of two steps in each round


def test_an_interrupted_stage_ends_with_the_same_weights(inputs: StageInputs, tmp_path: Path) -> None:
    short = config(rounds=3)
    whole = bestof.run(short, inputs, Memory(tmp_path / "whole"))
    parts = run_in_two_parts(bestof.run, short, inputs, Memory(tmp_path / "parts"), stop_at=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert whole == parts


def test_how_a_batch_is_split_changes_nothing(inputs: StageInputs, tmp_path: Path) -> None:
    def train(size: int | None, name: str) -> Path:
        bestof.run(config(rounds=1, micro_batch_size=size), inputs, Memory(tmp_path / name))
        return tmp_path / name

    whole, parts = weights(train(None, "whole")), weights(train(5, "parts"))
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 3e-5


def test_answers_that_never_end_are_not_imitated(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no answer of round 1 ended within 1 tokens"):
        bestof.run(config(rounds=1, sampling={"max_new_tokens": 1}), inputs, Memory(tmp_path))


def test_without_a_reward_model_there_is_one_clear_error(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bestof has no reward model"):
        bestof.run(config(), replace(inputs, reward=None), Memory(tmp_path))


@pytest.mark.parametrize(("largest", "ns"), [(2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_n_doubles_up_to_the_largest(largest: int, ns: list[int]) -> None:
    assert powers_of_two(largest) == ns


@pytest.mark.parametrize("bad", [{"answers": 1}, {"sampling": {"temperature": 0}}, {"sampling": {"top_p": 0.9}}])
def test_what_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"answers|sampling"):
        config(**bad)


def test_only_with_rounds_is_there_a_model_that_a_later_stage_can_read() -> None:
    def faults(policies: tuple[str, ...], **changes: object) -> tuple[tuple[str, ...], list[str]]:
        stages = [SFTConfig(), RewardConfig(), config(**changes), EvaluateConfig(policies=policies)]
        nodes, found = link("embedded", stages)
        return tuple(source.name for source in nodes[-1].inputs["policies"]), [fault.what for fault in found]

    assert faults((), rounds=1) == (("sft", "bestof"), [])
    assert faults(()) == (("sft",), [])
    assert '"bestof" is a stage of kind bestof without a model' in faults(("bestof",))[1][0]


def test_a_dry_run_counts_the_steps_of_every_round() -> None:
    assert optimizer_steps(config(), toy_data()) == 0
    assert optimizer_steps(config(rounds=3, epochs=2, prompts=25), toy_data()) == 3 * 2 * 3
