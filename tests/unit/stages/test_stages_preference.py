"""Direct preference optimisation on the toy task: losses of a real model, learning, resuming, KTO's pairs, settings."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.oracles import direct as oracle
from tests.unit.algorithms.batches import quick
from tests.unit.stages.toy import QUESTIONS, Memory, run_in_two_parts, same, toy_data, weights
from transformers import AutoModelForCausalLM

from assay.data.prepared import Splits
from assay.data.render import Renderer, Row
from assay.data.stored import Lazily, Writer
from assay.data.tokens import RowCode
from assay.errors import DataError
from assay.models.config import LoraConfig
from assay.models.roles import Policy, load_policy
from assay.pipeline.inputs import needs
from assay.rollout import collect
from assay.rollout.config import SamplingParams
from assay.rollout.sampler import Generation
from assay.stages import preference
from assay.stages.config import PreferenceConfig
from assay.stages.config.preference import PRESETS
from assay.stages.context import StageInputs
from assay.stages.direct import Example, Learner, examples_of, mismatched, plan
from assay.types import Preference, Prompt, Verdict

LORA = LoraConfig(r=8, alpha=16, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))


def settings(method: str = "dpo", **changes: Any) -> PreferenceConfig:
    return PreferenceConfig.model_validate(
        {
            "method": method,
            "batch_size": 16,
            "max_length": 32,
            "optim": {"learning_rate": 3e-4, "schedule": "constant"},
            "sampling": SamplingParams(max_new_tokens=4),
            "validate_every": 3,
            "checkpoint_every": 2,
            **changes,
        }
    )


def blue(folder: Path) -> float:
    """Mean probability of the answer that everyone prefers, exactly."""
    policy = load_policy(folder, trainable=False)
    learner = Learner(policy, settings(), "cpu")
    renderer = Renderer(policy.tokenizer, max_length=32)
    rows = [row for question in QUESTIONS if (row := renderer.row(question, "blue"))]
    with torch.no_grad():
        return learner.logprobs(policy, rows).logprobs_BR.sum(1).exp().mean().item()


def brute_force(folder: Path, row: Row) -> list[float]:
    """log p of each response token, from the whole distribution, one row at a time and without padding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logprobs = model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
    return [logprobs[t - 1, row.ids[t]].item() for t in range(row.prompt_length, len(row.ids))]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *((method, {}) for method in PRESETS),
        ("dpo", {"margin": 0.3, "link": "jensen_shannon"}),
        ("dpo", {"link": "forward_kl"}),
        ("dpo", {"link": "alpha", "alpha": 0.3}),
        ("hinge", {"margin": 0.4}),
        ("kto", {"desirable_weight": 1.7}),
    ],
)
def test_every_methods_loss_of_a_real_model_is_the_definitions(
    method: str, changes: dict[str, Any], base: Path, sft_folder: Path
) -> None:
    """The policy is the SFT model, the reference its untrained base; rows of unequal length share a padded batch."""
    config = settings(method, micro_batch_size=2, **changes)
    policy, reference = load_policy(sft_folder, trainable=False), load_policy(base, trainable=False)
    renderer = Renderer(policy.tokenizer, max_length=32)
    texts = [("blue", "red"), ("green", "grass blue"), ("amber blue red", "green")]
    pairs = [(renderer.row(q, good), renderer.row(q, bad)) for q, (good, bad) in zip(QUESTIONS, texts, strict=False)]
    batch = examples_of([(c, r) for c, r in pairs if c and r], [], config, 0)
    learner = Learner(policy, config, "cpu")
    with torch.no_grad():
        measured = learner.step(batch, learner.reference(reference, batch))

    def ratio(row: Row) -> float:
        against = sum(brute_force(base, row)) if config.reference else 0.0
        return oracle.log_ratio(brute_force(sft_folder, row), against, per_token=config.length_normalised)

    if config.paired:
        rewards = [[oracle.reward(ratio(row), config.link, config.alpha) for row in (e.row, e.other)] for e in batch]
        knobs = {"beta": config.beta, "margin": config.margin, "smoothing": config.label_smoothing}
        expected = sum(oracle.pair(config.loss, good - bad, **knobs) for good, bad in rewards) / len(batch)
        expected += config.nll_weight * oracle.nll([brute_force(sft_folder, e.row) for e in batch])
    else:
        z0 = oracle.baseline([ratio(e.other) for e in batch])
        knobs = {"baseline": z0, "beta": config.beta, "desirable": config.desirable_weight}
        expected = sum(oracle.verdict(ratio(e.row), e.good, **knobs) for e in batch) / len(batch)
    chosen = [sum(brute_force(sft_folder, e.row)) for e in batch if e.good]
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)
    assert measured["chosen_logprob"] == pytest.approx(sum(chosen) / len(chosen), rel=1e-4)


