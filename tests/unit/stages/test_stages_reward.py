"""The reward stage with rankings, objectives, ensembles and judged steps: each learns its toy task in seconds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.oracles import losses, rewards
from tests.unit.stages.toy import COLOURS, QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights

from assay.data.items import as_preferences
from assay.data.prepared import Prepared, Splits
from assay.errors import ConfigError, DataError
from assay.models.calibration import preference_gain
from assay.models.readout import Readout
from assay.models.roles import RewardModel, load_reward_model
from assay.stages import judged_steps, reward, reward_report
from assay.stages.comparisons import Comparisons, bootstrap, comparisons_of, ranked_scores, to_learn
from assay.stages.config import RewardConfig
from assay.stages.context import StageInputs
from assay.types import JudgedSteps, Preference, Ranking

LORA = {"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}


def config(**changes: object) -> RewardConfig:
    plain = {"epochs": 6, "batch_size": 10, "max_length": 32, "optim": {"learning_rate": 3e-3}}
    return RewardConfig.model_validate({**plain, **changes})


def learn(start: Path, folder: Path, data: Prepared, **changes: object) -> tuple[RewardModel, dict[str, Any]]:
    """The stage's model, as its folder gives it, and its metrics."""
    metrics = reward.run(config(**changes), StageInputs(data, str(start)), Memory(folder))
    return load_reward_model(folder, trainable=False, max_length=32), metrics


def colours(model: RewardModel) -> dict[str, list[float]]:
    """Scores of every colour, question by question."""
    return {colour: model.score_texts(QUESTIONS, [colour] * len(QUESTIONS)) for colour in COLOURS}


def ordered(model: RewardModel, *best_first: str) -> bool:
    scores = colours(model)
    steps = [zip(scores[good], scores[bad], strict=True) for good, bad in itertools.pairwise(best_first)]
    return all(a > b for step in steps for a, b in step)


def of_pairs(pairs: list[Preference], **purposes: Any) -> Prepared:
    return replace(toy_data(), preferences=Splits(pairs, pairs, pairs), **purposes)


def ranked() -> Prepared:
    """Whole rankings: of four on half of the questions, of three on the others."""
    three, four = ("blue", "green", "red"), ("blue", "green", "amber", "red")
    whole = [Ranking(q, four if n % 2 else three) for n, q in enumerate(QUESTIONS)]
    pairs = [pair for ranking in whole for pair in as_preferences(ranking)]
    return of_pairs(pairs, rankings=Splits(whole * 4, whole, whole))


def two_minded() -> Prepared:
    """Asked about taste people prefer blue; asked about warmth they prefer red."""
    taste, warmth = ("blue", "green", "amber", "red"), ("red", "amber", "green", "blue")
    return of_pairs(
        [
            Preference(q, good, bad, objective=name)
            for q in QUESTIONS
            for name, order in (("taste", taste), ("warmth", warmth))
            for good, bad in itertools.combinations(order, 2)
        ]
    )


def judged() -> Prepared:
    """Blue and green are good steps, red and amber are not, wherever they stand."""
    items = [
        JudgedSteps(q, steps, tuple(step in ("blue", "green") for step in steps))
        for q in QUESTIONS
        for steps in itertools.permutations(COLOURS, 2)
    ]
    return replace(toy_data(), steps=Splits(items, items[::5], items))


def test_rankings_are_learned_whole(sft_folder: Path, tmp_path: Path) -> None:
    model, metrics = learn(sft_folder, tmp_path, ranked(), epochs=10)
    assert ordered(model, "blue", "green", "red")
    mean = {colour: sum(scores[1::2]) for colour, scores in colours(model).items()}
    assert mean["green"] > mean["amber"] > mean["red"]
    assert metrics["pairs"] == 4 * (3 * 6 + 3 * 3)
    assert metrics["dropped"] == 0


def test_a_pair_that_is_part_of_a_ranking_is_not_learned_twice() -> None:
    data = ranked()
    alone = Preference(QUESTIONS[0], "blue", "amber")
    data = replace(data, preferences=Splits([*data.preferences.train, alone], [], []))
    assert to_learn(data, ("",)) == [alone, *data.rankings.train]


