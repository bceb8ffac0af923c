"""Every rung of the teaching ladder against the stage it explains: the same losses at every step, the same weights.

The examples share no loss, no advantage, no sampler and no loop with `src/`; what is random (which rows make a batch,
the uniform numbers that draw tokens) comes in as an argument, and here it is what the stage draws.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import dpo, grpo, ppo, reward, sft
from tests.unit.stages.toy import QUESTIONS, Memory, toy_data, toy_model, weights
from torch import Tensor

from assay import rng
from assay.data.pack import batches
from assay.data.prepared import Prepared, Splits
from assay.models.backbone import Backbone
from assay.models.roles import load_policy, load_reward_model, ppo_roles, sampling_roles
from assay.rollout.config import SamplingParams
from assay.stages import group as group_stage
from assay.stages import loop
from assay.stages import ppo as ppo_stage
from assay.stages import preference as preference_stage
from assay.stages import reward as reward_stage
from assay.stages import sft as sft_stage
from assay.stages.config import GroupConfig, OptimConfig, PPOConfig, PreferenceConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Prompt

SEED = 3
LENGTH, NEW = 32, 3
TOY = toy_data()
RAMBLING = [Demonstration(question, "blue red green amber blue") for question in QUESTIONS] * 8
"""So that answers differ in length, and some run out of tokens before they end."""
DATA = replace(TOY, demonstrations=Splits([*TOY.demonstrations.train, *RAMBLING], TOY.demonstrations.validation))


def steady(rate: float, **changes: float) -> OptimConfig:
    return OptimConfig(learning_rate=rate, schedule="constant", warmup=0.0, **changes)


def plan(lengths: Sequence[int], rows: int, epochs: int = 1) -> list[list[int]]:
    """Batches as the stages cut them."""
    return [batch for e in range(epochs) for batch in batches(lengths, rows, rng.python_rng(SEED, "batches", e))]


def column(ctx: Memory, name: str) -> list[float]:
    """One metric at every logged step."""
    return [ctx.logged[step][name] for step in sorted(ctx.logged)]


def agree(example: Mapping[str, Tensor], stage: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Every tensor moved, and to the same place: what is between the two is a thousandth of the way, or rounding.

    A norm and no maximum: where a gradient is almost 0, Adam makes a whole step of its sign, which rounding decides.
    """
    for name, expected in stage.items():
        way = (expected - start[name]).norm() if name in start else expected.norm()
        assert (example[name] - expected).norm() < 1e-3 * way, name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def sft_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    config = SFTConfig(epochs=2, batch_size=16, max_length=LENGTH, optim=steady(1e-2), checkpoint_every=1000)
    ctx = Memory(tmp_path_factory.mktemp("sft"), seed=SEED)
    sft_stage.run(config, StageInputs(DATA, str(base)), ctx)
    return ctx


