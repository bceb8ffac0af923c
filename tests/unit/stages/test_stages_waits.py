"""How often a training step waits for the device that it runs on: once, to read what it measured.

The device is torch's "meta", whose tensors have no numbers: whoever wants to know one must ask, and is counted. It is
handled as a GPU is, and what stands on the host is real.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.stages.test_stages_group import config_of
from tests.unit.stages.test_stages_preference import LORA, settings
from tests.unit.stages.toy import QUESTIONS, Memory, toy_data
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from assay.data.render import Renderer, Row
from assay.models.backbone import Backbone
from assay.models.heads import ValueHead
from assay.models.roles import Policy, ValueModel, load_policy, load_reward_model
from assay.rollout import collect
from assay.rollout.collect import Experience
from assay.rollout.sampler import Generation
from assay.stages import causal, distill, group, judged_steps, loop, ppo, preference, reward
from assay.stages.comparisons import Comparisons, bootstrap, comparisons_of
from assay.stages.config import DistillConfig, PPOConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.stages.direct import Example, Learner
from assay.stages.reward_training import train
from assay.types import JudgedSteps, Prompt

DEVICE = "meta"


class Waits(TorchDispatchMode):
    """Counts what keeps the host until the device has done all that it was given; what is read comes out as ones."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        there = isinstance(args[0], Tensor) and args[0].is_meta if args else False
        goes = torch.device(kwargs["device"]).type if name == "_to_copy" and kwargs.get("device") else None
        if there and name == "_local_scalar_dense":  # item(), int(), float(), bool()
            self.times += 1
            return 1.0
        if there and goes == "cpu":  # tolist(), cpu(), numpy()
            self.times += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if not there and goes == DEVICE:  # from the host, unless it says otherwise
            self.times += not kwargs.get("non_blocking")
        return func(*args, **kwargs)


class FromNumbers(TorchFunctionMode):
    """Counts tensors that torch makes on the device of Python's numbers, a list that is an index among them."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device"):
            self.waits.times += torch.device(kwargs["device"]).type == DEVICE
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.waits.times += any(isinstance(part, list) for part in index)
        return func(*args, **kwargs)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What torch itself does not do for this device: automatic formats, and the optimizer's one kernel."""
    module: Any = importlib.import_module("torch.optim.optimizer")
    autocast, fused = torch.autocast, module._get_fused_kernels_supported_devices
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *args, **more: nullcontext() if kind == DEVICE else autocast(kind, *args, **more),
    )
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [DEVICE, *fused()])
    return Waits()


def moved(backbone: Backbone) -> None:
    """A backbone on the device, with transformers' own attention; what is tried once was tried before."""
    backbone.model.set_attn_implementation("sdpa")
    assert backbone.shares_prompts
    backbone.model.to(DEVICE)  # pyright: ignore[reportArgumentType]
    backbone.device = DEVICE


def policy_of(folder: Path, **more: Any) -> Policy:
    policy = load_policy(folder, **more)
    moved(policy.backbone)
    return policy


def rows_of(policy: Policy) -> list[Row]:
    """Answers of unequal length, several to a question."""
    renderer, texts = Renderer(policy.tokenizer, max_length=32), ("blue", "red green", "amber")
    return [row for question in QUESTIONS for text in texts if (row := renderer.row(question, text))]


