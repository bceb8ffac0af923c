"""What the doctor says about data: each limit from both sides, and the faults of the trial by name."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.doctor_trial.fault import Fault
from bench.doctor_trial.faults_data import FAULTS, HEALTHY, pairs

from assay.data.config import CleanConfig, FileSource
from assay.data.prepared import Prepared, Splits
from assay.doctor import data as doctor
from assay.doctor import labels
from assay.doctor.data import Data, Reading
from assay.doctor.detector import Missing, examine
from assay.doctor.finding import Finding
from assay.doctor.labels import Scored
from assay.doctor.log import Log
from assay.errors import DataError
from assay.tracking.metrics import MetricsLine
from assay.types import Demonstration, Message, Preference, Prompt

TRAINED = {"swapped-labels", "label-noise", "too-good-to-be-true", "response-cut-away", "eos-not-learned"}
CHEAP = [fault for fault in FAULTS if fault.mode not in TRAINED or "margins" in fault.what]


@pytest.mark.parametrize("fault", CHEAP, ids=lambda fault: fault.what)
def test_a_fault_is_named_first(fault: Fault, tmp_path: Path) -> None:
    assert examine(fault.evidence(tmp_path)).causes[0].mode.name == fault.mode


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in CHEAP], ids=lambda fault: fault.what)
def test_a_fault_of_a_run_is_named_first(fault: Fault, tmp_path: Path) -> None:
    assert examine(fault.evidence(tmp_path)).causes[0].mode.name == fault.mode


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_green(name: str, tmp_path: Path) -> None:
    assert examine(HEALTHY[name](tmp_path)).findings == ()


def names(findings: Iterable[Finding]) -> list[str]:
    return [finding.mode.name for finding in findings]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def asked(number: int, source: str = "") -> Prompt:
    """A question that resembles no other."""
    rng = random.Random(number)
    return Prompt.ask(" ".join(str(rng.random()) for _ in range(8)), source=source)


def of_pairs(train: Sequence[Preference], held_out: Sequence[Preference] = (), **more: Any) -> Data:
    prompts = Splits([pair.prompt for pair in train], [], [pair.prompt for pair in held_out])
    return Data("data", Prepared(preferences=Splits(train, [], held_out), prompts=prompts, **more))


def plain(count: int, first: int = 0) -> list[Preference]:
    numbers = range(first, first + count)
    return [Preference(asked(n), f"one {n} thing or another", f"another {n} thing or one") for n in numbers]


# Rows that the loader left out.


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ('"chosen" is null', "text-that-is-no-text"),
        ('"rejected" is not text', "text-that-is-no-text"),
        ("the last reply is empty", "mis-split-dialogue"),
        ("the two dialogues part before the last reply", "mis-split-dialogue"),
        ("artefact: a response goes on into the next turn", "mis-split-dialogue"),
        ("chosen and rejected are the same text", "identical-pairs"),
    ],
)
def test_dropped_rows_are_told_with_their_mode(reason: str, name: str) -> None:
    few, some, many = (Reading("data", 1000, {reason: n}, {reason: ["a.jsonl line 3"]}) for n in (9, 40, 200))
    assert list(doctor.left_out(few)) == []
    amber, red = only(doctor.left_out(some)), only(doctor.left_out(many))
    assert (amber.mode.name, amber.severity, red.severity) == (name, "amber", "red")
    assert "40 of 1,000" in amber.evidence
    assert "a.jsonl line 3" in amber.evidence


def test_reasons_of_one_mode_count_together_and_other_reasons_not_at_all() -> None:
    apart = {"the last reply is empty": 9, "an empty turn in the prompt": 9, "exact duplicate": 500}
    assert "18 of 1,000" in only(doctor.left_out(Reading("data", 1000, apart))).evidence


def test_files_are_read_even_when_the_loader_refuses_them(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text('{"prompt": "a?", "chosen": null, "rejected": "b"}\n' * 30)
    reading = Reading.files(FileSource(path=str(path), format="trl-pairs"), CleanConfig())
    assert (reading.rows, reading.dropped) == (30, {'"chosen" is null': 30})
    assert only(doctor.left_out(reading)).severity == "red"
    with pytest.raises(DataError):
        Reading.files(FileSource(path=str(tmp_path / "missing.jsonl")), CleanConfig())


def test_data_that_were_made_have_no_rows() -> None:
    with pytest.raises(Missing):
        Reading.of({"world": "frontdesk"})


# What is left.


@pytest.mark.parametrize(("words", "found"), [(3, False), (15, True)])
def test_words_of_empty_cells(words: int, found: bool) -> None:
    shown = [Demonstration(asked(n), "nan" if n < words else f"none of {n}") for n in range(600)]
    assert bool(list(doctor.empty_cells(Data("data", Prepared(demonstrations=Splits(shown)))))) is found


@pytest.mark.parametrize(("odd", "found"), [(3, False), (15, True)])
def test_turns_inside_answers(odd: int, found: bool) -> None:
    broken = [Preference(asked(n), "good\n\nHuman: more?", "bad") for n in range(odd)]
    assert bool(list(doctor.turns_in_answers(of_pairs([*broken, *plain(600 - odd, odd)])))) is found


def test_lost_turns_are_a_split_dialogue() -> None:
    lossy = [Preference(Prompt.ask(f"How do I mend {n}?"), "You're welcome.", "Yes, right.") for n in range(100)]
    assert "middle" in only(doctor.turns_in_answers(of_pairs(lossy))).evidence


@pytest.mark.parametrize(("positive", "found"), [(45, False), (25, True)])
def test_margins_that_are_mostly_negative(positive: int, found: bool) -> None:
    train = [Preference(asked(n), "a", "b", 1.0 if n < positive else -1.0) for n in range(100)]
    assert bool(list(doctor.negative_margins(of_pairs(train)))) is found


def test_without_margins_data_cannot_say_whether_labels_are_swapped() -> None:
    with pytest.raises(Missing):
        list(doctor.negative_margins(of_pairs(plain(100))))


def test_an_equal_prompt_is_a_leak_for_certain() -> None:
    train = plain(60)
    finding = only(doctor.copies(of_pairs(train, [train[0], *plain(40, 100)])))
    assert (finding.mode.name, finding.sureness) == ("split-leak", "certain")


@pytest.mark.parametrize(("copied", "found"), [(4, False), (20, True)])
def test_nearly_equal_prompts_are_a_leak_when_there_are_many(copied: int, found: bool) -> None:
    rows = pairs(200)
    train = [Preference(Prompt.ask(row["prompt"]), "a", "b") for row in rows]
    held_out = [Preference(Prompt.ask("Well, " + row["prompt"]), "a", "b") for row in rows[:copied]]
    held_out += plain(100 - copied)
    assert bool(list(doctor.copies(of_pairs(train, held_out)))) is found
    assert list(doctor.copies(of_pairs(train, held_out, report={"world": "frontdesk"}))) == []


def test_a_copy_of_a_copy_counts_and_a_twin_among_the_held_out_does_not() -> None:
    text = "the long way round the old house and back again by the river"
    copy, other = Prompt.ask(f"well {text}"), Prompt.ask("a b c d e f g h i j k l")
    again = Prompt.ask(f"well {text} now")
    assert doctor.near_copies([Prompt.ask(text)], [copy, again]) == 2
    assert doctor.near_copies([Prompt.ask(text)], [other, other]) == 0
    turns = Prompt((Message("user", text), Message("assistant", "yes"), Message("user", "and")))
    assert doctor.near_copies([Prompt.ask(text)], [turns]) == 1


@pytest.mark.parametrize(("longer", "found"), [(60, False), (95, True)])
def test_length_that_gives_the_label_away(longer: int, found: bool) -> None:
    def pair(n: int) -> Preference:
        long, short = f"word{n} " * 7, f"word{n} " * 6
        return Preference(asked(n), long, short) if n % 100 < longer else Preference(asked(n), short, long)

    found_modes = names(doctor.trick(of_pairs([pair(n) for n in range(200)], [pair(n) for n in range(200, 400)])))
    assert found_modes == ["shortcut"] * found


def test_words_are_no_shortcut_where_answers_are_a_word_or_two() -> None:
    def told(words: str) -> Data:
        every = [Preference(asked(n), f"{words} blue", f"{words} grey") for n in range(200)]
        return of_pairs(every[:100], every[100:])

    assert list(doctor.trick(told("so"))) == []
    assert "bag of words" in only(doctor.trick(told("it is what they call"))).evidence


def test_a_few_held_out_pairs_show_nothing() -> None:
    with pytest.raises(Missing):
        list(doctor.trick(of_pairs(plain(100), plain(5, 200))))


# What a model says about it.


def scored(margins: Sequence[float], source: str = "", train: Sequence[Preference] = ()) -> Scored:
    held_out = [Preference(asked(n, source), f"one {n}", f"another {n}") for n in range(len(margins))]
    return Scored("reward", held_out, np.array(margins, dtype=np.float64), train)


@pytest.mark.parametrize(("right", "found"), [(40, False), (25, True)])
def test_a_source_that_is_contradicted_more_often_than_by_chance(right: int, found: bool) -> None:
    judged = scored([1.0] * right + [-1.0] * (100 - right), "theirs")
    assert names(labels.against_people(judged)) == ["swapped-labels"] * found


def test_each_source_is_judged_by_itself() -> None:
    ours, theirs = scored([1.0] * 90 + [-1.0] * 10, "ours"), scored([-1.0] * 30, "theirs")
    both = Scored("reward", [*ours.pairs, *theirs.pairs], np.concatenate([ours.margins, theirs.margins]))
    assert "of theirs" in only(labels.against_people(both)).evidence


def test_a_model_is_asked_about_both_sides() -> None:
    held_out = plain(3)
    judged = Scored.of("reward", lambda prompts, texts: [float(len(text)) for text in texts], held_out)
    assert judged.margins.tolist() == [len(pair.chosen) - len(pair.rejected) for pair in held_out]
    with pytest.raises(Missing):
        _ = judged.right


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_scores_that_are_not_finite_say_nothing_about_labels(odd: float) -> None:
    judged = scored([odd] + [-1.0] * 99, train=plain(40))
    for ask in (labels.against_people, labels.no_better_than_a_trick, labels.surest_contradicted):
        with pytest.raises(Missing, match=r"1 of 100 pairs have scores that are not finite"):
            list(ask(judged))


@pytest.mark.parametrize(("noise", "found"), [(0.05, False), (0.25, True)])
def test_labels_against_what_the_model_is_surest_of(noise: float, found: bool) -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0, 4, 1000)
    margins = np.where(rng.random(1000) < noise, -sure, sure)
    assert names(labels.surest_contradicted(scored(margins.tolist()))) == ["label-noise"] * found


def test_pairs_of_one_prompt_are_one_opinion_about_labels() -> None:
    """A fifth of the labels is wrong either way: beyond doubt more than 10 % of 2,000 prompts, and not of 40."""

    def judged(prompts: int) -> Scored:
        pairs = [Preference(asked(n % prompts), f"one {n}", f"another {n}") for n in range(2000)]
        wrong = np.arange(2000) % 5 == 0
        return Scored("reward", pairs, np.where(wrong, -1.0, 1.0) * np.linspace(2, 1, 2000))

    assert [names(labels.surest_contradicted(judged(prompts))) for prompts in (2000, 40)] == [["label-noise"], []]


def test_disagreement_over_close_pairs_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    gap = rng.uniform(0, 4, 2000)
    margins = np.where(rng.random(2000) < 1 / (1 + np.exp(-1.5 * gap)), gap, -gap)
    assert (margins < 0).mean() > 0.1
    assert list(labels.surest_contradicted(scored(margins.tolist()))) == []


def test_a_model_at_chance_says_nothing_about_labels() -> None:
    with pytest.raises(Missing):
        list(labels.surest_contradicted(scored([1.0, -1.0] * 50)))


def rivalled(model_knows: bool) -> Scored:
    """Pairs of which the longer is chosen in eight of ten cases; a model that knows that, or everything."""
    rng = random.Random(0)

    def pair(n: int) -> Preference:
        long, short = f"{n} " * 6, f"{n} " * 5
        return Preference(asked(n), long, short) if rng.random() < 0.8 else Preference(asked(n), short, long)

    every = [pair(n) for n in range(400)]
    judged = Scored.of("reward", lambda _, texts: [float(len(text)) for text in texts], every[200:], every[:200])
    return Scored("reward", judged.pairs, np.ones(200), judged.train) if model_knows else judged


def test_a_model_that_adds_nothing_to_length_took_the_shortcut() -> None:
    assert only(labels.no_better_than_a_trick(rivalled(False))).severity == "red"
    assert list(labels.no_better_than_a_trick(rivalled(True))) == []
    with pytest.raises(Missing):
        list(labels.no_better_than_a_trick(scored([1.0] * 50)))


def test_a_model_at_chance_has_not_taken_the_shortcut() -> None:
    judged = rivalled(False)
    with pytest.raises(Missing, match="no better than chance"):
        list(labels.no_better_than_a_trick(replace(judged, margins=np.resize([1.0, -1.0], len(judged.pairs)))))


def reported(**final: float) -> Log:
    """The report of a reward model that has learnt its training pairs."""
    lines = [MetricsLine(step, 0.0, {"train/accuracy": 0.9}) for step in range(1, 41)]
    return Log.of("reward", "reward", lines, final=final, config={"batch_size": 8})


def test_accuracy_and_gap_below_chance_are_swapped_labels_and_one_of_them_is_not() -> None:
    low = {"accuracy": 0.3, "accuracy_high": 0.4, "reward_gap": -1.0, "reward_gap_high": -0.5}
    assert names(labels.below_chance(reported(**low))) == ["swapped-labels"]
    for other in ({"reward_gap_high": 0.2}, {"accuracy_high": 0.51}):
        assert list(labels.below_chance(reported(**{**low, **other}))) == []
    guess = Log.of("reward", "reward", [MetricsLine(1, 0.0, {"train/accuracy": 0.5})], final=low)
    assert list(labels.below_chance(guess)) == []
    with pytest.raises(Missing):
        list(labels.below_chance(reported(accuracy=0.3)))


@pytest.mark.parametrize(("low", "found"), [(0.87, False), (0.916, True)])
def test_more_accurate_than_the_annotators_agreement_allows(low: float, found: bool) -> None:
    log = reported(accuracy=0.94, accuracy_low=low, n=500, ceiling=0.88)
    assert names(labels.above_the_ceiling(log)) == ["too-good-to-be-true"] * found


def test_without_a_ceiling_no_accuracy_is_too_good() -> None:
    diagnosis = examine([reported(accuracy=0.94, accuracy_low=0.92, accuracy_high=0.96, n=500)])
    assert ("too-good-to-be-true", "the report has no ceiling") in [(u.mode.name, u.why) for u in diagnosis.unchecked]
