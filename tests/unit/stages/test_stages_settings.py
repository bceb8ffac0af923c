"""What the settings of stages promise: published defaults, and nothing that trains on another distribution."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from assay.errors import ConfigError
from assay.pipeline.recipe import load_recipe
from assay.stages.config import PPOConfig, RewardConfig

RESTRICTED = [
    {"top_p": 0.9},
    {"top_k": 5},
    {"repetition_penalty": 1.2},
    {"no_repeat_ngram": 3},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("sampling", RESTRICTED, ids=lambda sampling: next(iter(sampling)))
def test_ppo_refuses_to_sample_from_another_distribution_than_it_trains(sampling: dict[str, float]) -> None:
    """Correctness 16: a token's log-probability would not be that of the distribution it was drawn from."""
    with pytest.raises(ValidationError, match="leave top_p"):
        PPOConfig.model_validate({"sampling": sampling})
    (key, value), *_ = sampling.items()
    with pytest.raises(ConfigError, match="leave top_p"):
        load_recipe("sandbox", (f"ppo.sampling.{key}={value}",), {})


def test_ppo_takes_what_only_scales_or_ends_the_distribution() -> None:
    sampling = {"temperature": 0.7, "max_new_tokens": 16, "stop": ["\n\nHuman:"]}
    assert PPOConfig.model_validate({"sampling": sampling}).sampling.unrestricted


def test_ppos_defaults_are_those_of_the_reference() -> None:
    """Correctness 31, N+ (arXiv 2403.17031). Its value coefficient has no counterpart: the critic's optimizer is its
    own. Its temperature is not the default either: what is trained here is what is served."""
    config = PPOConfig()
    assert (config.optim.learning_rate, config.optim.eps) == (3e-6, 1e-5)
    assert (config.inner_epochs, config.clip, config.value_clip) == (4, 0.2, 0.2)
    assert (config.gamma, config.lam, config.kl_coef) == (1.0, 0.95, 0.05)
    assert config.kl_horizon == 1e4
    assert config.value_learning_rate is None
    assert config.sampling.temperature == 1.0


def test_a_reward_model_is_trained_for_one_epoch() -> None:
    """Correctness 13: more than one pass soon overfits (InstructGPT, arXiv 2203.02155, C.2)."""
    assert RewardConfig().epochs == 1


@pytest.mark.parametrize("recipe", ["hh", "instructgpt"])
def test_recipes_of_published_models_aim_at_the_published_kl(recipe: str) -> None:
    """lm-human-preferences (arXiv 1909.08593): target 6 nats, horizon 1e4 episodes; the rest as in N+."""
    for ppo in stages(recipe, "ppo"):
        assert (ppo.kl_target, ppo.kl_horizon) == (6.0, 1e4)
        assert (ppo.optim.eps, ppo.clip, ppo.inner_epochs, ppo.lam) == (1e-5, 0.2, 4, 0.95)


def test_the_instructgpt_recipe_names_instructgpts_reward_model() -> None:
    (reward,) = stages("instructgpt", "reward")
    assert (reward.optim.learning_rate, reward.epochs) == (9e-6, 1)


def test_the_hh_recipe_is_the_one_it_says_it_is() -> None:
    lora = [stage.lora for kind in ("sft", "reward", "ppo") for stage in stages("hh", kind)]
    assert [(one.r, one.alpha, one.target_modules) for one in lora] == [(8, 16, ("q_proj", "v_proj"))] * 3
    assert stages("hh", "reward")[0].margin == 0.5


def stages(recipe: str, kind: str) -> list[Any]:
    """Settings of a shipped recipe's stages of one kind, resolved."""
    found = [node.config for node in load_recipe(recipe, (), {}).graph if node.kind == kind]
    assert found
    return found
