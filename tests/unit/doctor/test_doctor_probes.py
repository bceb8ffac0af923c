"""Probes and toy runs: a fault that is put into them is named first, and without one nothing is found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.doctor_trial import faults_models as trial
from bench.doctor_trial.fault import Fault

from assay.data.pack import collate
from assay.data.render import Renderer, Row
from assay.doctor import direct, probe_batch, probe_policy, probe_reward, reward, sft
from assay.doctor.detector import DETECTORS, examine
from assay.doctor.probe_policy import PolicyProbe, logprobs, tokenizer_mismatch
from assay.models.locate import locate
from assay.models.policy import Policy
from assay.models.roles import load_policy
from assay.models.scratch import train_tokenizer
from assay.types import Prompt

PARTS = (direct, probe_batch, probe_policy, probe_reward, reward, sft)
MINE = [d for d in DETECTORS if d.find.__module__ in {part.__name__ for part in PARTS}]
"""What this file is about, whichever other detectors the session has imported."""

CHEAP = {
    "accumulation-bias",
    "accuracy-against-margin",
    "constant-scores",
    "frozen-adapter-blocks",
    "head-lost",
    "kl-before-training",
    "mask-ignored",
    "not-finite",
    "padding-changes-score",
    "reward-at-chance",
    "right-padded-prompts",
    "sampler-differs",
    "stuck-at-ln2",
    "tokenizer-mismatch",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "fault", [f for f in trial.FAULTS if f.mode in CHEAP], ids=lambda fault: f"{fault.mode}: {fault.what}"
)
def test_an_injected_fault_is_named_first(fault: Fault, tmp_path: Path) -> None:
    given = examine(fault.evidence(tmp_path), MINE)
    assert given.causes[0].mode.name == fault.mode
    assert given.findings[0].evidence


def test_healthy_runs_and_models_are_green_and_nearly_everything_is_checked(tmp_path: Path) -> None:
    given = examine(trial.healthy(tmp_path), MINE)
    assert given.findings == ()
    unchecked = {(one.mode.name, one.where) for one in given.unchecked}
    assert unchecked <= {("overfitting", "reward"), ("saturated-early", "preference"), ("saturated-early", "reward")}


def test_every_fault_is_of_a_mode_that_is_looked_for_and_has_a_page() -> None:
    looked_for = {mode.name: mode for detector in MINE for mode in detector.modes}
    assert {fault.mode for fault in trial.FAULTS} == looked_for.keys()
    root, elsewhere = Path(__file__).parents[3], "too-good-to-be-true"  # of which a probe sees one cause only
    assert [name for name, mode in looked_for.items() if not (root / mode.page).exists()] in ([], [elsewhere])


def weights_and_gradients(probe: PolicyProbe) -> list[torch.Tensor]:
    parameters = probe.policy.parameters_trained().values()
    return [p.detach().clone() for p in parameters] + [p.grad.clone() for p in parameters if p.grad is not None]


def test_probes_change_no_weight_and_no_gradient() -> None:
    policy, judge = trial.policy_probe(), trial.reward_probe()
    loss = policy.policy.logprobs(collate(policy.rows, policy.policy.pad_id)).logprobs_BR.sum()
    loss.backward()
    before = weights_and_gradients(policy)
    scores = judge.model.score_texts([p.prompt for p in judge.pairs], [p.chosen for p in judge.pairs])
    examine([policy, judge], MINE)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_and_gradients(policy), strict=True))
    assert judge.model.score_texts([p.prompt for p in judge.pairs], [p.chosen for p in judge.pairs]) == scores


def why_not(probe: object) -> dict[str, str]:
    return {one.mode.name: one.why for one in examine([probe], MINE).unchecked}  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("apart", "exact", "found"), [(0.004, True, True), (0.004, False, False), (0.05, False, True)])
def test_two_splits_may_differ_by_what_products_are_rounded_by(apart: float, exact: bool, found: bool) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))

    def gradient(size: int | None) -> None:
        weight.grad = torch.tensor([1.0 if size is None else 1.0 + apart])

    probe = probe_batch.StepProbe(gradient, {"weight": weight}, exact=exact)
    assert bool(list(probe_batch.accumulation_bias(probe))) is found


def test_what_a_probe_was_not_given_is_unchecked() -> None:
    probe = trial.policy_probe(trial.load_policy(trial.sft_model()), reference=None, engine=None)
    assert why_not(replace(probe, rows=probe.rows[:1])) == {
        "mask-ignored": "rows of unequal length are needed: none is padded",
        "kl-before-training": "only before its first step, and where there is a reference, has a policy to be the same",
        "wrong-reference": "there is no reference that was loaded in another way than the SFT model",
        "sampler-differs": "a sampler and prompts are needed",
        "frozen-adapter-blocks": "the policy has no adapter that trains",
    }
    assert set(why_not(trial.reward_probe(pairs=[])).values()) == {"no pair to ask the reward model about"}


def test_a_policy_that_has_learnt_may_differ_from_its_reference() -> None:
    probe = trial.policy_probe()
    with torch.no_grad():
        for parameter in probe.policy.parameters_trained().values():
            parameter.add_(0.1)
    assert [f.mode.name for f in examine([probe], MINE).findings] == ["kl-before-training"]
    assert examine([replace(probe, fresh=False)], MINE).findings == ()


def test_ids_beyond_the_embeddings_are_told_before_anything_is_computed() -> None:
    probe = trial.policy_probe()
    beyond = replace(probe, rows=[trial.Row([1, 100_000, 2], 1)])
    (finding,) = examine([beyond], MINE).findings
    assert finding.sureness == "certain"
    assert "token 100000" in finding.evidence


UNFAMILIAR = {
    "english": "Freedom of the press is one of the bulwarks of liberty, and can never be restrained but by despots",
    "german": "Die Würde des Menschen ist unantastbar und ganze staatliche Gewalt hat sie zu achten und zu schützen",
    "code": "def squares(limit): return {number: number ** 2 for number in range(limit) if number % 3 == 0}",
    "chinese": "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待",
}


@pytest.fixture(scope="module")
def embedded() -> Policy:
    return load_policy(locate("embedded"), trainable=False, device="cpu")


def rows_of(renderer: Renderer, text: str) -> list[Row]:
    turns = [(text[start : start + 30], text[start + 30 :]) for start in range(4)]
    return [row for asked, answer in turns if (row := renderer.row(Prompt.ask(asked), answer))]


@pytest.mark.parametrize("language", UNFAMILIAR)
def test_text_that_a_small_model_has_never_read_the_like_of_is_no_wrong_tokenizer(
    embedded: Policy, language: str
) -> None:
    rows = rows_of(embedded.renderer("chat", 48), UNFAMILIAR[language])
    assert logprobs(embedded, rows).mean() < -math.log(len(embedded.tokenizer)) - 1, "less likely than by a guess"
    assert list(tokenizer_mismatch(PolicyProbe(embedded, rows))) == []


@pytest.mark.parametrize("language", ["english", "german"])
def test_a_tokenizer_of_other_texts_is_a_wrong_one(embedded: Policy, language: str) -> None:
    own = embedded.tokenizer
    guide = " ".join(page.read_text() for page in (Path(__file__).parents[3] / "docs" / "doctor").glob("*.md"))
    try:
        embedded.tokenizer = train_tokenizer([guide], len(own))
        rows = rows_of(Renderer(embedded.tokenizer, max_length=48), UNFAMILIAR[language])
        (finding,) = tokenizer_mismatch(PolicyProbe(embedded, rows))
    finally:
        embedded.tokenizer = own
    assert "tell tokens that begin a word from others with an AUC of 0." in finding.evidence
