"""Methods without a critic: every preset learns, resumes bit for bit, and refuses choices that do not fit together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.unit.stages.test_stages_learning import answers
from tests.unit.stages.toy import Memory, run_in_two_parts, same, toy_data, weights

from assay.data.render import Row
from assay.rollout.collect import Experience, Rollouts
from assay.rollout.config import SamplingParams
from assay.stages import group, online, ppo
from assay.stages.config import GroupConfig, PPOConfig
from assay.stages.config.policy import METHODS
from assay.stages.context import StageInputs
from assay.stages.policy_step import importance_weighted
from assay.types import Prompt

SETTINGS = {
    "episodes": 960,
    "batch_size": 48,
    "group_size": 8,
    "minibatches": 2,
    "max_length": 32,
    "optim": {"learning_rate": 1e-3, "schedule": "constant"},
    "kl_coef": 0.1,
    "evaluate_every": 5,
    "checkpoint_every": 3,
    "sampling": SamplingParams(max_new_tokens=4),
}


def config_of(method: str, **changes: object) -> GroupConfig:
    alone = METHODS[method].get("group_size") == 1
    once = {"minibatches": 1} if METHODS[method].get("minibatches") == 1 else {}
    return GroupConfig.model_validate(
        {**SETTINGS, "method": method, **({"group_size": 1} if alone else {}), **once, **changes}
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_policy_to_the_preferred_answer(
    method: str, sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    # One whole-batch step an iteration, or a clip of 3e-4, moves less far: what they are given is a longer way.
    rate = 3e-3 if method in ("reinforce", "remax", "gspo") else 1e-3
    config = config_of(method, optim={"learning_rate": rate, "schedule": "constant"})
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    metrics = group.run(config, inputs, Memory(tmp_path))
    before, after = answers(sft_folder), answers(tmp_path)
    assert after["blue"] / after.total() > 0.6 > 0.33 > before["blue"] / before.total()
    assert metrics["first_ratio_error"] < 1e-5
    assert metrics["reward_after"] > metrics["reward_before"]


@pytest.mark.parametrize("method", ["grpo", "reinforce_pp", "dapo"])
def test_an_interrupted_group_method_ends_with_the_same_weights(
    method: str, sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    moving = {"kl_target": 1.0, "kl_horizon": 200} if method == "grpo" else {"kl_final": 0.01, "kl_coef": 0.1}
    config = config_of(method, episodes=240, inner_epochs=2, **moving)
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    group.run(config, inputs, Memory(tmp_path / "whole"))
    run_in_two_parts(group.run, config, inputs, Memory(tmp_path / "parts"), stop_at=3)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_policy_learns_and_resumes_from_int8_samples_and_says_how_far_they_are_from_it(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    inputs, memory = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder)), Memory(tmp_path / "whole")
    config = config_of(
        "grpo", episodes=240, optim={"learning_rate": 3e-3, "schedule": "constant"}, rollout_weights="int8"
    )
    metrics = group.run(config, inputs, memory)
    run_in_two_parts(group.run, config, inputs, Memory(tmp_path / "parts"), stop_at=3)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert metrics["reward_after"] > metrics["reward_before"]
    assert metrics["importance_cap"] == 2
    for row in memory.logged.values():
        assert 1e-8 < row["val/sampler_kl"] < 1e-2
        assert row["val/sampler_kl"] < row["val/sampler_log_ratio"] < 0.5
        assert row["policy/ratio_first_error"] < 1e-5  # the old policy is the trained one, not its copy


def test_old_logprobs_are_the_samplers_while_the_two_agree_which_every_evaluation_tries_again(
    sft_folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    config = config_of("grpo", episodes=240, evaluate_every=2)
    compared: dict[str, list[int]] = {}
    for name, tolerance in (("agrees", online.EXACT), ("differs", 0.0)):
        monkeypatch.setattr(online, "EXACT", tolerance)
        memory = Memory(tmp_path / name)
        metrics = group.run(config, inputs, memory)
        assert 0 < metrics["sampler_error"] < 1e-5
        assert metrics["kl_z_min"] > -1  # rounding of one sign is no negative KL
        compared[name] = [step for step, row in memory.logged.items() if "val/sampler_error" in row]
    assert compared == {"agrees": [2, 4], "differs": [1, 2, 3, 4, 5]}
    few, many = weights(tmp_path / "agrees"), weights(tmp_path / "differs")
    assert not same(few, many)  # rounding
    for name, tensor in few.items():
        torch.testing.assert_close(tensor, many[name], rtol=1e-3, atol=1e-4)


def test_evaluations_are_of_the_policy_itself_and_not_of_its_int8_copy(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    """Before any update both runs evaluate the same SFT model; what they learn from differs."""
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    reports = []
    for source in ("trained", "int8"):
        config = config_of("grpo", episodes=48, rollout_weights=source)
        reports.append(group.run(config, inputs, Memory(tmp_path / source)))
    assert reports[0]["reward_before"] == reports[1]["reward_before"]
    assert reports[0]["sampler_kl"] < 1e-9 < 1e-7 < reports[1]["sampler_kl"]


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_loss": "k2", "entropy_coef": 0.01, "importance_cap": 2.0},
        {"kl_loss": "k3", "surrogate": "penalty", "penalty_coef": 2.0},
        {"surrogate": "clip", "dual_clip": 3.0, "clip_high": 0.3, "aggregation": "constant"},
        {"ratio": "sequence", "aggregation": "sequence_mean", "kl_loss": "k2"},
    ],
)
def test_micro_batches_change_no_update(
    changes: dict[str, object], sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    """One iteration: rounding in a later one would grow through the samples."""
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    ends = []
    for size in (None, 5):
        given = {key: value for key, value in SETTINGS.items() if key != "group_size"} | changes
        config = PPOConfig.model_validate(
            {**given, "episodes": 48, "value_warmup": 0, "inner_epochs": 2, "micro_batch_size": size}
        )
        ppo.run(config, inputs, Memory(tmp_path / str(size)))
        ends.append(weights(tmp_path / str(size)))
    start = weights(sft_folder)
    moved = max((ends[0][name] - start[name]).abs().max().item() for name in start)
    apart = max((ends[0][name] - ends[1][name]).abs().max().item() for name in start)
    assert apart < 0.02 * moved


def test_ppo_stops_its_inner_epochs_once_the_policy_has_gone_too_far(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    given = {key: value for key, value in SETTINGS.items() if key != "group_size"}
    updates = {}
    for limit in (None, 1e-9):
        memory = Memory(tmp_path / str(limit))
        config = {**given, "episodes": 96, "value_warmup": 0, "inner_epochs": 4, "kl_stop": limit}
        ppo.run(PPOConfig.model_validate(config), inputs, memory)
        updates[limit] = [row["policy/updates"] for row in memory.logged.values()]
    assert updates == {None: [8.0, 8.0], 1e-9: [2.0, 2.0]}


def test_patience_ends_a_run_that_no_longer_improves_and_the_best_policy_is_kept(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    """A β so large that any step away from the reference is a loss: the first evaluation stays the best."""
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    memory = Memory(tmp_path)
    config = config_of("grpo", episodes=960, evaluate_every=1, patience=2, kl_coef=0.0, entropy_coef=50.0)
    metrics = group.run(config, inputs, memory)
    gains = [
        (row["eval/reward_after"] - row["eval/reward_before"]) / metrics["reward_std"] for row in memory.logged.values()
    ]
    best = max(range(len(gains)), key=gains.__getitem__) + 1
    assert len(gains) == best + 2 < 20
    assert metrics["best_iteration"] == best


def test_a_run_killed_after_patience_ran_out_does_not_go_on(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    """The last checkpoint is of the iteration that ended the run; started again, there is only the report to make."""
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    memory = Memory(tmp_path / "once")
    config = config_of("grpo", evaluate_every=1, checkpoint_every=1, patience=2, kl_coef=0.0, entropy_coef=50.0)
    once = group.run(config, inputs, memory)
    iterations = len(memory.logged)
    assert memory.saved is not None
    assert memory.saved[0] == iterations < config.iterations
    memory.folder = tmp_path / "again"
    again = group.run(config, inputs, memory)
    assert len(memory.logged) == iterations
    assert same(weights(tmp_path / "once"), weights(tmp_path / "again"))
    assert once == again


def test_answers_that_were_set_aside_count_as_samples(sft_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    """Scores that are never equal set nothing aside; ReMax samples a greedy answer to every prompt besides."""
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    plain = group.run(config_of("grpo", episodes=96), inputs, Memory(tmp_path / "grpo"))
    greedy = group.run(config_of("remax", episodes=96), inputs, Memory(tmp_path / "remax"))
    assert plain["samples"] == plain["episodes"] == greedy["episodes"] == 96
    assert greedy["samples"] == 96 + 2 * 6  # six prompts in every batch


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "gspo", "importance_cap": 2.0}, "importance_cap weighs tokens"),
        (
            {"rollout_weights": "int8", "importance_cap": None},
            "rollout_weights: int8 needs importance_cap, which is off",
        ),
        (
            {"rollout_weights": "int8", "method": "gspo"},
            "rollout_weights: int8 needs importance_cap, which weighs tokens",
        ),
        ({"rollout_weights": "int8", "method": "rloo"}, "ratio: trajectory is one number a response"),
        ({"rollout_weights": "int8", "surrogate": "penalty"}, "surrogate: penalty has a term without one"),
        ({"rollout_weights": "int4"}, "int8"),
        ({"group_size": 1}, "nothing to compare with"),
        ({"method": "rloo", "group_size": 1}, "nothing to compare with"),
        ({"batch_size": 50}, "not a multiple of group_size"),
        ({"method": "rloo", "aggregation": "token_mean"}, "needs aggregation: sequence_mean"),
        ({"method": "gspo", "surrogate": "cispo"}, "weighs tokens"),
        ({"method": "cispo", "dual_clip": 3.0}, "surrogate: cispo has none"),
        ({"method": "grpo", "credit": "token"}, "kl_loss puts it into the loss"),
        ({"method": "rloo", "scale": "group"}, "would bias it"),
        ({"kl_target": 3.0, "kl_final": 0.0}, "keep one of them"),
        ({"sampling": {"top_p": 0.9}}, "trained on the distribution it samples"),
        ({"method": "grpoo"}, "grpo"),
    ],
)
def test_choices_that_do_not_fit_together_are_refused_before_anything_is_loaded(
    changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        GroupConfig.model_validate({**SETTINGS, "method": "grpo", **changes})


def test_int8_samples_are_weighed_unless_another_cap_is_set() -> None:
    assert config_of("grpo").importance_cap is None
    assert config_of("grpo", rollout_weights="int8").importance_cap == 2.0
    assert config_of("grpo", rollout_weights="int8", importance_cap=5.0).importance_cap == 5.0
    assert PPOConfig.model_validate({"rollout_weights": "int8"}).importance_cap == 2.0


def test_a_method_fills_in_what_is_not_set_and_nothing_else() -> None:
    config = GroupConfig.model_validate({"method": "dapo", "clip_high": 0.5})
    assert (config.clip_high, config.aggregation, config.kl_coef) == (0.5, "token_mean", 0.0)
    assert GroupConfig.model_validate(config.model_dump(mode="json")) == config


def test_groups_without_a_signal_make_room_for_new_prompts() -> None:
    """A batch of two groups; in the first round the scores of the second are all alike: one more prompt is asked."""
    asked: list[list[str]] = []

    class Scripted:
        def prompts(self, iteration: int, count: int) -> list[Prompt]:
            return [Prompt.ask(f"{iteration}-{n}") for n in range(count)]

        def sample(self, prompts: list[Prompt], *purpose: object) -> Rollouts:
            asked.append([prompt.text for prompt in prompts])
            alike = [prompt.text == "0-1" for prompt in prompts]
            scores = torch.tensor([0.5 if same else float(i % 2) for i, same in enumerate(alike)])
            wide = torch.ones(len(prompts), len(asked))
            ended = torch.ones(len(prompts), dtype=torch.bool)
            rows = [Row([0] * (1 + len(asked)), 1) for _ in prompts]
            texts = [prompt.text for prompt in prompts]
            return Rollouts(
                prompts, rows, texts, [""] * len(texts), wide > 0, wide, wide, scores, ended, ~ended, ~ended
            )

        def scores(self, rollouts: Rollouts) -> torch.Tensor:
            return rollouts.scores_B

    config = config_of("dapo", batch_size=4, group_size=2, resample=1)
    rollouts = group.sample_groups(Scripted(), 0, config)  # type: ignore[arg-type]
    assert asked == [["0-0", "0-0", "0-1", "0-1"], ["1-0", "1-0"]]
    assert rollouts.texts == ["0-0", "0-0", "1-0", "1-0"]
    assert rollouts.mask_BR.tolist() == [[True, False], [True, False], [True, True], [True, True]]
    assert rollouts.scores_B.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_the_table_of_methods_in_the_documents_is_what_the_presets_choose() -> None:
    """Row by row: baseline, scale, ratio, surrogate and aggregation, and where the KL is."""
    text = (Path(__file__).parents[3] / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    told = {row[0]: row for row in rows if row[0] in METHODS}
    assert set(told) == set(METHODS)
    for method, row in told.items():
        config = config_of(method)
        choices = [config.baseline, config.scale, config.ratio, config.surrogate, config.aggregation]
        assert [cell.split(",")[0] for cell in row[1:6]] == choices
        place = "none" if GroupConfig(method=method).kl_coef == 0 else "loss" if config.kl_loss else "reward"  # type: ignore[arg-type]
        assert row[6].split(",")[0] == place


def test_remax_takes_the_greedy_score_away() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    found = group.token_advantages(
        torch.tensor([2.0, 0.5]), torch.tensor([0.5, 1.5]), torch.zeros(2, 2), mask, config_of("remax"), coef=0.0
    )
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.5], [-1.0, 0.0]]))


def test_every_optimizer_step_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules count optimizer steps, over epochs and minibatches, from where the last iteration ended."""
    rows, tokens = [Row([n, 1, 2], 1) for n in range(4)], torch.zeros(4, 2)
    experience = Experience(rows, tokens == 0, *[tokens] * 6)
    monkeypatch.setattr(group, "policy_step", lambda *_: {"policy/ratio_error": 0.0, "policy/approxkl_avg": 0.0})
    numbers: list[int] = []
    optimizer: Any = SimpleNamespace(update=lambda number: numbers.append(number) or {})
    context: Any = SimpleNamespace(seed=0)
    config = config_of("grpo", inner_epochs=3, minibatches=2)
    for iteration in range(2):
        policy: Any = None
        group.update(experience, policy, optimizer, iteration, 0.1, config, context)
    assert numbers == list(range(12))


def test_truncated_importance_weights_multiply_the_advantages_and_with_them_the_surrogate_alone() -> None:
    mask = torch.tensor([[True, True, False]])
    old, sampled = torch.log(torch.tensor([[0.4, 0.1, 0.5]])), torch.log(torch.tensor([[0.1, 0.2, 0.1]]))
    rollouts: Any = SimpleNamespace(mask_BR=mask, logprobs_BR=sampled)
    advantages, config = torch.tensor([[1.0, -2.0, 0.0]]), config_of("grpo", importance_cap=3.0)
    weighted = importance_weighted(advantages, rollouts, old, config)
    torch.testing.assert_close(weighted, torch.tensor([[3.0, -1.0, 0.0]]))  # 4 is capped at 3; ½ stays
