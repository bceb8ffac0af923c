"""Reward models with several scores: objectives, ensembles, judged steps; and the words a score comes from."""

from __future__ import annotations

import itertools
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny
from tests.oracles import rewards
from tests.unit.algorithms.batches import quick
from transformers import AutoModelForSequenceClassification

from assay import rng
from assay.data.pack import collate
from assay.data.render import Row
from assay.data.steps import split_steps
from assay.errors import ConfigError, ModelError
from assay.models.attribution import PIECES, attribute
from assay.models.config import LoraConfig
from assay.models.load_reward import load_reward_model
from assay.models.policy import load_policy
from assay.models.readout import Readout
from assay.models.reward_model import RewardModel
from assay.models.roles import ppo_roles
from assay.types import Prompt

ROWS = [Row([5, 90, 91, 92, 93, 94], 2), Row([5, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], 7), Row([70, 71, 72], 1)]
PROMPTS = [Prompt.ask(text) for text in ("what time is it?", "could you help me, please?", "no")]
ANSWERS = ["of course", "the quick brown fox jumps", "sorry!"]
LORA = LoraConfig(r=2)
TWO = Readout(objectives=("helpful", "harmless"), weights=(1.0, 0.5))


def several(aggregate: str, of: str = "heads") -> Readout:
    return Readout(("helpful", "harmless"), (1.0, 0.5), members=3, of=of, aggregate=aggregate)  # pyright: ignore


@torch.no_grad()
def trained(readout: Readout, lora: LoraConfig | None = None, folder: Path | None = None) -> RewardModel:
    """A calibrated model whose members differ."""
    model = load_reward_model(folder or tiny.folder("llama"), head_seed=0, readout=readout, lora=lora)
    for name, p in model.parameters_trained().items():
        if ".lora_" in name:
            p.add_(torch.randn(p.shape, generator=rng.torch_rng(0, name)) * 0.2)
    for column in range(readout.columns):
        model.calibrate([1.0 + column, 2.0], [0.5, column / 2], column=column)
    return model


