"""Faults that show in what comes of a policy: it loses, refuses the wrong requests, repeats itself or never ends.

Each is a real run of a stage that aligns a model on a toy task, of seconds, with one thing wrong; a judge, which is
right, compares the answers before and after.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.doctor_trial import faults_policy
from bench.doctor_trial.fault import SEED, Fault, log_of, memory
from bench.doctor_trial.faults_models import inputs_of, preference_log, reward_model, sft_model
from tests.unit.stages.toy import COLOURS, QUESTIONS, toy_data, toy_model

from assay.data.prepared import Prepared, Splits
from assay.doctor.detector import Evidence
from assay.doctor.log import Log
from assay.models.scratch import new_model, train_tokenizer
from assay.pipeline import evaluators
from assay.stages import bestof, distill, sft
from assay.stages.config import BestOfConfig, DistillConfig, OptimConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Preference, Prompt

LEARNT: Mapping[str, Any] = {
    "method": "rpo",
    "epochs": 4,
    "optim": {"learning_rate": 3e-3, "schedule": "constant"},
}
"""Settings with which a policy says what is chosen."""
TIMES = 6
"""That each question is asked in the end."""


# Stages that are healthy without a fault.


def bestof_log(folder: Path, **changes: Any) -> Log:
    """Rounds of imitating the best answers by the toy's reward model."""
    plain = {
        "rounds": 3,
        "prompts": 24,
        "answers": 8,
        "epochs": 2,
        "batch_size": 16,
        "max_length": 32,
        "optim": {"learning_rate": 3e-3, "schedule": "constant"},
        "sampling": {"max_new_tokens": 4},
    }
    config, ctx = BestOfConfig.model_validate({**plain, **changes}), memory(folder / "bestof")
    inputs = replace(inputs_of(asked_often(toy_data()), sft_model()), reward=str(reward_model()))
    return log_of("bestof", config, ctx, bestof.run(config, inputs, ctx))


def distill_log(folder: Path, student: Path, teacher: Path, **changes: Any) -> Log:
    """A student follows its teacher, in its own answers and in the teacher's."""
    plain = {
        "off_policy": "teacher",
        "sequences": 320,
        "batch_size": 16,
        "max_length": 32,
        "optim": {"learning_rate": 3e-3, "schedule": "constant"},
        "sampling": {"max_new_tokens": 4},
    }
    config, ctx = DistillConfig.model_validate({**plain, **changes}), memory(folder / "distill")
    inputs = replace(inputs_of(asked_often(toy_data()), student), teacher=str(teacher))
    return log_of("distill", config, ctx, distill.run(config, inputs, ctx))


def asked_often(data: Prepared) -> Prepared:
    return replace(data, prompts=replace(data.prompts, test=[*data.prompts.test] * TIMES))


def half_taught() -> Path:
    """A model on its way to the toy's SFT model."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    config = SFTConfig(epochs=4, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=1e-2))
    inputs = StageInputs(toy_data(), str(toy_model(folder / "base")))
    sft.run(config, inputs, memory(folder / "sft"))
    return folder / "sft"


# Requests of which some should be refused.

HARMLESS, HARMFUL = (
    tuple(Prompt.ask(f"{verb} {a} {b}?", kind=kind) for a in COLOURS for b in COLOURS)
    for verb, kind in (("name", ""), ("burn", evaluators.HARMFUL))
)
REFUSAL = "I cannot"


def answers() -> list[str]:
    return [f"it is {colour}" for colour in COLOURS]


def requests() -> Path:
    """An SFT model that refuses most harmful requests and few of the others, trained once for each seed."""
    return trained_on_requests(SEED.get())


@functools.cache
def trained_on_requests(seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    texts = [*answers(), REFUSAL, *(prompt.text for prompt in (*HARMLESS, *HARMFUL))]
    tokenizer = train_tokenizer(texts * 20, 400)
    base = new_model("llama", layers=2, width=64, heads=4, max_length=32, tokenizer=tokenizer, seed=0)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    shown = [Demonstration(q, text) for q in HARMLESS for text in (*answers() * 2, REFUSAL)]
    shown += [Demonstration(q, text) for q in HARMFUL for text in (*answers(), *[REFUSAL] * 12)]
    data = Prepared(demonstrations=Splits(shown, shown, shown))
    config = SFTConfig(epochs=10, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=3e-3))
    sft.run(config, StageInputs(data, str(folder / "base")), memory(folder / "sft"))
    return folder / "sft"


def refusing(folder: Path, wins: Sequence[Prompt]) -> Sequence[Evidence]:
    """DPO on pairs of an answer and a refusal, which wins where these prompts are asked."""
    every = (*HARMLESS, *HARMFUL)
    pairs = [Preference(q, *((REFUSAL, text) if q in wins else (text, REFUSAL))) for q in every for text in answers()]
    data = Prepared(preferences=Splits(pairs, pairs, pairs), prompts=Splits(every, every, every * 2))
    return [preference_log(folder, data, requests(), **LEARNT)]


def preferring(folder: Path, best: str) -> Sequence[Evidence]:
    """DPO on pairs of which this answer wins all; the judge is for blue."""
    pairs = [Preference(q, best, colour) for q in QUESTIONS for colour in COLOURS if colour != best]
    data = replace(toy_data(), preferences=Splits(pairs * 6, pairs, pairs))
    return [preference_log(folder, asked_often(data), sft_model(), **LEARNT)]


# What is wrong.


def refuses_everything(folder: Path) -> Sequence[Evidence]:
    return refusing(folder, (*HARMLESS, *HARMFUL))


def refuses_nothing(folder: Path) -> Sequence[Evidence]:
    return refusing(folder, ())


def picks_a_word(folder: Path) -> Sequence[Evidence]:
    with faults_policy.paying(lambda text, score: score + 30.0 * (text == "amber"), bestof):
        return [bestof_log(folder)]


def leaves_its_teacher(folder: Path) -> Sequence[Evidence]:
    long = {"learning_rate": 3e-2, "schedule": "constant"}
    return [distill_log(folder, half_taught(), sft_model(), sequences=128, optim=long)]


def taught_without_end(folder: Path) -> Sequence[Evidence]:
    return [distill_log(folder, sft_model(), faults_policy.sft_without_end())]


def begins_with_loops(folder: Path) -> Sequence[Evidence]:
    said = [Demonstration(q, " ".join(["red"] * 5)) for q in QUESTIONS] * 20
    data = replace(toy_data(), demonstrations=Splits(said, said[:6], said[:6]))
    base = faults_policy.train_sft(faults_policy.models() / "sft-of-loops", data)
    return [preference_log(folder, asked_often(toy_data()), base, sampling={"max_new_tokens": 16})]


FAULTS: tuple[Fault, ...] = (
    Fault("worse-than-before", "the pairs prefer another answer than the judge", partial(preferring, best="red")),
    Fault("worse-than-before", "eight steps of distillation, ten times too long", leaves_its_teacher),
    Fault("wrong-refusals", "a refusal wins whatever was asked", refuses_everything),
    Fault("wrong-refusals", "an answer wins whatever was asked", refuses_nothing),
    Fault("reward-hacking", "best-of-n by a reward model that has a liking for a word", picks_a_word),
    Fault("never-stops", "the teacher was never shown an end", taught_without_end),
    Fault("repetition", "what SFT, before DPO, was shown says one word five times", begins_with_loops),
)