def test_a_ranking_with_one_response_left_is_dropped_and_counted(sft_folder: Path, tmp_path: Path) -> None:
    data = ranked()
    spoiled = [Ranking(QUESTIONS[0], ("blue", "")), Ranking(QUESTIONS[1], ("blue",))]
    data = replace(data, rankings=Splits([*data.rankings.train, *spoiled], [], []))
    _, metrics = learn(sft_folder, tmp_path, data, epochs=1)
    assert metrics["dropped"] == 2


@torch.no_grad()
def test_scores_of_a_batch_stand_where_their_response_ranks(sft_folder: Path) -> None:
    model = load_reward_model(sft_folder, head_seed=0, max_length=32)
    items = [Ranking(QUESTIONS[0], ("red", "blue", "green")), Preference(QUESTIONS[1], "amber", "blue")]
    scores_PKM, mask_PK = ranked_scores(model, comparisons_of(model, items))
    assert mask_PK.tolist() == [[True, True, True], [True, True, False]]
    singly = model.score_texts([QUESTIONS[0]] * 3 + [QUESTIONS[1]] * 2, ["red", "blue", "green", "amber", "blue"])
    assert scores_PKM[mask_PK][:, 0].tolist() == pytest.approx(singly, abs=1e-4)


def test_one_backbone_learns_two_objectives_that_disagree(sft_folder: Path, tmp_path: Path) -> None:
    model, metrics = learn(sft_folder, tmp_path, two_minded(), objectives={"taste": 1.0, "warmth": 0.1}, epochs=8)
    assert ordered(model, "blue", "green", "amber", "red")
    model.readout = model.readout.reweighed({"warmth": 1.0})
    assert ordered(model, "red", "amber", "green", "blue")
    assert metrics["dropped"] == 0
    with pytest.raises(ConfigError, match='no objective "warmness"'):
        model.readout.reweighed({"warmness": 1.0})


def test_a_finished_model_takes_other_weights(sft_folder: Path, tmp_path: Path) -> None:
    learn(sft_folder, tmp_path / "first", two_minded(), objectives={"taste": 1.0, "warmth": 0.1}, epochs=8)
    finished = {"base": str(tmp_path / "first"), "trained": True, "objectives": {"warmth": 1.0}}
    again, _ = learn(tmp_path / "first", tmp_path / "second", two_minded(), **finished)
    assert ordered(again, "red", "amber", "green", "blue")


@pytest.mark.parametrize(("of", "lora"), [("heads", None), ("adapters", LORA)])
def test_a_finished_ensemble_takes_another_aggregate(
    sft_folder: Path, tmp_path: Path, of: str, lora: dict[str, Any] | None
) -> None:
    members = {"members": 2, "of": of}
    mean, _ = learn(sft_folder, tmp_path / "mean", toy_data(), ensemble=members, lora=lora, epochs=2)
    finished = {"base": str(tmp_path / "mean"), "trained": True, "ensemble": {**members, "aggregate": "worst"}}
    worst, _ = learn(tmp_path / "mean", tmp_path / "worst", toy_data(), **finished)
    blue = ["blue"] * len(QUESTIONS)
    by_member = worst.readout.totals(worst.member_scores(QUESTIONS, blue))
    assert worst.score_texts(QUESTIONS, blue) == pytest.approx(by_member.amin(1).tolist(), abs=1e-5)
    one, other = (model.member_scores(QUESTIONS, blue)[:, :, 0].T for model in (mean, worst))
    assert torch.corrcoef(torch.cat([one, other]))[[0, 1], [2, 3]].tolist() == pytest.approx([1, 1], abs=1e-4)


def test_a_finished_model_has_the_members_it_was_trained_with(sft_folder: Path, tmp_path: Path) -> None:
    learn(sft_folder, tmp_path / "first", toy_data(), epochs=1)
    finished = {"base": str(tmp_path / "first"), "trained": True, "ensemble": {"members": 4}}
    with pytest.raises(ConfigError, match="has one member, not 4 of heads"):
        learn(tmp_path / "first", tmp_path / "second", toy_data(), **finished)


