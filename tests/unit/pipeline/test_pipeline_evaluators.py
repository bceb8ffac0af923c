"""Evaluators bound to a run: what judges, on which device, and what the baselines learned from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests import tiny

from assay.data.baselines import Baselines
from assay.data.prepared import Prepared, Splits
from assay.data.split import part_of
from assay.evaluation import bertscore
from assay.models.roles import load_reward_model
from assay.pipeline.evaluators import Evaluators
from assay.pipeline.inputs import _judge
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import run
from assay.types import Completion, Demonstration, FinishReason, Preference, Prompt

from .fakes import Fakes, workplace

PROMPTS = [Prompt.ask(f"question {n}?") for n in range(4)]
ENDED: list[FinishReason] = ["stop", "stop", "stop", "stop"]
PAIRS = [Preference(prompt, "a good answer", "bad") for prompt in PROMPTS]


def completions(*finishes: FinishReason) -> list[Completion]:
    return [Completion(prompt, "words", finish, 3) for prompt, finish in zip(PROMPTS, finishes, strict=True)]


def test_a_judge_sees_which_answers_were_cut_short():
    seen: list[Sequence[FinishReason]] = []

    def judge(prompts: Sequence[Prompt], responses: Sequence[str], finishes: Sequence[FinishReason]) -> list[float]:
        seen.append(finishes)
        return [float(finish == "stop") for finish in finishes]

    evaluators = Evaluators(Prepared(), 0, judge=judge)
    report = evaluators.policy(completions("length", "length", "stop", "stop"), completions(*ENDED))
    assert seen == [["length", "length", "stop", "stop"], ENDED]
    assert (report["judge_before"], report["judge_after"], report["win_rate"]) == (0.5, 1.0, 0.75)
    assert evaluators.judged_by == "judge"
    assert Evaluators(Prepared(), 0).judged_by is None


def test_the_judge_of_a_run_reads_all_that_its_model_has_positions_for(tmp_path: Path):
    load_reward_model(tiny.folder("llama"), head_seed=0).save(tmp_path)
    long = Prompt.ask("could you help me, please? " * 150)
    prompts, responses = [long, long, PROMPTS[0]], ["of course", "of course", "no"]
    finishes: list[FinishReason] = ["stop", "length", "stop"]
    scores = _judge(str(tmp_path), "chat", "cpu")(prompts, responses, finishes)
    model = load_reward_model(tmp_path, trainable=False, max_length=100_000)
    row = model.row(long, "of course")
    assert row is not None
    assert 512 < len(row.ids) < 2048
    raw = model.score_texts(prompts, responses, finishes)
    assert scores == pytest.approx([score - model.mean for score in raw], abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-4, "an answer that was cut short must score otherwise"
    cut = load_reward_model(tmp_path, trainable=False).score_texts(prompts, responses, finishes)
    assert abs(raw[0] - cut[0]) > 1e-4


def test_baselines_are_fitted_once_however_often_a_stage_validates(monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    fit = Baselines.fit
    monkeypatch.setattr(Baselines, "fit", lambda train: fitted.append(len(train)) or fit(train))
    evaluators = Evaluators(Prepared(), 0, train=PAIRS * 5)
    reports = [evaluators.preferences(PAIRS, [1.0, 2.0, 0.0, 1.0], [0.0] * 4) for _ in range(3)]
    assert fitted == [20]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["baseline_pairs"] == 20
    assert set(reports[0]["baselines"]) == {"length_only", "bag_of_words"}


def test_baselines_learn_from_the_part_of_the_pairs_that_the_model_has(tmp_path: Path):
    stages = Fakes()
    run(load_recipe(str(workplace(tmp_path)), ("reward.part=[1,2]",), {}), stages.request())
    inputs = stages.inputs["reward"]
    every = inputs.data.preferences.train
    half = part_of(every, (1, 2))
    assert 0 < len(half) < len(every)
    assert inputs.evaluate_preferences is not None
    report = inputs.evaluate_preferences(every, [1.0] * len(every), [0.0] * len(every))
    assert report["baseline_pairs"] == len(half)


def test_bertscore_runs_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch):
    devices: list[str] = []

    class Scorer:
        def __init__(self, folder: Path, *, device: str) -> None:
            devices.append(device)

        def report(self, responses: Sequence[str], references: Sequence[str], *, seed: int) -> dict[str, float]:
            return {"bertscore_f1": 1.0}

    monkeypatch.setattr(bertscore, "BertScorer", Scorer)
    shown = [Demonstration(prompt, "words") for prompt in PROMPTS]
    evaluators = Evaluators(
        Prepared(demonstrations=Splits(test=shown)),
        0,
        judge=lambda prompts, responses, finishes: [0.0] * len(prompts),
        encoder=str(tiny.folder("llama")),
        device="cuda:7",
    )
    report = evaluators.policies({"sft": completions(*ENDED)}, {"sft": completions(*ENDED)})
    assert devices == ["cuda:7"]
    assert report["policies"]["sft"]["bertscore_f1"] == 1.0


def test_policies_are_selected_by_other_answers_than_those_that_are_reported():
    """On validation `late` is better, on test `early`: the selection must see the one, the numbers the other."""
    better, worse = completions(*ENDED), completions("length", "length", "length", "length")
    evaluators = Evaluators(
        Prepared(), 0, judge=lambda prompts, responses, finishes: [float(f == "stop") for f in finishes]
    )
    report = evaluators.policies({"early": worse, "late": better}, {"early": better, "late": worse})
    assert report["selected"] == report["selection"]["best"] == "late"
    assert {name: policy["score"] for name, policy in report["policies"].items()} == {"early": 1.0, "late": 0.0}
    assert report["wins"]["late"]["win_rate"] == 0.0


def test_another_encoder_in_the_same_place_makes_another_evaluation(tmp_path: Path):
    recipe = workplace(tmp_path)
    recipe.write_text(recipe.read_text() + f"  - evaluate: {{judge: reward, encoder: {tmp_path / 'encoder'}}}\n")
    shutil.copytree(tmp_path / "model", tmp_path / "encoder")
    first = run(load_recipe(str(recipe), (), {}), Fakes().request())
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"others")
    again = Fakes()
    second = run(load_recipe(str(recipe), (), {}), again.request())
    assert again.called == ["evaluate"]
    assert first["stages"]["evaluate"]["artifact"] != second["stages"]["evaluate"]["artifact"]