def test_ktos_baseline_is_of_the_mismatched_answers(base: Path, sft_folder: Path) -> None:
    learner = Learner(load_policy(sft_folder, trainable=False), settings("kto", micro_batch_size=2), "cpu")
    renderer = Renderer(learner.policy.tokenizer, max_length=32)
    likely, odd = ([renderer.row(q, text) for q in QUESTIONS[:3]] for text in ("blue", "grass fire"))
    batch = [Example(bad, good) for bad, good in zip(odd, likely, strict=True) if good and bad]
    reference_BE = learner.reference(load_policy(base, trainable=False), batch)
    expected = [sum(brute_force(sft_folder, e.other)) - sum(brute_force(base, e.other)) for e in batch]
    assert learner.baseline(batch, reference_BE).item() == pytest.approx(oracle.baseline(expected), rel=1e-4)
    assert oracle.baseline(expected) > 1


@pytest.mark.parametrize(
    # So small a base has hardly any features for an adapter to turn: full training is held to more.
    ("method", "changes", "gain"),
    [
        ("dpo", {"lora": LORA, "optim": {"learning_rate": 3e-3, "schedule": "constant"}}, 1.1),
        ("dpo", {"optim": {"learning_rate": 1e-3, "schedule": "constant"}}, 1.3),
        ("kto", {}, 1.3),
    ],
    ids=["dpo-lora", "dpo-full", "kto-full"],
)
def test_the_policy_learns_what_is_preferred(
    method: str, changes: dict[str, Any], gain: float, sft_folder: Path, tmp_path: Path
) -> None:
    ctx = Memory(tmp_path)
    report = preference.run(settings(method, epochs=3, **changes), StageInputs(toy_data(), str(sft_folder)), ctx)
    at_start = math.log(2) if method == "dpo" else 0.5
    assert report["loss_first"] == pytest.approx(at_start, abs=1e-5)
    assert report["validation_loss_before"] == pytest.approx(at_start, abs=1e-5)
    assert report["validation_loss"] < at_start - 0.02
    assert report["validation_loss"] == min(m["eval/loss"] for m in ctx.logged.values() if "eval/loss" in m)
    assert report["kl"] > 0.01
    assert blue(tmp_path) > gain * blue(sft_folder)
    assert "reward_after" not in report  # nobody scores the answers
    assert all(row["reward_after"] is None for row in ctx.texts)


def test_rounds_learn_from_the_policys_own_answers(sft_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    config = settings(
        reward="reward", rounds=5, round_prompts=32, answers=4, optim={"learning_rate": 1e-3, "schedule": "constant"}
    )
    inputs = StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder), truth=lambda p, r: [1.0] * len(r))
    ctx = Memory(tmp_path)
    report = preference.run(config, inputs, ctx)
    rewards = [measured["objective/reward"] for measured in ctx.logged.values()]
    assert rewards[-1] > rewards[0]
    assert blue(tmp_path) > 1.3 * blue(sft_folder)
    assert report["examples"] == sum(round(32 * m["objective/compared"]) for m in ctx.logged.values())
    assert all(m["objective/truth"] == 1.0 for m in ctx.logged.values())


