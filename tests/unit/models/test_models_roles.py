"""PPO's four roles: what they share, what each starts as, and that none is another by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny

from assay.data.pack import TokenBatch, collate
from assay.data.render import Row
from assay.models.config import LoraConfig
from assay.models.load_reward import load_reward_model
from assay.models.policy import load_policy
from assay.models.roles import PPORoles, load_value_model, ppo_roles
from assay.types import Prompt

ROWS = [Row([5, 90, 91, 92, 93, 94], 2), Row([60, 61, 62, 63, 64, 65, 66, 67], 4)]
PROMPTS = [Prompt.ask("what time is it?"), Prompt.ask("could you help me, please?")]
ANSWERS = ["of course", "sorry, I cannot do that!"]
LORA = LoraConfig(r=4)
ELSEWHERE = LoraConfig(r=4, target_modules=("q_proj", "down_proj"))
"""On other layers than the reward model's."""


def jolt(parameters: dict[str, torch.nn.Parameter], seed: int = 0) -> None:
    """Change weights as training would."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=noise) * 0.05)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An SFT model that differs from its base, reward models of every make, all on disk."""
    root = tmp_path_factory.mktemp("roles")
    sft = load_policy(tiny.folder("llama"), lora=LORA)
    jolt(sft.parameters_trained())
    sft.save(root / "sft")
    for name, lora in (("lora", LORA), ("full", None)):
        reward = load_reward_model(root / "sft", head_seed=1, lora=lora)
        jolt(reward.parameters_trained(), seed=1)
        reward.calibrate([2.0, 1.0, 0.5], [0.0, -1.0, 1.0])
        reward.save(root / name)
    load_reward_model(tiny.encoder_folder(root / "bert"), head_seed=1).save(root / "encoder")
    load_reward_model(tiny.folder("gpt2"), head_seed=1, template="plain").save(root / "other")
    return {path.name: path for path in root.iterdir()}


def batch(roles: PPORoles) -> TokenBatch:
    return collate(ROWS, roles.policy.pad_id)


@pytest.mark.parametrize(
    ("reward", "lora", "models"),
    [
        ("lora", LORA, 1),  # everything is an adapter on the SFT model
        ("full", LORA, 2),  # value is an adapter on the reward model
        ("encoder", LORA, 2),
        ("other", LORA, 2),
        ("lora", None, 3),  # policy and value are copies; reward is an adapter on the reference
        ("full", None, 4),
        ("encoder", None, 4),
    ],
)
@torch.no_grad()
def test_roles_start_as_they_should_on_as_few_models_as_they_can(
    folders: dict[str, Path], reward: str, lora: LoraConfig | None, models: int
) -> None:
    roles = ppo_roles(folders["sft"], folders[reward], lora, template="chat", max_length=64)
    tokens = batch(roles)
    assert len(roles.backbones) == models

    # Policy = reference = the SFT model, and not the base it came from (correctness 20 and 39).
    sft, base = load_policy(folders["sft"]), load_policy(tiny.folder("llama"))
    expected = sft.logprobs(tokens).logprobs_BR
    assert torch.allclose(roles.policy.logprobs(tokens).logprobs_BR, expected, atol=1e-5)
    assert torch.allclose(roles.reference.logprobs(tokens).logprobs_BR, expected, atol=1e-5)
    assert (base.logprobs(tokens).logprobs_BR - expected).abs().max() > 0.01

    # The reward scores as its own folder does.
    alone = load_reward_model(folders[reward])
    assert roles.reward.score_texts(PROMPTS, ANSWERS) == pytest.approx(alone.score_texts(PROMPTS, ANSWERS), abs=1e-4)
    assert roles.reward.mean == pytest.approx(alone.mean)

    # The value starts as the centred reward (27): V before token t+1 is the score of the row that ends with t.
    values = roles.value.values(tokens)
    if reward != "encoder":
        for b, row in enumerate(ROWS):
            for slot, t in enumerate(range(row.prompt_length, len(row.ids))):
                score = alone.score(collate([Row(row.ids[:t], 1)], roles.policy.pad_id)).item()
                assert values[b, slot].item() == pytest.approx(score - alone.mean, abs=1e-4)
    else:
        assert (values == 0).all()