def test_the_reward_of_several_objectives_is_their_weighted_sum() -> None:
    model = trained(TWO)
    scores = model.member_scores(PROMPTS, ANSWERS)
    assert scores.shape == (3, 1, 2)
    expected = (scores[:, 0, 0] + 0.5 * scores[:, 0, 1]).tolist()
    assert model.score_texts(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert model.mean == pytest.approx(model.readout.origins[0] + 0.5 * model.readout.origins[1])


def test_other_weights_make_another_reward_and_unknown_objectives_are_refused() -> None:
    model = trained(TWO)
    alone = model.member_scores(PROMPTS, ANSWERS)[:, 0, 1].tolist()
    model.readout = model.readout.reweighed({"harmless": 2.0})
    assert model.score_texts(PROMPTS, ANSWERS) == pytest.approx([2 * score for score in alone], abs=1e-5)
    with pytest.raises(ConfigError, match='no objective "harmles"') as error:
        model.readout.reweighed({"harmles": 1.0})
    assert error.value.hint == 'did you mean "harmless"?'
    with pytest.raises(ConfigError, match="weight 0"):
        model.readout.reweighed({"helpful": 0.0})


@pytest.mark.parametrize("aggregate", ["mean", "worst", "uncertainty"])
@pytest.mark.parametrize("of", ["heads", "adapters"])
def test_an_ensemble_pays_the_aggregate_of_its_members_on_one_origin(aggregate: str, of: str) -> None:
    model = trained(several(aggregate, of), LORA)
    raw = model.member_scores(PROMPTS, ANSWERS).tolist()
    origins = model.readout.origins
    for row, found in zip(raw, model.score_texts(PROMPTS, ANSWERS), strict=True):
        totals = [
            (helpful - origins[2 * m]) + 0.5 * (harmless - origins[2 * m + 1])
            for m, (helpful, harmless) in enumerate(row)
        ]
        assert len({round(total, 4) for total in totals}) == 3, "the members must differ"
        assert found - model.mean == pytest.approx(rewards.ensemble(totals, aggregate, 1.0), abs=1e-4)


def test_calibrating_a_column_moves_the_origin_of_that_column_alone() -> None:
    assert several("mean").calibrated(1, 0.5).calibrated(4, 2.0).origins == (0.0, 0.5, 0.0, 0.0, 2.0, 0.0)


def test_members_that_merely_stand_on_other_origins_do_not_disagree() -> None:
    readout = Readout(("helpful", "harmless"), (1.0, 0.5), members=2, origins=(1.0, 2.0, 8.0, 6.0))
    scores = torch.tensor([[[3.0, 4.0], [10.0, 8.0]], [[1.0, 2.0], [10.0, 6.0]]])  # [B, M, O]
    assert readout.mean == 0.5 * ((1 + 1) + (8 + 3))
    # Above their origins the members stand 2 + 0.5·2 and 2 + 0.5·2, then 0 and 2.
    assert readout.totals(scores).tolist() == [[9.5, 9.5], [6.5, 8.5]]
    assert readout.spread(scores).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("of", ["heads", "adapters"])
@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_an_ensemble_survives_its_folder_and_the_plain_model_says_whether_it_is_exact(
    tmp_path: Path, of: str, aggregate: str
) -> None:
    model = trained(several(aggregate, of), LORA)
    before = model.score_texts(PROMPTS, ANSWERS)
    members = model.member_scores(PROMPTS, ANSWERS)
    model.save(tmp_path)
    again = load_reward_model(tmp_path, trainable=False)
    assert again.readout == model.readout
    assert again.score_texts(PROMPTS, ANSWERS) == pytest.approx(before, abs=1e-4)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    right = collate(ROWS, model.pad_id)
    with torch.no_grad():
        theirs = plain(input_ids=right.input_ids, attention_mask=right.attention_mask.long()).logits.squeeze(1)
        ours = model.scores(right)
    weights = torch.tensor([1.0, 0.5])
    held = (ours @ weights).mean(1) if of == "heads" else ours[:, 0] @ weights  # of adapters, the first member
    assert torch.allclose(theirs, held, atol=1e-4)
    assert plain.config.reward_plain_is_exact == (of == "heads" and aggregate == "mean")
    assert members.shape == (3, 3, 2)


@torch.no_grad()
def test_every_members_adapter_opens_in_plain_peft_with_its_own_score(tmp_path: Path) -> None:
    load_policy(tiny.folder("llama"), trainable=False).save(tmp_path / "sft")
    model = trained(several("mean", "adapters"), LORA, tmp_path / "sft")
    model.save(tmp_path / "reward")
    right = collate(ROWS, model.pad_id)
    ours = model.scores(right) @ torch.tensor([1.0, 0.5])
    for member, name in enumerate(("adapter", "adapter-2", "adapter-3")):
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1)
        opened = peft.PeftModel.from_pretrained(base, str(tmp_path / "reward" / name)).eval()
        theirs = opened(input_ids=right.input_ids, attention_mask=right.attention_mask.long()).logits.squeeze(1)
        assert torch.allclose(ours[:, member], theirs, atol=1e-4)


@pytest.mark.parametrize("of", ["heads", "adapters"])
def test_an_ensemble_on_the_policys_backbone_scores_as_it_does_alone(tmp_path: Path, of: str) -> None:
    load_policy(tiny.folder("llama"), trainable=False).save(tmp_path / "sft")
    model = trained(several("worst", of), LORA, tmp_path / "sft")
    model.save(tmp_path / "first")
    again = load_reward_model(tmp_path / "first") if of == "adapters" else model  # read anew, it still fits the policy
    again.save(tmp_path / "reward")
    roles = ppo_roles(tmp_path / "sft", tmp_path / "reward", LORA)
    assert len(roles.backbones) == 1
    assert roles.reward.score_texts(PROMPTS, ANSWERS) == pytest.approx(model.score_texts(PROMPTS, ANSWERS), abs=1e-4)