def test_an_objective_that_nobody_was_asked_about_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'no train pair was asked about "charm" .*taste, warmth'):
        learn(tmp_path / "no model here", tmp_path, two_minded(), objectives={"taste": 1.0, "charm": 1.0})


@pytest.mark.parametrize(
    ("ensemble", "lora"),
    [
        ({"members": 3, "aggregate": "worst"}, None),
        ({"members": 2, "of": "adapters", "aggregate": "uncertainty"}, LORA),
    ],
    ids=["heads", "adapters"],
)
def test_an_ensemble_learns_and_its_members_differ(
    sft_folder: Path, tmp_path: Path, ensemble: dict[str, Any], lora: object
) -> None:
    rate = {"learning_rate": 1e-2 if lora else 3e-3}
    model, metrics = learn(sft_folder, tmp_path, toy_data(), ensemble=ensemble, lora=lora, optim=rate)
    assert ordered(model, "blue", "green", "amber") or lora
    assert sum(a > b for a, b in zip(colours(model)["blue"], colours(model)["red"], strict=True)) >= 5
    members = model.readout.totals(model.member_scores(QUESTIONS, ["blue"] * len(QUESTIONS)))
    assert members.shape == (6, ensemble["members"])
    assert members.std(dim=1).min() > 1e-3
    assert metrics["disagreement"] > 1e-3


def test_calibration_is_held_against_the_same_ensemble_before_it() -> None:
    """Two members, the worst counts. The gain of the second is 4, so before it that member's gaps were a quarter."""
    seen: list[tuple[Sequence[float], Sequence[float]]] = []

    def evaluate(pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
        seen.append((chosen, rejected))
        return {"ece": 0.25}

    readout = Readout(members=2, aggregate="worst", origins=(1.0, 8.0))
    scores = (torch.tensor([[[3.0], [20.0]]]), torch.tensor([[[2.0], [4.0]]]))  # [N, M, O]: raw 3, 5 and 2, 1
    inputs = StageInputs(Prepared(), "", evaluate_preferences=evaluate)
    pair = Preference(QUESTIONS[0], "blue", "red")
    report = reward_report.before_calibration(readout, [pair], scores, torch.tensor([[1.0], [4.0]]), inputs)
    # raw origins 1 and 2, their mean 1.5: the worst is min(3 − 1, 5 − 2) + 1.5, and min(2 − 1, 1 − 2) + 1.5
    assert seen == [([3.5], [0.5])]
    assert report == {"temperature": pytest.approx(0.5), "ece_uncalibrated": 0.25}  # 1/√(1 · 4)


def test_a_pairs_scores_are_those_of_the_objective_that_was_asked_about() -> None:
    readout = Readout(objectives=("taste", "warmth"), weights=(1.0, 0.1))
    pairs = [Preference(QUESTIONS[0], "blue", "red", objective=name) for name in ("warmth", "taste")]
    scores = (torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]]))  # [N, M, O]
    assert reward_report.own_scores(readout, pairs, scores) == ([2.0, 3.0], [6.0, 7.0])


def test_every_member_is_calibrated_on_the_pairs_of_each_objective(sft_folder: Path) -> None:
    names = ("taste", "warmth")
    readout = Readout(objectives=names, weights=(1.0, 1.0), members=2)
    model = load_reward_model(sft_folder, head_seed=0, readout=readout, max_length=32)
    pairs = [pair for pair in two_minded().preferences.test if pair.chosen != "amber" or pair.objective == "taste"]
    before = reward_report.score_pairs(model, pairs, 10)
    gains_MO = reward.calibrate(model, pairs, 10)
    for m, (o, name) in itertools.product(range(2), enumerate(names)):
        asked = [n for n, pair in enumerate(pairs) if pair.objective == name]
        gaps = [(side[asked, m, o]).tolist() for side in before]
        assert gains_MO[m, o].item() == pytest.approx(preference_gain(*gaps), rel=1e-4)
    assert len({round(gain, 4) for gain in gains_MO.flatten().tolist()}) == 4
    for old, new in zip(before, reward_report.score_pairs(model, pairs, 10), strict=True):
        torch.testing.assert_close(new, old * gains_MO, rtol=1e-3, atol=1e-4)