@pytest.mark.parametrize("reward", ["lora", "full", "encoder"])
@pytest.mark.parametrize("lora", [LORA, ELSEWHERE, None], ids=["lora", "elsewhere", "full"])
def test_training_policy_and_value_moves_neither_reference_nor_reward_nor_each_other(
    folders: dict[str, Path], reward: str, lora: LoraConfig | None
) -> None:
    roles = ppo_roles(folders["sft"], folders[reward], lora, template="chat", max_length=64)
    tokens = batch(roles)

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            scored = (roles.policy, roles.reference)
            values = [role.logprobs(tokens).logprobs_BR for role in scored]
            return [*values, roles.value.values(tokens), torch.tensor(roles.reward.score_texts(PROMPTS, ANSWERS))]

    before = outputs()
    (roles.policy.logprobs(tokens).logprobs_BR.sum() + (roles.value.values(tokens) - 1).pow(2).sum()).backward()
    for trained in (roles.policy.parameters_trained(), roles.value.parameters_trained()):
        assert all(p.requires_grad and p.grad is not None for p in trained.values())
    untrained = [p for b in roles.backbones for p in b.model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in untrained)

    jolt(roles.policy.parameters_trained())
    middle = outputs()
    assert [torch.equal(a, b) for a, b in zip(before, middle, strict=True)] == [False, True, True, True]
    jolt(roles.value.parameters_trained())
    after = outputs()
    assert [torch.equal(a, b) for a, b in zip(middle, after, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("reward", ["lora", "full", "encoder"])
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@torch.no_grad()
def test_policy_and_value_survive_saving(
    folders: dict[str, Path], tmp_path: Path, reward: str, lora: LoraConfig | None
) -> None:
    roles = ppo_roles(folders["sft"], folders[reward], lora, template="chat", max_length=64)
    jolt(roles.policy.parameters_trained())
    jolt(roles.value.parameters_trained(), seed=2)
    roles.value.rescale(2.0, 0.5)
    tokens = batch(roles)
    roles.policy.save(tmp_path / "policy")
    roles.value.save(tmp_path / "value")
    policy = load_policy(tmp_path / "policy", trainable=False)
    value = load_value_model(tmp_path / "value", base=roles.value.source or None)
    expected = roles.policy.logprobs(tokens).logprobs_BR
    assert torch.allclose(policy.logprobs(tokens).logprobs_BR, expected, atol=1e-4)
    assert torch.allclose(value.values(tokens), roles.value.values(tokens), atol=1e-4)


@torch.no_grad()
def test_rescaling_the_value_scales_what_it_says(folders: dict[str, Path]) -> None:
    roles = ppo_roles(folders["sft"], folders["lora"], LORA, template="chat", max_length=64)
    before = roles.value.values(batch(roles))
    roles.value.rescale(0.5, -2.0)
    assert torch.allclose(roles.value.values(batch(roles)), 0.5 * before - 2.0, atol=1e-5)


def test_dropout_is_off_in_every_role_though_activations_are_recomputed(tmp_path: Path) -> None:
    """Correctness 27 and failure 29, on GPT-2, whose configuration has dropout 0.1."""
    load_policy(tiny.folder("gpt2")).save(tmp_path / "sft")
    load_reward_model(tmp_path / "sft", head_seed=0, lora=LORA).save(tmp_path / "reward")
    roles = ppo_roles(
        tmp_path / "sft", tmp_path / "reward", LORA, template="chat", max_length=64, gradient_checkpointing=True
    )
    tokens = batch(roles)
    assert roles.policy.model.training
    assert torch.equal(roles.policy.logprobs(tokens).logprobs_BR, roles.reference.logprobs(tokens).logprobs_BR)
    assert torch.equal(roles.value.values(tokens), roles.value.values(tokens))
