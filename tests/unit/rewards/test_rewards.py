"""The reward of a reward model: what it is centred on, and what it sees."""

from __future__ import annotations

import pytest
from tests import tiny

from assay.models.load_reward import load_reward_model
from assay.rewards.learned import LearnedReward
from assay.types import FinishReason, Prompt

PROMPTS = [Prompt.ask("what time is it?"), Prompt.ask("could you help me, please?")]
ANSWERS = ["of course", "sorry, I cannot do that!"]
ENDS: list[FinishReason] = ["stop", "length"]


def test_a_learned_reward_is_the_score_less_the_mean_of_the_held_out_scores() -> None:
    model = load_reward_model(tiny.folder("llama"), head_seed=0)
    model.calibrate([3.0, 2.0], [1.0, 1.5])
    raw = model.score_texts(PROMPTS, ANSWERS, ENDS)
    reward = LearnedReward(model, batch_size=1)(PROMPTS, ANSWERS, ENDS)
    assert reward == pytest.approx([score - model.mean for score in raw], abs=1e-5)


def test_a_reward_model_sees_whether_a_response_ended() -> None:
    reward = LearnedReward(load_reward_model(tiny.folder("llama"), head_seed=0), batch_size=8)
    ended, cut = (reward(PROMPTS[:1], ANSWERS[:1], [finish])[0] for finish in ("stop", "length"))
    assert ended != pytest.approx(cut, abs=1e-4)
