"""Real stages under a monitor: a healthy one is left as it is, a run that breaks is stopped or mended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.stages.test_stages_learning import ppo_config
from tests.unit.stages.toy import Memory, same, toy_data, weights
from torch.nn import Parameter

from assay.doctor.config import Act
from assay.errors import NotFiniteError, TrainingError
from assay.models.checkpoint import load_checkpoint
from assay.pipeline.context import stage_context
from assay.pipeline.watch import Watch
from assay.stages import loop, ppo, sft
from assay.stages.config import OptimConfig, SFTConfig
from assay.stages.context import Remedy, StageInputs
from assay.stages.online import raised
from assay.tracking.metrics import MetricsLine, read_metrics


def watched(stage: Any, config: Any, inputs: StageInputs, folder: Path, act: Act = "stop") -> list[str]:
    """Run a stage as the pipeline does; returns what was said."""
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    settings = config.model_dump(mode="json")
    watch = Watch(folder, kind=config.kind, where=config.kind, config=settings, act=act, say=said.append)
    with stage_context(folder, seed=0, device="cpu", mirrors=[], watch=watch, stop=lambda: False) as ctx:
        ctx.attempts(lambda: stage.run(config, inputs, ctx))
    return said


def test_a_healthy_ppo_says_nothing_and_ends_with_the_same_weights(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    config = ppo_config(optim={"learning_rate": 5e-3, "schedule": "constant"}, kl_target=1.0)
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    (tmp_path / "alone").mkdir()
    ppo.run(config, inputs, Memory(tmp_path / "alone"))
    assert watched(ppo, config, inputs, tmp_path / "watched") == []
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "watched"))


UNHELD = {"kl_target": 0.05, "kl_coef": 1e-6, "kl_horizon": 1e9, "checkpoint_every": 2, "evaluate_every": 4}
"""A target that nothing holds."""


def kl(lines: list[MetricsLine]) -> float:
    """Nats an answer, over the last quarter."""
    values = [line.values["objective/kl"] for line in lines]
    return sum(values[-len(values) // 4 :]) / len(values[-len(values) // 4 :])


def test_a_ppo_whose_kl_runs_away_stops_and_one_that_may_correct_itself_ends_nearer_to_its_reference(
    sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    config = ppo_config(**UNHELD, episodes=3840)  # of half as many nobody runs far
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder))
    left = watched(ppo, config, inputs, tmp_path / "warn", "warn")
    assert sum("The KL to the reference runs away" in line for line in left) == 1
    with pytest.raises(TrainingError, match="ppo stopped after step"):
        watched(ppo, config, inputs, tmp_path / "stop", "stop")
    tensors, state = load_checkpoint(tmp_path / "stop" / "checkpoint") or ({}, {})
    at = read_metrics(tmp_path / "stop" / "metrics.jsonl")[-1].step
    assert state["step"] == at < config.iterations
    assert all(tensor.isfinite().all() for tensor in tensors.values())

    said = watched(ppo, config, inputs, tmp_path / "correct", "correct")
    corrections = sum("Correction" in line for line in said)
    assert corrections >= 1
    alone, mended = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("warn", "correct"))
    last = mended[-1].values
    assert last["doctor/lr_factor"] == pytest.approx(3.0**-corrections)
    assert last["policy/learning_rate"] == pytest.approx(1e-2 * 3.0**-corrections)
    assert last["objective/kl_coef"] == pytest.approx(0.05 * 2 ** (corrections - 1), rel=1e-3)
    assert alone[-1].values["objective/kl_coef"] == pytest.approx(1e-6, rel=1e-3)
    assert kl(mended) < min(kl(alone) / 2, 6 * UNHELD["kl_target"])


def test_an_sft_with_far_too_long_steps_mends_itself(base: Path, tmp_path: Path) -> None:
    config = SFTConfig(
        epochs=12,
        batch_size=16,
        max_length=32,
        checkpoint_every=5,
        optim=OptimConfig(learning_rate=3.0, schedule="constant", warmup=0.0),
    )
    inputs = StageInputs(toy_data(), str(base))
    watched(sft, config, inputs, tmp_path / "warn", "warn")
    said = watched(sft, config, inputs, tmp_path / "correct", "correct")
    assert any("Correction" in line for line in said)
    alone, mended = (read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("warn", "correct"))
    assert mended.values["train/loss"] < alone.values["train/loss"] / 2


def test_a_corrected_stage_goes_on_from_its_checkpoint_with_shorter_steps(tmp_path: Path) -> None:
    weight = Parameter(torch.ones(2))
    config = OptimConfig(learning_rate=0.3, schedule="constant", warmup=0.0)
    optimizer = loop.Optimizer({"weight": weight}, config, 10)
    ctx = Memory(tmp_path)
    loop.save(ctx, 3, {"policy": optimizer}, loop.Best(), {"kl_coef": 0.1})
    for remedy in (Remedy(), Remedy(times=2, here=0), Remedy(times=3, here=1)):
        ctx.remedy = remedy
        done, _, state = loop.restore(ctx, {"policy": optimizer})
        assert (done, state, weight.tolist()) == (3, {"kl_coef": 0.1}, [1.0, 1.0])
        weight.grad = torch.ones(2)
        assert optimizer.update(3)["learning_rate"] == pytest.approx(0.3 / 3**remedy.times)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_neither_weights_nor_moments_and_is_told(bad: float) -> None:
    learnt = {"matrix": Parameter(torch.ones(2, 2)), "vector": Parameter(torch.ones(3))}
    optimizer = loop.Optimizer(learnt, OptimConfig(learning_rate=0.1, schedule="constant", warmup=0.0), 10)

    def step(number: int, last: float) -> dict[str, float]:
        learnt["matrix"].grad, learnt["vector"].grad = torch.ones(2, 2), torch.tensor([1.0, 2.0, last])
        return loop.read(number, optimizer.update(number))

    assert step(0, 3.0)["update_rms"] > 0
    before = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    assert before["vector|step"] == 1
    with pytest.raises(NotFiniteError, match="the gradient of step 1 is not finite"):
        step(1, bad)
    assert same(before, optimizer.tensors())
    step(2, 3.0)
    assert optimizer.tensors()["vector|step"] == 2
    assert not same(before, optimizer.tensors())


def test_every_correction_doubles_the_kl_weight_from_the_default_on() -> None:
    assert [raised(0.0, times) for times in range(4)] == [0.0, 0.05, 0.1, 0.2]
    assert raised(0.2, 2) == 0.8
