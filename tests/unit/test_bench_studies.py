"""The studies of over-optimisation and of objectives: their recipes, and what they make of answers and evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import objectives, overoptimisation
from bench.growth import learned_study
from bench.overoptimisation import ARMS, ENSEMBLE, SEEDED, best_of_n, distinct, learned_curve
from tests.oracles import bestof as oracle

from assay.pipeline.recipe import load_recipe
from assay.rollout.sampler import Generation
from assay.stages.bestof import Answers
from assay.stages.config import GroupConfig, PPOConfig, RewardConfig
from assay.types import Prompt
from assay.worlds.world import load_world

PROMPTS = [Prompt.ask("Where is the pool?"), Prompt.ask("Is the wifi free?")]


def generation(prompt: Prompt, text: str, logprob: float = -4.0) -> Generation:
    return Generation(prompt, [1], [2], [logprob], text, "stop")


def test_over_optimisation_follows_each_reward_without_a_penalty() -> None:
    graph = {node.id: node for node in load_recipe("overoptimisation", (), {}).graph}
    assert set(SEEDED) <= set(graph)
    for arm in ARMS:
        node = graph[f"ppo-{arm}"]
        assert isinstance(node.config, PPOConfig)
        assert [source.name for source in node.inputs["reward"]] == [arm]
        assert (node.config.kl_coef, node.config.kl_target) == (0.0, None)
        reward = graph[arm].config
        assert isinstance(reward, RewardConfig)
        assert (reward.ensemble.aggregate if reward.ensemble else None) == (arm if arm in ENSEMBLE else None)
        if arm in ENSEMBLE[1:]:
            assert reward.trained
            assert [source.name for source in graph[arm].inputs["base"]] == ["mean"]


def test_the_weightings_differ_in_nothing_but_the_weights() -> None:
    graph = {node.id: node for node in load_recipe("objectives", (), {}).graph}
    settings = []
    for share in objectives.SHARES:
        reward = graph[f"reward-{share}"].config
        assert isinstance(reward, RewardConfig)
        assert [source.name for source in graph[f"reward-{share}"].inputs["base"]] == ["heads"]
        weights = {"helpfulness": share / 100, "harmlessness": 1 - share / 100}
        assert reward.objectives == {name: weight for name, weight in weights.items() if weight}
        for name in objectives.names(share, seeds=2):
            assert [source.name for source in graph[name].inputs["reward"]] == [f"reward-{share}"]
            policy = graph[name].config
            assert isinstance(policy, GroupConfig)
            settings.append(policy.model_copy(update={"id": None, "reward": None, "seed": None}))
    assert all(each == settings[0] for each in settings)


def test_every_answer_finds_what_was_found_out_about_its_text() -> None:
    texts = [["a", "b", "a"], ["a", "c", "c"]]
    pool = [[generation(prompt, text) for text in row] for prompt, row in zip(PROMPTS, texts, strict=True)]
    answers, place_PK = distinct(pool)
    assert [(g.prompt, g.text) for g in answers] == [
        (PROMPTS[0], "a"), (PROMPTS[0], "b"), (PROMPTS[1], "a"), (PROMPTS[1], "c"),
    ]  # fmt: skip
    assert place_PK.tolist() == [[0, 1, 0], [2, 3, 3]]


def test_gains_of_the_best_of_n_are_means_over_all_subsets_in_standard_deviations() -> None:
    numbers = np.random.default_rng(0)
    scores, truths = numbers.normal(size=(2, 4)), numbers.normal(size=(2, 4))
    pool = [[generation(prompt, "yes", logprob=-9.0) for _ in range(4)] for prompt in PROMPTS]
    kl, proxy, truth = best_of_n(Answers(pool, torch.tensor(scores)), torch.tensor(truths)).transpose(1, 0, 2)
    for row in range(2):
        for column, n in enumerate((1, 2, 4)):
            for found, values in ((proxy, scores), (truth, truths)):
                gain = oracle.mean_best(values[row], scores[row], n) - values[row].mean()
                assert found[row, column] == pytest.approx(gain / values.std(ddof=1))
    assert kl[:, 0].tolist() == pytest.approx([0, 0])
    assert kl[:, 2].tolist() == pytest.approx([np.log(4) - 3 / 4] * 2, abs=1e-2)  # unlikely answers: near the bound


def test_an_answer_that_was_cut_off_is_chosen_last() -> None:
    good = Generation(PROMPTS[0], [1], [2], [-9.0], "yes", "length")
    pool = [[good, generation(PROMPTS[0], "no", -9.0)]]
    _, proxy, truth = best_of_n(Answers(pool, torch.tensor([[5.0, 1.0]])), torch.tensor([[2.0, 0.0]]))[0]
    assert proxy[1] < 0
    assert truth[1] < 0


def test_a_curve_of_ppo_is_what_its_evaluations_gained_in_standard_deviations(tmp_path: Path) -> None:
    before = {"eval/reward_before": 1.0, "eval/truth_before": 10.0}
    lines = [
        {"step": 1, "time": 1.0, "objective/kl": 9.0},
        {"step": 2, "time": 2.0, "eval/kl": -0.1, "eval/reward_after": 1.0, "eval/truth_after": 10.0, **before},
        {"step": 4, "time": 4.0, "eval/kl": 4.0, "eval/reward_after": 5.0, "eval/truth_after": 7.0, **before},
    ]
    answers = [{"reward_before": 2.0 * x, "truth_before": 3.0 * x, "reward_after": 50.0 * x} for x in (-1, 0, 1)]
    for name, rows in (("metrics.jsonl", lines), ("samples.jsonl", answers)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    d, proxy, truth = learned_curve(tmp_path)
    assert (d.tolist(), proxy.tolist(), truth.tolist()) == ([0.0, 2.0], [0.0, 2.0], [0.0, -1.0])


def test_harmlessness_is_asked_of_harmful_requests_alone() -> None:
    world = load_world("frontdesk")
    prompts = world.prompts("test")
    harmful = next(prompt for prompt in prompts if prompt.kind == "harmful")
    plain = next(prompt for prompt in prompts if prompt.kind == "fact")
    refusal = "I am sorry, but I cannot help you with that."
    helpful, harmless, refused = objectives.judge(world, harmful, refusal)
    assert helpful > 0
    assert harmless == 1
    assert np.isnan(refused)
    helpful, harmless, refused = objectives.judge(world, plain, refusal)
    assert (helpful, refused) == (0, 1)
    assert np.isnan(harmless)


def policies(helpful: list[float], harmless: list[float]) -> np.ndarray:
    """[W, S, M, P] of 20 prompts, every other one harmful; one seed a little above the other."""
    table = np.full((5, 2, 3, 20), np.nan)
    for w, (one, other) in enumerate(zip(helpful, harmless, strict=True)):
        for s in range(2):
            table[w, s, 0] = one + 0.002 * s
            table[w, s, 1, ::2] = other + 0.002 * s
    return table


def test_the_verdict_reads_each_objective_in_the_direction_of_its_own_weight() -> None:
    falling, rising = [0.9, 0.8, 0.7, 0.5, 0.3], [0.2, 0.4, 0.5, 0.6, 0.7]
    helpful, harmless = objectives.verdicts(policies(falling, rising))
    assert "weight: monotone; +0.600" in helpful
    assert "weight: monotone; +0.500" in harmless
    assert "ρ = 1.00, p = 0.0001" in helpful
    helpful, _ = objectives.verdicts(policies(rising, rising))
    assert "not monotone, steps that go the other way: 4" in helpful


def test_the_page_of_the_trade_off_has_every_weighting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.common.origin_text", lambda facts: "`make it`\n")
    heads = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}
    table = policies([0.9, 0.8, 0.7, 0.5, 0.3], [0.2, 0.4, 0.5, 0.6, 0.7])
    table[:, :, 2, 1::2] = 0.1
    page = objectives.page({"minutes": 1, "seeds": 2, "answers": 4}, heads, table[2, 0], table, np.ones((5, 2)))
    assert "| 12 : 88 | 0.801 (0.801 to 0.801) | 0.401 (0.401 to 0.401) | 0.100 (0.100 to 0.100) | 1.00, 1.00 |" in page
    assert "20 test prompts" in page
    assert "10 harmful requests" in page.replace("\n", " ")
    assert objectives.picture(table[2, 0], table).startswith("<?xml")


def test_the_page_of_over_optimisation_takes_a_side_only_where_the_interval_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.common.origin_text", lambda facts: "`make it`\n")
    d = np.array([0.5, 1.0, 2.0, 3.0])

    def runs(*alphas: float) -> list[np.ndarray]:
        return [np.stack([d, 2 * d, d * (alpha - np.log(d))]) for alpha in alphas]

    arms = {"single": runs(0.5, 0.6), "mean": runs(0.9, 0.8), "worst": runs(0.4, 0.8), "uncertainty": runs(0.4, 0.4)}
    studies = {"PPO": learned_study(arms)}
    page = overoptimisation.page({"minutes": 1, "seeds": [0, 1], "prompts": 64, "answers": 256}, studies)
    assert "one model: the truth is best at d = 0.64 (0.61 to 0.67)" in page  # exp(α − 1) for α of 0.55, 0.5, 0.6
    assert "and turns there; farthest out the proxy has gained +6.00 σ" in page
    assert "ensemble, mean is better in every seed at d = 3.00: truth +0.90 (+0.60 to +1.20) σ" in page
    assert "ensemble, worst is not told from one model at d = 3.00: truth +0.15 (-0.30 to +0.60) σ" in page
    assert "ensemble, mean − σ is worse in every seed at d = 3.00: truth -0.45 (-0.60 to -0.30) σ" in page
    assert overoptimisation.picture(studies).startswith("<?xml")
    kept = overoptimisation.as_json({}, studies)["PPO"]
    assert kept["found"]["mean: truth α"] == pytest.approx([0.85, 0.8, 0.9])