@pytest.fixture(scope="module")
def reward_run(sft_run: Memory, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    config = RewardConfig(epochs=2, batch_size=10, max_length=LENGTH, optim=steady(3e-3), checkpoint_every=1000)
    ctx = Memory(tmp_path_factory.mktemp("reward"), seed=SEED)
    reward_stage.run(config, StageInputs(DATA, str(sft_run.folder)), ctx)
    return ctx


def rounds(prompts: int, iterations: int, *, group: int = 1) -> list[tuple[list[Prompt], Tensor]]:
    """The prompts of every iteration, and the uniform numbers that draw the answers to them."""
    found = []
    for iteration in range(iterations):
        seed = rng.derive(SEED, "episodes", iteration)
        streams = [rng.numpy_rng(rng.derive(seed, i), "tokens").random(NEW) for i in range(prompts * group)]
        asked = loop.pick(DATA.prompts.train, prompts, iteration, SEED)
        found.append((asked, torch.stack([torch.from_numpy(stream) for stream in streams])))
    return found


@pytest.fixture(autouse=True, scope="module")
def padded() -> Iterator[None]:
    """The stages pad, as the examples do: Adam makes 1e-4 of rounding. Trees = padding: tests/unit/models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "shares_prompts", False)
        patch.setattr(Backbone, "reads_on", False)
        yield


@pytest.mark.parametrize("example", [sft, reward, ppo, grpo, dpo])
def test_an_example_takes_data_and_models_from_here_and_nothing_else(example: ModuleType) -> None:
    assert example.__file__
    parsed = ast.parse(Path(example.__file__).read_text(encoding="utf-8"))
    sources = {node.module or "" for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)}
    plain = {name.name for node in ast.walk(parsed) if isinstance(node, ast.Import) for name in node.names}
    ours = {module for module in sources | plain if module.split(".")[0] in ("assay", "examples")}
    assert ours
    assert all(module.startswith(("assay.data.", "assay.models.", "assay.worlds", "assay.types")) for module in ours)


def test_sft_is_the_stage(base: Path, sft_run: Memory) -> None:
    policy = load_policy(base)
    renderer = policy.renderer("chat", LENGTH)
    rows = [row for d in DATA.demonstrations.train if (row := renderer.row(d.prompt, d.response))]
    steps = [[rows[i] for i in batch] for batch in plan([len(row.ids) for row in rows], 16, epochs=2)]
    losses = sft.train(policy, steps, learning_rate=1e-2)
    assert losses == pytest.approx(column(sft_run, "train/loss"), rel=1e-4)
    agree(policy.model.state_dict(), weights(sft_run.folder), weights(base))


def test_reward_is_the_stage_calibrated_too(sft_run: Memory, reward_run: Memory) -> None:
    model = load_reward_model(sft_run.folder, head_seed=SEED, max_length=LENGTH)
    pairs = reward.pairs_of(model, DATA.preferences.train)
    lengths = [len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs]
    steps = [[pairs[i] for i in batch] for batch in plan(lengths, 10, epochs=2)]
    losses = reward.train(model, steps, learning_rate=3e-3)
    assert losses == pytest.approx(column(reward_run, "train/loss"), rel=1e-4)
    reward.calibrate(model, reward.pairs_of(model, DATA.preferences.validation))
    agree(model.backbone.model.state_dict(), weights(reward_run.folder), weights(sft_run.folder))


def test_dpo_is_the_stage(sft_run: Memory, tmp_path: Path) -> None:
    data = Prepared(preferences=Splits(DATA.preferences.train), prompts=DATA.prompts)  # the last weights are kept
    config = PreferenceConfig(
        batch_size=12, max_length=LENGTH, optim=steady(1e-3), sampling=SamplingParams(max_new_tokens=NEW)
    )
    ctx = Memory(tmp_path, seed=SEED)
    preference_stage.run(config, StageInputs(data, str(sft_run.folder)), ctx)

    policy = load_policy(sft_run.folder)
    renderer = policy.renderer("chat", LENGTH)
    rows = [(renderer.row(p.prompt, p.chosen), renderer.row(p.prompt, p.rejected)) for p in data.preferences.train]
    pairs = [(chosen, rejected) for chosen, rejected in rows if chosen and rejected]
    lengths = [len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs]
    losses = dpo.train(policy, [[pairs[i] for i in batch] for batch in plan(lengths, 12)], learning_rate=1e-3)
    assert losses[0] == pytest.approx(0.6931472, rel=1e-5)
    assert losses == pytest.approx(column(ctx, "train/loss"), rel=1e-4)
    agree(policy.model.state_dict(), weights(tmp_path), weights(sft_run.folder))


def test_ppo_is_the_stage_critic_included(sft_run: Memory, reward_run: Memory, tmp_path: Path) -> None:
    config = PPOConfig(
        episodes=96,
        batch_size=24,
        minibatches=1,
        inner_epochs=3,
        value_warmup=0,
        clip=0.02,
        value_clip=0.02,
        kl_stop=None,
        max_length=LENGTH,
        optim=steady(1e-3, eps=1e-5),
        value_learning_rate=3e-3,
        sampling=SamplingParams(max_new_tokens=NEW),
    )
    ctx = Memory(tmp_path, seed=SEED)
    ppo_stage.run(config, StageInputs(DATA, str(sft_run.folder), reward=str(reward_run.folder)), ctx)

    roles = ppo_roles(sft_run.folder, reward_run.folder, None, max_length=LENGTH)
    renderer = roles.policy.renderer("chat", LENGTH)
    history = ppo.train(
        roles, renderer, rounds(24, 4), learning_rate=1e-3, value_learning_rate=3e-3, inner_epochs=3, clip=0.02
    )
    names = {"reward": "objective/reward", "kl": "objective/kl", "policy_loss": "policy/loss", "value_loss": "val/loss"}
    for ours, theirs in names.items():
        assert [seen[ours] for seen in history] == pytest.approx(column(ctx, theirs), rel=1e-4, abs=1e-6), ours
    for used in ("policy/clipfrac_avg", "val/clipfrac_avg", "lengths/truncated"):
        assert max(column(ctx, used)) > 0, f"{used}: this run compares nothing of it"
    agree(roles.policy.model.state_dict(), weights(tmp_path), weights(sft_run.folder))
    trunk = {f"model.{name}": p for name, p in roles.value.backbone.trunk.state_dict().items()}
    agree(trunk, {n: w for n, w in weights(tmp_path / "value").items() if n in trunk}, weights(reward_run.folder))


@pytest.mark.parametrize("epochs", [1, 3])
def test_grpo_is_the_stage(epochs: int, sft_run: Memory, reward_run: Memory, tmp_path: Path) -> None:
    config = GroupConfig(
        method="grpo",
        episodes=96,
        batch_size=24,
        group_size=6,
        minibatches=1,
        inner_epochs=epochs,
        clip=0.02,
        kl_stop=None,
        max_length=LENGTH,
        optim=steady(1e-3, eps=1e-5),
        sampling=SamplingParams(max_new_tokens=NEW),
    )
    ctx = Memory(tmp_path, seed=SEED)
    group_stage.run(config, StageInputs(DATA, str(sft_run.folder), reward=str(reward_run.folder)), ctx)

    roles = sampling_roles(sft_run.folder, reward_run.folder, None, max_length=LENGTH)
    renderer = roles.policy.renderer("chat", LENGTH)
    history = grpo.train(
        roles, renderer, rounds(4, 4, group=6), group_size=6, learning_rate=1e-3, inner_epochs=epochs, clip=0.02
    )
    assert epochs == 1 or max(column(ctx, "policy/clipfrac_avg")) > 0
    for ours, theirs in {"reward": "objective/reward", "kl": "objective/kl", "loss": "policy/loss"}.items():
        assert [seen[ours] for seen in history] == pytest.approx(column(ctx, theirs), rel=1e-4, abs=1e-6), ours
    agree(roles.policy.model.state_dict(), weights(tmp_path), weights(sft_run.folder))
