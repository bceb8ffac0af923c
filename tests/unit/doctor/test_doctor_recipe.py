"""What the doctor says before a run: settings, room, prompts, roles; each limit from both sides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from bench.doctor_trial.faults_data import tokenizer_of

from assay.data.render import Renderer
from assay.doctor import recipe as doctor
from assay.doctor import tokens as doctor_of_tokens
from assay.doctor.detector import Missing
from assay.doctor.finding import Finding
from assay.doctor.recipe import Disk, Memory, Planned, Refusals, RewardFolder, Vocabularies, Weights, usual_rate
from assay.doctor.tokens import Prompts, Tokens
from assay.pipeline.recipe import load_recipe
from assay.types import Demonstration, Prompt

EMBEDDED, GPT2, SEVEN_BILLION = 975_616, 124_439_808, 7_000_000_000


def planned(kind: str = "sft", parameters: int | None = GPT2, **config: Any) -> Planned:
    rate = config.pop("learning_rate", 2e-5)
    return Planned(kind, kind, {"batch_size": 32, "optim": {"learning_rate": rate}, "lora": None, **config}, parameters)


def severities(findings: Iterable[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


@pytest.mark.parametrize(
    ("size", "rate"),
    [(125e6, 6e-4), (350e6, 3e-4), (760e6, 2.5e-4), (1.3e9, 2e-4), (2.7e9, 1.6e-4), (6.7e9, 1.2e-4), (175e9, 6e-5)],
)
def test_the_usual_rate_is_that_of_gpt3(size: float, rate: float) -> None:
    """Brown et al. 2020 (arXiv 2005.14165), table 2.1."""
    assert 0.8 < usual_rate(int(size)) / rate < 1.21


@pytest.mark.parametrize(
    ("rate", "lora", "severity"),
    [
        (2e-5, False, None),
        (9e-4, False, None),
        (1.2e-3, False, "amber"),
        (1e-2, False, "red"),
        (1e-7, False, "amber"),
        (1e-6, False, None),
        (9e-3, True, None),
        (2e-2, True, "amber"),
        (1e-1, True, "red"),
        (1e-6, True, "amber"),
    ],
)
def test_rates_far_from_those_that_work(rate: float, lora: bool, severity: str | None) -> None:
    found = list(doctor.out_of_range(planned(learning_rate=rate, lora={"r": 8} if lora else None)))
    assert severities(found) == [severity] * bool(severity)
    for finding in found:  # what is proposed is in range
        (proposed,) = finding.change.values()
        assert not list(doctor.out_of_range(planned(learning_rate=proposed, lora={"r": 8} if lora else None)))


@pytest.mark.parametrize(("name", "kind"), [("dpo", "preference"), ("sandbox", "ppo"), ("sandbox", "sft")])
@pytest.mark.parametrize(("times", "severity"), [(1, None), (100, "red")])
def test_a_hundred_times_the_rate_of_a_shipped_recipe_is_red(
    name: str, kind: str, times: int, severity: str | None
) -> None:
    (stage,) = [stage for stage in load_recipe(name, (), {}).recipe.stages if stage.kind == kind]
    config = stage.model_dump(mode="json")
    config["optim"]["learning_rate"] *= times
    assert severities(doctor.out_of_range(Planned(kind, kind, config, EMBEDDED))) == [severity] * bool(severity)


def test_the_range_depends_on_the_size_and_needs_it() -> None:
    assert severities(doctor.out_of_range(planned(learning_rate=1e-3, parameters=SEVEN_BILLION))) == ["amber"]
    assert severities(doctor.out_of_range(planned(learning_rate=1e-3, parameters=1_000_000))) == []
    with pytest.raises(Missing):
        list(doctor.out_of_range(planned(parameters=None)))


def test_a_stage_that_trains_nothing_has_no_rate() -> None:
    for idle in (planned("bestof", rounds=0, learning_rate=9.0), planned("reward", trained=True, learning_rate=9.0)):
        assert list(doctor.out_of_range(idle)) == list(doctor.steps_of_noise(idle)) == []
    assert severities(doctor.out_of_range(planned("bestof", rounds=2, learning_rate=9.0))) == ["red"]


@pytest.mark.parametrize(
    ("config", "found"),
    [({"kl_coef": 0.05}, False), ({"kl_coef": 0.0}, True), ({"kl_coef": 0.0, "kl_final": 0.1}, False)],
)
def test_a_policy_that_nothing_holds(config: dict[str, Any], found: bool) -> None:
    assert severities(doctor.no_anchor(planned("ppo", **config))) == ["amber"] * found


@pytest.mark.parametrize(("batch", "parts", "found"), [(32, 4, False), (2, 1, False), (1, 1, True), (4, 4, True)])
def test_steps_on_one_example(batch: int, parts: int, found: bool) -> None:
    assert severities(doctor.steps_of_noise(planned(batch_size=batch, minibatches=parts))) == ["amber"] * found


@pytest.mark.parametrize(("needed", "severity"), [(900, None), (2000, "amber"), (5000, "red")])
def test_memory_that_is_not_there_and_memory_that_others_hold(needed: float, severity: str | None) -> None:
    memory = Memory("sft", needed, 4000, 1000, fits=needed < 4000, change={"sft.micro_batch_size": "8"})
    found = list(doctor.out_of_memory(memory))
    assert severities(found) == [severity] * bool(severity)
    if severity == "red":
        assert found[0].change == {"sft.micro_batch_size": "8"}


@pytest.mark.parametrize(("needed", "found"), [(900, False), (1100, True)])
def test_a_disk_without_room(needed: float, found: bool) -> None:
    assert severities(doctor.disk_full(Disk("runs", needed, 1000))) == ["red"] * found


def test_a_reward_model_without_its_head() -> None:
    assert list(doctor.head_not_in_folder(RewardFolder("ppo", "model", []))) == []
    (finding,) = doctor.head_not_in_folder(RewardFolder("ppo", "model", ["score.weight"]))
    assert "score.weight" in finding.evidence


def test_weights_that_are_not_finite() -> None:
    assert list(doctor.weights_not_finite(Weights("sft", "model", []))) == []
    (finding,) = doctor.weights_not_finite(Weights("sft", "model", ["embed.weight", "head"]))
    assert "embed.weight is one of 2" in finding.evidence


def test_a_student_with_other_words_than_its_teacher() -> None:
    same = {"base": {"a": 0, "b": 1}, "teacher": {"b": 1, "a": 0}}
    assert list(doctor.other_words(Vocabularies("distill", same))) == []
    (finding,) = doctor.other_words(Vocabularies("distill", {**same, "teacher": {"a": 0, "b": 2, "c": 1}}))
    assert "disagree about 2 tokens, 'b' first" in finding.evidence


def test_each_refusal_is_a_finding_with_its_hint() -> None:
    found = list(doctor.refused(Refusals("r.yaml", [("no model", "give one"), ("no data", "")])))
    assert [(finding.evidence, finding.advice) for finding in found] == [
        ("no model", "Give one"),
        ("no data", doctor.CANNOT_RUN.cure),
    ]


@pytest.mark.parametrize(("long", "severity"), [(90, None), (130, "amber"), (198, "red")])
def test_prompts_that_lose_their_beginning(long: int, severity: str | None) -> None:
    renderer = Renderer(tokenizer_of(), max_length=64)
    prompts = [Prompt.ask("time " * (80 if n < long else 6)) for n in range(200)]
    found = list(doctor_of_tokens.prompts_cut_away(Prompts("ppo", renderer, prompts, 48)))
    assert severities(found) == [severity] * bool(severity)
    for finding in found:
        (needed,) = finding.change.values()
        enough = Prompts("ppo", Renderer(renderer.tokenizer, max_length=needed), prompts, needed - 16)
        assert list(doctor_of_tokens.prompts_cut_away(enough)) == []


def test_without_prompts_nothing_can_be_cut() -> None:
    with pytest.raises(Missing):
        list(doctor_of_tokens.prompts_cut_away(Prompts("ppo", Renderer(tokenizer_of(), max_length=64), [], 48)))


def test_tokens_that_the_model_has_no_embedding_for() -> None:
    renderer = Renderer(tokenizer_of(), max_length=64)
    shown = [Demonstration(Prompt.ask("time"), "year")]
    last = max(i for row in Tokens("sft", renderer, shown).whole for i in row.ids)
    assert list(doctor.without_embedding(Tokens("sft", renderer, shown))) == []
    assert list(doctor.without_embedding(Tokens("sft", renderer, shown, last + 1))) == []
    (finding,) = doctor.without_embedding(Tokens("sft", renderer, shown, last))
    assert finding.mode.name == "tokenizer-mismatch"