def test_an_encoder_may_have_several_scores_too(tmp_path: Path) -> None:
    model = trained(several("uncertainty"), folder=tiny.encoder_folder(tmp_path / "bert"))
    model.save(tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward", trainable=False)
    assert again.score_texts(PROMPTS, ANSWERS) == pytest.approx(model.score_texts(PROMPTS, ANSWERS), abs=1e-4)
    with pytest.raises(ModelError, match="cannot judge its steps"):
        load_reward_model(tmp_path / "bert", head_seed=0, readout=Readout(steps="min"))


def test_steps_are_read_where_they_end_and_later_ones_change_nothing(tmp_path: Path) -> None:
    model = load_reward_model(tiny.folder("llama"), head_seed=0, readout=Readout(steps="product"))
    steps = ["of course", "the quick brown fox", "sorry"]
    together = model.judge(PROMPTS[:1], [steps])[0]
    for count in (1, 2):
        assert torch.allclose(model.judge(PROMPTS[:1], [steps[:count]])[0], together[:count], atol=1e-4)
    mixed = model.judge(PROMPTS, [steps, steps[:1], steps[:2]], batch_size=3)
    assert [len(logits) for logits in mixed] == [3, 1, 2]
    assert torch.allclose(mixed[0], together, atol=1e-4)
    reward = model.score_texts(PROMPTS[:1], ["\n".join(steps)])[0]
    assert reward == pytest.approx(rewards.whole_response(together.tolist(), "product"), abs=1e-4)
    model.save(tmp_path)
    assert load_reward_model(tmp_path).score_texts(PROMPTS[:1], ["\n".join(steps)])[0] == pytest.approx(
        reward, abs=1e-4
    )
    assert model.score_texts(PROMPTS[:1], [""])[0] < 0


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("one line only", ["one line only"]),
        ("First this. Then that! Done?", ["First this.", "Then that!", "Done?"]),
        ("x = 1.5\n\n  y = 2. So\nz\n", ["x = 1.5", "y = 2. So", "z"]),
    ],
)
def test_a_response_is_cut_into_lines_or_else_into_sentences(text: str, steps: list[str]) -> None:
    assert split_steps(text) == steps


WORDS = ("a", "bb", "ccc", "dddd", "eeeee")


def interacting(text: str) -> float:
    """Words are worth their length, and a pair of neighbours one more."""
    words = text.split()
    return sum(map(len, words)) + sum(left < right for left, right in itertools.pairwise(words)) - 0.5


@quick
@given(words=st.lists(st.sampled_from(WORDS), max_size=2 * PIECES))
def test_contributions_add_up_to_the_score_less_that_of_silence(words: list[str]) -> None:
    text = "  ".join(words)
    found = attribute(text, lambda texts: [interacting(text) for text in texts])
    assert sum(value for _, value in found) == pytest.approx(interacting(text) - interacting(""))
    assert " ".join(word for word, _ in found).split() == words
    assert len(found) <= PIECES


@pytest.mark.parametrize("count", [0, 1, PIECES - 1, PIECES, PIECES + 1, 2 * PIECES - 1, 2 * PIECES, 7 * PIECES + 3])
def test_a_long_response_is_read_in_at_most_so_many_phrases(count: int) -> None:
    found = attribute(" ".join("word" for _ in range(count)), lambda texts: [float(len(text)) for text in texts])
    assert len(found) == (count if count <= PIECES else -(-count // -(-count // PIECES))) <= PIECES
    assert sum(len(phrase.split()) for phrase, _ in found) == count


@pytest.mark.parametrize("words", [(), ("a",), ("a", "ccc"), ("ccc", "a", "bb"), WORDS])
def test_where_words_do_not_interact_beyond_pairs_contributions_are_the_exact_shapley_values(
    words: tuple[str, ...],
) -> None:
    def score(text: str) -> float:  # pairs of words, wherever they stand: an order and its reverse see each pair once
        said = text.split()
        return float(sum(map(len, said)) + sum(len(a) * len(b) for i, a in enumerate(said) for b in said[:i]))

    found = attribute(" ".join(words), lambda texts: [score(text) for text in texts])
    assert [value for _, value in found] == pytest.approx(rewards.shapley(words, score))


def test_a_models_attribution_is_complete() -> None:
    model = trained(several("worst"))
    text = "of course: I would be glad to help you"
    whole, silent = model.score_texts([PROMPTS[0]] * 2, [text, ""])
    found = model.attribute(PROMPTS[0], text)
    assert [word for word, _ in found] == text.split()
    assert sum(value for _, value in found) == pytest.approx(whole - silent, abs=1e-4)
    assert max(abs(value) for _, value in found) > 1e-3
