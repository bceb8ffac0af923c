"""Two faults in one run, one model or one data set; neither brings the other about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

from bench.doctor_trial import faults_data, faults_models, faults_policy
from bench.doctor_trial.broken_code import end_masked
from bench.doctor_trial.case import Case, Show, by_command, in_memory
from bench.doctor_trial.fault import chance
from bench.doctor_trial.finished_runs import mask_ignored_and_frozen_blocks
from bench.doctor_trial.words import spoken
from tests.unit.stages.toy import COLOURS, QUESTIONS, toy_data

from assay.data.prepared import Splits
from assay.data.render import Renderer
from assay.doctor.detector import Evidence
from assay.doctor.tokens import Tokens
from assay.types import Demonstration, Preference


def empty_and_identical(folder: Path) -> Sequence[Evidence]:
    """One chosen answer of ten is null, one rejected of twelve a copy."""

    def odd(n: int, row: faults_data.Record) -> faults_data.Record:
        if n % 10 == 0:
            return {**row, "chosen": None}
        return {**row, "rejected": row["chosen"]} if n % 12 == 1 else row

    return faults_data.changed(odd, folder)


def mis_split_and_leaked(folder: Path) -> Sequence[Evidence]:
    """Every eighth dialogue parts early, and a fifth of all comes twice."""
    rows = faults_data.pairs()

    def whole(n: int, row: faults_data.Record) -> faults_data.Record:
        chosen, rejected = (faults_data.dialogue(row, side) for side in ("chosen", "rejected"))
        return {"chosen": chosen, "rejected": rejected.replace("Go on", "Stop") if n % 8 == 0 else rejected}

    again = [{**row, "prompt": "Well, " + row["prompt"]} for row in rows[1::5]]
    return faults_data.of_rows([whole(n, row) for n, row in enumerate([*rows, *again])], folder)


def twice_and_cut(folder: Path) -> Sequence[Evidence]:
    """The template begins twice, and rows are shorter than some answers."""
    tokens, *_ = faults_data.begin_twice(folder)
    assert isinstance(tokens, Tokens)
    rng = chance()
    some = [Demonstration(item.prompt, spoken(rng, rng.randint(4, 60))) for item in faults_data.items()]
    return [replace(tokens, renderer=Renderer(tokens.renderer.tokenizer, max_length=60), items=some)]


def swapped_and_adrift(folder: Path) -> Sequence[Evidence]:
    """Training labels the wrong way round, and 65 added to every score."""
    data = toy_data()
    train = faults_data.flipped(data.preferences.train, 1.0)
    with faults_models.scored_as(lambda scores_NMO, _: scores_NMO + faults_models.OFFSET):
        return [faults_models.reward_log(folder, replace(data, preferences=replace(data.preferences, train=train)))]


def long_and_adrift(folder: Path) -> Sequence[Evidence]:
    """Five points for every character, and 650 for nothing."""
    by_length = faults_models.by_length
    with (
        faults_models.scored_as(lambda scores_NMO, said: by_length(scores_NMO, said) + 10 * faults_models.OFFSET),
        faults_models.uncalibrated,
    ):
        return [faults_models.reward_log(folder)]


def recited_without_end(folder: Path) -> Sequence[Evidence]:
    """Sixty epochs on one answer a question, and the end is masked as the pad."""
    noise = chance()
    asked = (*QUESTIONS, *faults_models.ASKED)
    few = [Demonstration(question, noise.choice(COLOURS)) for question in asked]
    held = [Demonstration(question, colour) for question in faults_models.ASKED for colour in COLOURS]
    data = replace(toy_data(), demonstrations=Splits(few, held, held))
    with patch("assay.stages.causal.collate", end_masked):
        log = faults_models.sft_log(folder, data, epochs=60, validate_every=12)
    return [log, faults_data.endings(folder / "sft", few)]


def easy_and_long(folder: Path) -> Sequence[Evidence]:
    """The rejected answer is always nonsense, and the chosen one always six words long."""
    chosen = " ".join(["blue", "green"] * 3)
    pairs = [Preference(q, chosen, f"{thing} grass") for q in QUESTIONS for thing in COLOURS]
    data = replace(toy_data(), preferences=Splits(pairs * 40, pairs, pairs))
    return [faults_models.direct_log(folder, data, epochs=1, optim={"learning_rate": 1e-3, "schedule": "constant"})]


def cold_and_shuffled(folder: Path) -> Sequence[Evidence]:
    """The temperature is left out in training, and answers are shuffled before they are grouped."""
    sampling = {"max_new_tokens": 4, "temperature": 0.5}
    patches = faults_policy.at_temperature_one(), faults_policy.shuffled()
    return faults_policy.run(folder, "group", *patches, iterations=10, sampling=sampling)


def endless_and_flat(folder: Path) -> Sequence[Evidence]:
    """The SFT model was never shown an end, and most rewards look at the question."""
    base = faults_policy.sft_without_end()
    return faults_policy.run(folder, "group", faults_policy.paid_by_question(), base=base, iterations=10)


PAIRS: Sequence[tuple[str, str, Callable[[Path], Sequence[Evidence]]]] = (
    ("text-that-is-no-text", "identical-pairs", empty_and_identical),
    ("mis-split-dialogue", "split-leak", mis_split_and_leaked),
    ("double-bos", "response-cut-away", twice_and_cut),
    ("swapped-labels", "score-drift", swapped_and_adrift),
    ("length-bias", "score-drift", long_and_adrift),
    ("overfitting", "eos-not-learned", recited_without_end),
    ("saturated-early", "length-growth", easy_and_long),
    ("ratio-not-one", "broken-groups", cold_and_shuffled),
    ("never-stops", "groups-without-signal", endless_and_flat),
)


def cases() -> list[Case]:
    only_models = "Neither mask nor positions reach the model, and checkpointing cuts its adapters off"
    return [
        of_two("mask-ignored", "frozen-adapter-blocks", only_models, by_command(mask_ignored_and_frozen_blocks)),
        *(
            of_two(one, other, (run.__doc__ or "").rstrip("."), in_memory(partial(as_one, run)))
            for one, other, run in PAIRS
        ),
    ]


def of_two(one: str, other: str, what: str, show: Show) -> Case:
    return Case("pair", f"{one}+{other}", (one, other), what, 0, show)


def as_one(run: Callable[[Path], Sequence[Evidence]], folder: Path) -> dict[str, Sequence[Evidence]]:
    return {"": run(folder)}