def counted(waits: Waits, work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Waits of this work, and what it gives."""
    before = waits.times
    with waits, FromNumbers(waits):
        found = work(*args)
    return waits.times - before, found


def test_what_waits_is_seen(waits: Waits) -> None:
    there, number = torch.ones(3, device=DEVICE), torch.ones((), device=DEVICE)
    asking: list[Callable[[], Any]] = [
        number.item,
        there.tolist,
        there.cpu,
        lambda: int(number),
        lambda: float(number),
        lambda: 1 if number else 0,
        lambda: torch.tensor([1.0], device=DEVICE),
        lambda: torch.ones(3).to(DEVICE),
        lambda: there[[0, 1]],
    ]
    assert [counted(waits, one)[0] for one in asking] == [1] * len(asking)
    for one in (lambda: torch.ones(3).to(DEVICE, non_blocking=True), lambda: (there * 2).sum().sqrt()):
        assert counted(waits, one)[0] == 0
    for one in (there.nonzero, lambda: there[there > 0]):
        with pytest.raises(NotImplementedError):
            counted(waits, one)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_step_of_imitation_waits_once(base: Path, tmp_path: Path, waits: Waits, micro: int | None) -> None:
    """Pretraining's too: it is the same loop."""
    policy, ctx = policy_of(base), Memory(tmp_path, device=DEVICE)
    config = SFTConfig(epochs=1, batch_size=6, micro_batch_size=micro, max_length=32)
    times, _ = counted(waits, causal.train_causal, policy, rows_of(policy), [], config, ctx)
    assert times == len(ctx.logged) == 3


@pytest.mark.parametrize("changes", [{}, {"ensemble": {"members": 2}}, {"steps": "min"}])
def test_a_step_of_a_reward_model_waits_once(base: Path, tmp_path: Path, waits: Waits, changes: dict[str, Any]) -> None:
    config = RewardConfig.model_validate({"batch_size": 3, "micro_batch_size": 2, "max_length": 32, **changes})
    model = load_reward_model(base, head_seed=0, readout=reward.readout_of(config), max_length=32)
    moved(model.backbone)
    if config.steps:
        items = [JudgedSteps(question, ("blue", "red"), (True, False)) for question in QUESTIONS]
        lesson: Any = judged_steps.Steps(model, [one for item in items if (one := judged_steps.judged_of(model, item))])
    else:
        compared = comparisons_of(model, toy_data().preferences.test[:6])
        lesson = Comparisons(model, compared, config, bootstrap(model.readout.members, len(compared), 0))
    ctx = Memory(tmp_path, device=DEVICE)
    times, _ = counted(waits, train, model, lesson, dict, config, ctx)
    assert times == len(ctx.logged) == 2 * config.epochs


@pytest.mark.parametrize("method", ["dpo", "simpo", "rpo", "kto"])
def test_a_step_of_direct_preference_waits_once(base: Path, waits: Waits, method: str) -> None:
    config, policy = settings(method, micro_batch_size=2), policy_of(base, lora=LORA)
    rows = rows_of(policy)
    batch = [Example(rows[number], rows[-number], good=number % 2 == 0) for number in range(6)]
    learner = Learner(policy, config, DEVICE)
    reference_NE = torch.zeros(len(batch), 2)
    optimizer = loop.Optimizer(policy.parameters_trained(), config.optim, 2)
    for step in range(2):
        times, measured = counted(waits, preference.update, learner, optimizer, batch, reference_NE, step)
        assert times == 1
        assert {"train/loss", "train/accuracy", "train/grad_norm", "train/update_rms"} <= measured.keys()


def experience_of(policy: Policy) -> Experience:
    """Episodes with random numbers, half of them without an advantage."""
    rows = rows_of(policy)
    lengths = torch.tensor([len(row.ids) - row.prompt_length for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    numbers = [torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask for seed in range(5)]
    numbers[2][::2] = 0
    old, reference, advantages, values, returns = numbers
    return Experience(rows, mask, old, reference, advantages, torch.ones_like(old), values, returns)


CONTEXT: Any = SimpleNamespace(seed=0)


@pytest.mark.parametrize("method", ["grpo", "rloo", "dapo", "gspo"])
@pytest.mark.parametrize("changes", [{}, {"kl_loss": "k2", "entropy_coef": 0.1}], ids=["plain", "kl-and-entropy"])
def test_a_step_of_a_group_method_waits_once(base: Path, waits: Waits, method: str, changes: dict[str, Any]) -> None:
    config = config_of(method, minibatches=2, micro_batch_size=4, kl_stop=None, **changes)
    policy = policy_of(base, lora=LORA)
    optimizer = loop.Optimizer(policy.parameters_trained(), config.optim, config.updates)
    times, measured = counted(waits, group.update, experience_of(policy), policy, optimizer, 0, 0.1, config, CONTEXT)
    assert times == measured["policy/updates"] == config.updates


def test_ppo_waits_once_for_a_step_of_the_policy_and_one_of_the_critic(base: Path, waits: Waits) -> None:
    config = PPOConfig.model_validate({"minibatches": 3, "micro_batch_size": 2, "kl_stop": None, "value_warmup": 1})
    policy = load_policy(base, lora=LORA)
    policy.backbone.adapters.copy("policy", "value")
    moved(policy.backbone)
    value = ValueModel(policy.backbone, ValueHead(policy.backbone.width), adapter="value")
    roles: Any = SimpleNamespace(policy=policy, value=value)
    optimizers = ppo.build_optimizers(roles, config)
    for iteration in range(2):  # the first is of the critic alone
        times, _ = counted(waits, ppo.update, experience_of(policy), roles, optimizers, iteration, 0.1, config, CONTEXT)
        assert times == config.updates


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_a_step_of_distillation_waits_once(
    base: Path, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, divergence: str
) -> None:
    """Its samples apart: they come from the engine, whose steps wait for their tokens."""
    config = DistillConfig.model_validate(
        {"sequences": 12, "batch_size": 6, "micro_batch_size": 4, "max_length": 32, "divergence": divergence}
    )
    student, teacher = policy_of(base), policy_of(base, trainable=False)
    row = rows_of(student)[1]
    prompt_ids, ids = row.ids[: row.prompt_length], row.ids[row.prompt_length :]

    def sampled(engine: Any, prompts: list[Prompt], *_: Any) -> list[Generation]:
        return [Generation(prompt, prompt_ids, ids, [0.0] * len(ids), "red green", "stop") for prompt in prompts]

    monkeypatch.setattr(collect, "sample", sampled)
    monkeypatch.setattr(distill, "load_pair", lambda *_: (student, teacher))
    monkeypatch.setattr(distill, "teacher_kl", lambda *_: 0.0)
    monkeypatch.setattr(student, "save", lambda folder: None)
    ctx = Memory(tmp_path, device=DEVICE)
    times, _ = counted(waits, distill.run, config, StageInputs(toy_data(), str(base)), ctx)
    assert times == len(ctx.logged) == 2