def test_it_is_calibrated_on_the_validation_pairs_and_measured_on_the_test_pairs(
    sft_folder: Path, tmp_path: Path
) -> None:
    pairs = toy_data().preferences.test
    data = replace(toy_data(), preferences=Splits(pairs, pairs[:12], pairs[12:]))
    seen: list[Sequence[Preference]] = []

    def evaluate(asked: Sequence[Preference], chosen: object, rejected: object) -> dict[str, Any]:
        seen.append(asked)
        return {}

    inputs = StageInputs(data, str(sft_folder), evaluate_preferences=evaluate)
    reward.run(config(epochs=1), inputs, Memory(tmp_path))
    assert seen == [pairs[12:]] * 2  # calibrated, and as it was before
    model = load_reward_model(tmp_path, trainable=False, max_length=32)
    chosen, rejected = reward_report.score_pairs(model, pairs[:12], 10)
    assert model.mean == pytest.approx(torch.cat([chosen, rejected]).mean().item(), abs=1e-4)


def test_the_loss_of_comparisons_is_the_definitions(sft_folder: Path) -> None:
    """Two members with bootstrap samples of their own, graded margins, a ranking of three; in two micro-batches."""
    settings = config(margin=0.2, centring=0.05, label_smoothing=0.1, ensemble={"members": 2})
    model = load_reward_model(sft_folder, head_seed=0, readout=reward.readout_of(settings), max_length=32)
    items = [
        Preference(QUESTIONS[0], "blue", "red and green", margin=0.7),
        Ranking(QUESTIONS[1], ("blue", "green", "red")),
        Preference(QUESTIONS[2], "amber", "blue"),
    ]
    draws = [[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]
    lesson = Comparisons(model, comparisons_of(model, items), settings, torch.tensor(draws))
    with torch.no_grad():
        parts = [lesson.loss(part, [0, 1, 2]) for part in ([0, 1], [2])]

    def of_item(item: Preference | Ranking, member: int) -> tuple[float, float]:
        texts = item.responses if isinstance(item, Ranking) else (item.chosen, item.rejected)
        margin = 0.2 + ((item.margin or 0.0) if isinstance(item, Preference) else 0.0)
        scores = model.member_scores([item.prompt] * len(texts), texts)[:, member, 0].tolist()
        pairs = list(itertools.combinations(scores, 2))
        cost = [rewards.smoothed_pair(a, b, margin, 0.1) + 0.05 * (a + b) ** 2 for a, b in pairs]
        return sum(cost) / len(pairs), sum(losses.wins(a, b) for a, b in pairs) / len(pairs)

    for what in (0, 1):
        members = [
            sum(times * of_item(item, m)[what] for times, item in zip(draws[m], items, strict=True)) / sum(draws[m])
            for m in range(2)
        ]
        assert sum(part[what].item() for part in parts) == pytest.approx(sum(members) / 2, rel=1e-4)


def test_how_a_batch_is_split_changes_nothing_and_the_rate_goes_down_step_by_step(
    sft_folder: Path, tmp_path: Path
) -> None:
    optim = {"learning_rate": 3e-3, "schedule": "linear", "warmup": 0.0}
    runs = [Memory(tmp_path / "whole"), Memory(tmp_path / "parts")]
    for ctx, size in zip(runs, (None, 3), strict=True):
        settings = config(epochs=1, micro_batch_size=size, optim=optim)
        reward.run(settings, StageInputs(toy_data(), str(sft_folder)), ctx)
    whole, parts = (weights(ctx.folder) for ctx in runs)
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-3
    steps = len(runs[0].logged)
    for step, (one, other) in enumerate(zip(*(ctx.logged.values() for ctx in runs), strict=True)):
        for name in ("train/loss", "train/accuracy"):
            assert other[name] == pytest.approx(one[name], abs=1e-4)
        assert one["train/learning_rate"] == pytest.approx(3e-3 * (1 - step / steps))


def test_every_member_has_its_own_bootstrap_sample() -> None:
    draws = bootstrap(3, 20_000, seed=0)
    assert draws is not None
    assert draws.mean(dim=1).tolist() == pytest.approx([1.0] * 3, abs=4 / 20_000**0.5)
    assert (draws == 0).float().mean(dim=1).tolist() == pytest.approx([0.3679] * 3, abs=0.02)  # e⁻¹ stay out of the bag
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.03
    other = bootstrap(3, 20_000, seed=1)
    assert other is not None
    assert torch.corrcoef(torch.cat([draws, other]))[:3, 3:].abs().max() < 0.03
    assert bootstrap(1, 10, seed=0) is None


@pytest.mark.parametrize("changes", [{}, {"ensemble": {"members": 3}}, {"objectives": {"taste": 1.0, "warmth": 1.0}}])
def test_a_step_does_not_depend_on_how_it_is_split(sft_folder: Path, changes: dict[str, Any]) -> None:
    settings = config(label_smoothing=0.1, margin=0.2, **changes)
    data = two_minded() if "objectives" in changes else ranked()

    def gradient(size: int) -> tuple[torch.Tensor, float]:
        readout = reward.readout_of(settings)
        model = load_reward_model(sft_folder, head_seed=0, readout=readout, max_length=32)
        found = comparisons_of(model, to_learn(data, readout.objectives))[:12]
        lesson = Comparisons(model, found, settings, bootstrap(readout.members, 12, 1))
        batch, accuracy = list(range(12)), 0.0
        for start in range(0, 12, size):
            loss, right = lesson.loss(batch[start : start + size], batch)
            loss.backward()
            accuracy += right.item()
        grads = [p.grad.flatten() for p in model.parameters_trained().values() if p.grad is not None]
        return torch.cat(grads), accuracy

    whole, right = gradient(12)
    for size in (1, 5):
        parts, also = gradient(size)
        assert torch.allclose(parts, whole, atol=1e-5)
        assert also == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("aggregate", ["sum", "min", "product", "last"])
def test_steps_are_judged_as_people_did(sft_folder: Path, tmp_path: Path, aggregate: str) -> None:
    model, metrics = learn(sft_folder, tmp_path, judged(), steps=aggregate, epochs=4)
    assert metrics["step_accuracy"] > 0.95 > 0.6 > metrics["step_majority"]
    assert metrics["n"] == 6 * 12 * 2  # all test steps
    held_out = judged().steps.validation
    scores = model.score_texts([item.prompt for item in held_out], ["\n".join(item.steps) for item in held_out])
    assert model.mean == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    good, late, early = model.score_texts([QUESTIONS[0]] * 3, ["blue\ngreen", "blue\nred", "red\nblue"])
    assert good > late
    assert (good > early + 1) == (aggregate != "last")


def test_the_loss_of_judged_steps_is_the_definitions_and_a_step_weighs_the_same_in_any_response(
    sft_folder: Path,
) -> None:
    model = load_reward_model(sft_folder, head_seed=0, readout=Readout(steps="min"), max_length=32)
    steps = [("blue",), ("red", "green", "amber"), ("green", "blue")]
    good = [(True,), (False, True, False), (True, False)]
    items = [JudgedSteps(q, *judgement) for q, judgement in zip(QUESTIONS, zip(steps, good, strict=True), strict=False)]
    lesson = judged_steps.Steps(model, [found for item in items if (found := judged_steps.judged_of(model, item))])
    with torch.no_grad():
        parts = [lesson.loss(part, [0, 1, 2]) for part in ([0, 1], [2])]
    logits = [row.tolist() for row in model.judge([item.prompt for item in items], steps)]
    right = [(z > 0) == y for row, labels in zip(logits, good, strict=True) for z, y in zip(row, labels, strict=True)]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(rewards.step_loss(logits, good), rel=1e-4)
    assert sum(accuracy.item() for _, accuracy in parts) == pytest.approx(sum(right) / 6)


def test_labels_beyond_the_context_are_left_out_with_their_steps(sft_folder: Path) -> None:
    model = load_reward_model(sft_folder, head_seed=0, readout=Readout(steps="min"), max_length=32)
    good = (True,) + (False,) * 39
    found = judged_steps.judged_of(model, JudgedSteps(QUESTIONS[0], ("blue",) * 40, good))
    assert found is not None
    assert 1 < len(found.ends) < 40
    assert found.good == list(good[: len(found.ends)])


def test_steps_beyond_the_context_count_nowhere() -> None:
    """Of five steps four are within it: judged rightly, on the fence, wrongly, rightly; one of them is good."""

    class Judge:
        def judge(self, prompts: object, steps: object, *, batch_size: int) -> list[torch.Tensor]:
            return [torch.tensor([1.0, 0.0]), torch.tensor([2.0, -1.0])]

    asked: dict[str, Any] = {}

    def share(name: str, values: Sequence[float], groups: object = None) -> dict[str, float | None]:
        asked.update(name=name, values=values, groups=groups)
        return {name: 0.625, f"{name}_low": 0.2, f"{name}_high": 0.9}

    one, other = QUESTIONS[:2]
    items = [
        JudgedSteps(one, ("blue", "red", "green"), (True, False, True)),
        JudgedSteps(other, ("amber", "red"), (False, False)),
    ]
    report = judged_steps.evaluate(cast("Any", Judge()), items, config(), StageInputs(Prepared(), "", share=share))
    assert asked == {
        "name": "step_accuracy",
        "values": [1.0, 0.5, 0.0, 1.0],
        "groups": [one.id, one.id, other.id, other.id],
    }
    assert report == {
        "step_accuracy": 0.625,
        "step_accuracy_low": 0.2,
        "step_accuracy_high": 0.9,
        "step_majority": 0.75,  # of all five steps it would be 0.6
        "n": 4,
    }


def test_an_interrupted_ensemble_ends_with_the_same_weights(sft_folder: Path, tmp_path: Path) -> None:
    settings = config(epochs=1, ensemble={"members": 2, "of": "adapters"}, lora=LORA)
    inputs = StageInputs(toy_data(), str(sft_folder))
    reward.run(settings, inputs, Memory(tmp_path / "whole"))
    run_in_two_parts(reward.run, settings, inputs, Memory(tmp_path / "parts"), stop_at=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for name in ("adapter", "adapter-2"):
        files = [tmp_path / side / name / "adapter_model.safetensors" for side in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_report_says_which_words_the_scores_come_from(sft_folder: Path, tmp_path: Path) -> None:
    model, metrics = learn(sft_folder, tmp_path, toy_data(), epochs=2)
    pairs = json.loads((tmp_path / "attribution.json").read_text())["pairs"]
    assert [pair["which"] for pair in pairs] == ["surest", "middling", "worst"]
    assert pairs[0]["gap"] >= pairs[1]["gap"] >= pairs[2]["gap"]
    prompts = {q.text: q for q in QUESTIONS}
    for pair in pairs:
        for side in ("chosen", "rejected"):
            text = " ".join(word for word, _ in pair[side])
            whole, silent = model.score_texts([prompts[pair["prompt"]]] * 2, [text, ""])
            assert sum(gain for _, gain in pair[side]) == pytest.approx(whole - silent, abs=1e-3)
    assert metrics["temperature"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ensemble": {"members": 1}}, "greater than or equal to 2"),
        ({"ensemble": {"aggregate": "median"}}, "'mean', 'worst' or 'uncertainty'"),
        ({"ensemble": {"of": "adapters"}}, "members of adapters need `lora`"),
        ({"objectives": {"taste": 0.0}}, "all weights are 0"),
        ({"objectives": {"taste": -1.0}}, "greater than or equal to 0"),
        ({"steps": "min", "objectives": {"taste": 1.0}}, "leave out objectives and ensemble"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**changes)