def test_the_weights_of_the_best_validation_are_kept(sft_folder: Path, tmp_path: Path) -> None:
    """Held-out people want the opposite, so that every step after the first makes it worse."""
    pairs = toy_data().preferences.train[::4]
    opposite = [Preference(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]
    inputs = StageInputs(replace(toy_data(), preferences=Splits(pairs, opposite, [])), str(sft_folder))
    config, ctx = settings(validate_every=1), Memory(tmp_path)
    report = preference.run(config, inputs, ctx)
    learner = Learner(load_policy(tmp_path, trainable=False), config, "cpu")
    renderer = Renderer(learner.policy.tokenizer, max_length=32)
    held_out = preference.data_examples(renderer, inputs, "validation", config, 0)
    with torch.no_grad():
        reference_NE = learner.reference(load_policy(sft_folder, trainable=False), held_out)
        kept = learner.step(held_out, reference_NE)["loss"]
    losses = [measured["eval/loss"] for measured in ctx.logged.values()]
    assert report["best_step"] == 1
    assert kept == pytest.approx(losses[0], abs=1e-6)
    assert report["validation_loss"] == losses[0] < min(losses[1:]) - 1e-4


def test_looking_at_the_validation_pairs_teaches_nothing(sft_folder: Path, tmp_path: Path) -> None:
    pairs = toy_data().preferences.train[::4]
    inputs = StageInputs(replace(toy_data(), preferences=Splits(pairs, pairs, [])), str(sft_folder))
    often = preference.run(settings(validate_every=1), inputs, Memory(tmp_path / "often"))
    once = preference.run(settings(validate_every=100), inputs, Memory(tmp_path / "once"))
    assert often["best_step"] == once["best_step"] == once["steps"] > 1
    assert same(weights(tmp_path / "often"), weights(tmp_path / "once"))


def test_of_the_answers_to_a_prompt_the_best_is_held_against_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {"so-so": 1.0, "bad": 0.0, "good": 2.0, "equal": 1.0}
    said = ["so-so", "bad", "good", "equal", "equal", "equal", "good", "so-so", "bad"]
    cut_off = (6, 8)

    def sample(engine: object, asked: list[Prompt], params: object, seed: int) -> list[Generation]:
        return [
            Generation(q, [1], [10 + i], [0.0], text, "length" if i in cut_off else "stop")
            for i, (q, text) in enumerate(zip(asked, said, strict=True))
        ]

    monkeypatch.setattr(collect, "sample", sample)
    examples, measured = preference.compare_answers(
        cast("Any", None),
        QUESTIONS[:3],
        lambda prompts, responses, finishes: [worth[text] for text in responses],
        StageInputs(toy_data(), ""),
        settings(reward="reward", rounds=1, answers=3),
        seed=0,
    )
    # Equal answers teach nothing, and one that was cut off is no example to follow, whatever its score.
    assert [(e.row.ids, e.other.ids) for e in examples] == [([1, 12], [1, 11]), ([1, 17], [1, 18])]
    assert measured == {"objective/reward": 1.0, "objective/compared": pytest.approx(2 / 3)}


def test_every_round_has_its_own_prompts_noise_and_rates_and_the_same_reference(
    sft_folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[Prompt, ...], int]] = []
    compare = preference.compare_answers

    def watched(engine: Any, prompts: Any, reward: Any, inputs: Any, config: Any, seed: int) -> Any:
        asked.append((tuple(prompts), seed))
        return compare(engine, prompts, reward, inputs, config, seed)

    monkeypatch.setattr(preference, "compare_answers", watched)
    optim = {"learning_rate": 3e-3, "schedule": "linear", "warmup": 0.0}
    config = settings(reward="reward", rounds=3, round_prompts=16, answers=4, optim=optim)
    ctx = Memory(tmp_path)
    preference.run(config, StageInputs(toy_data(), str(sft_folder), reward=str(reward_folder)), ctx)
    assert len(set(asked)) == len({prompts for prompts, _ in asked}) == len({seed for _, seed in asked}) == 3
    rates = [ctx.logged[number]["train/learning_rate"] for number in (1, 2, 3)]
    assert rates == pytest.approx([3e-3, 2e-3, 1e-3])
    losses = [ctx.logged[number]["train/loss"] for number in (1, 2, 3)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert min(abs(loss - math.log(2)) for loss in losses[1:]) > 1e-3  # a reference that follows would be met anew


@pytest.mark.parametrize("method", ["rpo", "kto"])
def test_micro_batches_change_no_gradient(method: str, sft_folder: Path) -> None:
    def gradients(size: int | None) -> dict[str, torch.Tensor]:
        config = settings(method, micro_batch_size=size)
        learner = Learner(load_policy(sft_folder), config, "cpu")
        renderer = Renderer(learner.policy.tokenizer, max_length=32)
        inputs = StageInputs(toy_data(), str(sft_folder))
        batch = preference.data_examples(renderer, inputs, "test", config, 0)[:16]
        shifted = learner.reference(learner.policy, batch) - 0.3  # as if the policy had moved already
        learner.step(batch, shifted)
        return {name: p.grad for name, p in learner.policy.parameters_trained().items() if p.grad is not None}

    whole = gradients(None)
    for size in (1, 5):
        parts = gradients(size)
        assert whole.keys() == parts.keys()
        assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-5
    assert max(gradient.abs().max().item() for gradient in whole.values()) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{"lora": LORA}, {"method": "kto"}, {"lora": LORA, "reward": "reward", "rounds": 4, "round_prompts": 8}],
    ids=["dpo", "kto", "rounds"],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    changes: dict[str, Any], sft_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    config = settings(**changes)
    data = toy_data()
    data = replace(data, preferences=Splits(data.preferences.train[::3], data.preferences.validation[::5], []))
    inputs = StageInputs(data, str(sft_folder), reward=str(reward_folder) if config.reward else None)
    whole = preference.run(config, inputs, Memory(tmp_path / "whole"))
    (tmp_path / "parts").mkdir()
    parts = run_in_two_parts(preference.run, config, inputs, Memory(tmp_path / "parts"), stop_at=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert whole == parts


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_reference_is_the_sft_model_whatever_the_policy_has_become(
    lora: LoraConfig | None, sft_folder: Path
) -> None:
    policy = load_policy(sft_folder, lora=lora)
    row = Renderer(policy.tokenizer, max_length=32).row(QUESTIONS[0], "blue")
    assert row is not None
    learner = Learner(policy, settings(), "cpu")
    examples = [Example(row, row)]
    before = learner.reference(policy, examples)
    with torch.no_grad():
        for parameter in policy.parameters_trained().values():
            parameter.add_(0.1)
    assert not torch.allclose(learner.reference(policy, examples), before)
    assert torch.equal(learner.reference(preference.reference_of(policy, "cpu"), examples), before)


def test_another_beta_or_loss_reads_the_references_probabilities_and_does_not_run_it(
    sft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = StageInputs(toy_data(), str(sft_folder), cache=tmp_path / "cache")
    other = settings("ipo", beta=0.3)
    alone = preference.run(other, replace(kept, cache=None), Memory(tmp_path / "alone"))
    preference.run(settings(beta=0.1), kept, Memory(tmp_path / "first"))

    def never(*_: object) -> torch.Tensor:
        raise AssertionError("the reference was run again")

    monkeypatch.setattr(Learner, "reference", never)
    assert preference.run(other, kept, Memory(tmp_path / "second")) == alone
    assert same(weights(tmp_path / "second"), weights(tmp_path / "alone"))


def test_another_model_other_rows_and_a_damaged_file_are_no_hit(base: Path, sft_folder: Path, tmp_path: Path) -> None:
    rows: list[int] = []

    class Watched(Learner):
        def reference(self, policy: Policy, examples: Any) -> torch.Tensor:
            rows.append(len(examples))
            return super().reference(policy, examples)

    def asked(folder: Path, **changes: Any) -> torch.Tensor:
        config, inputs = settings(**changes), StageInputs(toy_data(), str(folder))
        policy = load_policy(folder, trainable=False)
        renderer = policy.renderer(inputs.template, config.max_length)
        examples = preference.data_examples(renderer, inputs, "train", config, 0)
        return preference.reference_logprobs(Watched(policy, config, "cpu"), examples, tmp_path)

    first = asked(sft_folder)
    assert torch.equal(asked(sft_folder, beta=0.9), first)
    assert len(rows) == 1
    assert not torch.equal(asked(base), first)
    assert len(asked(sft_folder, part=(1, 2))) < len(first)
    assert not torch.equal(asked(sft_folder, max_length=8), first)
    assert len(rows) == len(list(tmp_path.iterdir())) == 4
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(asked(sft_folder), first)
    assert rows[4:] == [len(first)]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_examples_stay_on_disk(method: str, tmp_path: Path) -> None:
    """A few numbers a pair are in memory, whatever the length of its rows."""
    pairs, length = 2000, 400
    words = np.random.default_rng(0).integers(1000, 60000, (2 * pairs, length))
    code = RowCode(np.dtype(np.uint16))
    with (tmp_path / "rows").open("wb+") as file:
        writer = Writer(code.encode, file)
        for number, ids in enumerate(words.tolist()):
            writer.add(Row([number // 2, *ids], 1))
        rows = cast("Sequence[Row]", writer.stored(code.decode))
        del words
        tracemalloc.start()
        both = Lazily(np.arange(pairs), lambda number: (rows[2 * number], rows[2 * number + 1]))
        examples = examples_of(both, [], settings(method, max_length=512), 0)
        steps = plan(examples, settings(method), 0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sum(map(len, steps)) == len(examples)
    in_memory = 8 * 2 * pairs * length
    assert peak < 300 * len(examples) < in_memory / 10


@quick
@given(prompts=st.lists(st.integers(0, 5), min_size=2, max_size=24), seed=st.integers(0, 5))
def test_mismatched_answers_are_a_derangement_and_belong_to_other_prompts(prompts: list[int], seed: int) -> None:
    rows = [Row([prompt, prompt, 100 + place], 2) for place, prompt in enumerate(prompts)]
    others = list(mismatched(rows, seed, 8))
    assert [other.ids[:2] for other in others] == [row.ids[:2] for row in rows]
    taken = [other.ids[2] - 100 for other in others]
    assert sorted(taken) == list(range(len(rows)))
    assert all(place != own for own, place in enumerate(taken))
    if 2 * max(Counter(prompts).values()) <= len(prompts):
        assert all(prompts[place] != prompts[own] for own, place in enumerate(taken))


def test_mismatched_rows_are_cut_to_the_context() -> None:
    rows = [Row([1, 1, 1, 7], 3), Row([2, 8, 8, 8], 1)]
    assert [row.ids for row in mismatched(rows, 0, 4)] == [[1, 1, 1, 8], [2, 7]]


def test_another_seed_mismatches_answers_in_another_way() -> None:
    rows = [Row([prompt, 100 + prompt], 1) for prompt in range(12)]
    first, again, other = (list(mismatched(rows, seed, 8)) for seed in (0, 0, 1))
    assert first == again != other


def test_ktos_batches_hold_good_and_bad_answers_though_the_bad_ones_are_longer() -> None:
    good, bad = Row([1, 2, 3], 1), Row([1, *range(20)], 1)
    examples = [Example(good, good, True), Example(bad, bad, False)] * 32
    steps = plan(examples, settings("kto"), 0)
    assert sorted(i for batch in steps for i in batch) == list(range(64))
    assert all({examples[i].good for i in batch} == {True, False} for batch in steps)


def test_kto_learns_from_verdicts_alone_and_takes_a_pair_as_two(base: Path) -> None:
    renderer = Renderer(load_policy(base, trainable=False).tokenizer, max_length=32)
    data = toy_data()
    verdicts = [Verdict(question, "blue", True) for question in QUESTIONS]
    config = settings("kto")
    only = StageInputs(replace(data, preferences=Splits(), verdicts=Splits(verdicts)), "")
    both = StageInputs(replace(data, verdicts=Splits(verdicts)), "")
    assert [e.good for e in preference.data_examples(renderer, only, "train", config, 0)] == [True] * 6
    mixed = Counter(e.good for e in preference.data_examples(renderer, both, "train", config, 0))
    pairs = len(data.preferences.train)
    assert mixed == {True: pairs + 6, False: pairs}


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_parts_of_the_comparisons_are_disjoint_and_together_all(method: str, base: Path) -> None:
    renderer = Renderer(load_policy(base, trainable=False).tokenizer, max_length=32)
    inputs = StageInputs(replace(toy_data(), verdicts=Splits([Verdict(QUESTIONS[0], "blue", True)])), "")

    def rows(split: str, *part: int) -> Counter[tuple[int, ...]]:
        config = settings(method, **({"part": part} if part else {}))
        return Counter(tuple(e.row.ids) for e in preference.data_examples(renderer, inputs, split, config, 0))

    one, other = rows("train", 1, 2), rows("train", 2, 2)
    assert one
    assert other
    assert one + other == rows("train")
    asked = [tuple(row.ids[: row.prompt_length]) for q in QUESTIONS if (row := renderer.row(q, "blue"))]
    in_both = [start for start in asked if all(any(ids[: len(start)] == start for ids in p) for p in (one, other))]
    assert not in_both
    assert rows("test", 1, 2) == rows("test")  # what is held out is held out for everyone


def test_comparisons_that_do_not_fit_are_one_error(sft_folder: Path, tmp_path: Path) -> None:
    empty = replace(toy_data(), preferences=Splits())
    with pytest.raises(DataError, match="no comparison fits"):
        preference.run(settings(), StageInputs(empty, str(sft_folder)), Memory(tmp_path))


@pytest.mark.parametrize("method", PRESETS)
def test_a_method_fills_what_is_left_open_and_a_resolved_recipe_says_the_same(method: str) -> None:
    config = PreferenceConfig.model_validate({"method": method})
    assert {name: getattr(config, name) for name in PRESETS[method]} == PRESETS[method]
    assert PreferenceConfig.model_validate(config.model_dump(mode="json")) == config
    assert PreferenceConfig.model_validate({"method": method, "beta": 0.7}).beta == 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "ipo", "reference": False}, "loss squared needs the reference"),
        ({"method": "kto", "reference": False}, "loss kto needs the reference"),
        ({"link": "jensen_shannon", "reference": False}, "link jensen_shannon needs the reference"),
        ({"method": "orpo", "reference": True}, "link log_odds needs reference: false"),
        ({"method": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"method": "ipo", "label_smoothing": 0.1}, "loss squared has no label_smoothing"),
        ({"method": "ipo", "margin": 1.0}, "loss squared has no margin"),
        ({"method": "kto", "nll_weight": 1.0}, "no chosen answers"),
        ({"method": "kto", "link": "alpha"}, "link reverse_kl"),
        ({"desirable_weight": 2.0}, "desirable_weight is for loss kto"),
        ({"rounds": 2}, "rounds need `reward`"),
        ({"answers": 1}, "greater than or equal to 2"),
    ],
)
def test_choices_that_do_not_fit_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferenceConfig.model_validate(given)


@pytest.mark.parametrize(
    ("config", "first"),
    [
        ({}, "preferences_train"),
        ({"method": "kto"}, "preferences_train or verdicts_train"),
        ({"rounds": 2, "reward": "r"}, "prompts_train"),
    ],
)
def test_what_the_data_must_hold_depends_on_the_method(config: dict[str, Any], first: str) -> None:
    assert needs(PreferenceConfig.model_validate(config)) == (first, "prompts_test")
