"""What the doctor says about tokens: rows that are cut, alike, or begin or join wrongly; answers that do not end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench.doctor_trial.faults_data import items, tokenizer_of

from assay.data.records import Item
from assay.data.render import Renderer
from assay.doctor import tokens as doctor
from assay.doctor.detector import Missing
from assay.doctor.tokens import Endings, Tokens
from assay.types import Demonstration, Preference, Prompt


def rendered(given: list[Any], max_length: int = 64, tokenizer: Any = None) -> Tokens:
    return Tokens("sft", Renderer(tokenizer or tokenizer_of(), max_length=max_length), given)


@pytest.mark.parametrize(("long", "severity"), [(2, None), (20, "amber"), (80, "red")])
def test_answers_that_lose_their_end(long: int, severity: str | None) -> None:
    shown = [Demonstration(Prompt.ask("time"), "time " * (80 if n < long else 6)) for n in range(200)]
    found = list(doctor.cut_away(rendered(shown)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_the_length_that_is_proposed_is_enough_for_nineteen_of_twenty() -> None:
    shown = [Demonstration(Prompt.ask("time"), "time " * (n % 100 + 1)) for n in range(200)]
    (finding,) = doctor.cut_away(rendered(shown))
    proposed = finding.change["sft.max_length"]
    rows = [row for one in shown if (row := rendered([], proposed).renderer.row(one.prompt, one.response))]
    ended = sum(row.ids[-1] == rendered([]).renderer.eos_id for row in rows)
    assert 190 <= ended < 198


@pytest.mark.parametrize(("same", "found"), [(1, False), (12, True)])
def test_pairs_that_are_alike_once_they_are_cut(same: int, found: bool) -> None:
    long = "time " * 80
    pairs: list[Item] = [Preference(Prompt.ask("way"), f"{long} year", f"{long} day") for _ in range(same)]
    pairs += [Preference(Prompt.ask("way"), f"year {n}", f"day {n}") for n in range(300 - same)]
    assert bool(list(doctor.same_rows(rendered(pairs)))) is found


def test_rows_that_begin_once_are_well() -> None:
    once = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    assert list(doctor.begins_twice(rendered(items(20), tokenizer=tokenizer_of(once, "<|begin|>")))) == []
    twice = tokenizer_of("{{ bos_token }}" + once, "<|begin|>")
    (finding,) = doctor.begins_twice(rendered(items(20), tokenizer=twice))
    assert "20 of 20" in finding.evidence
    assert list(doctor.begins_twice(rendered(items(20)))) == []  # a tokenizer without a begin token


@pytest.mark.parametrize("max_length", [16, 24, 40, 128])
def test_prompts_that_had_to_be_cut_are_still_what_a_sampler_is_given(max_length: int) -> None:
    assert list(doctor.grown_together(rendered(items(40), max_length))) == []


def test_nothing_to_render_is_said() -> None:
    with pytest.raises(Missing):
        list(doctor.cut_away(rendered([Demonstration(Prompt.ask("time"), " ")])))


@pytest.mark.parametrize(("mean", "found"), [(0.2, False), (0.05, True)])
def test_an_end_token_that_is_hardly_ever_expected(mean: float, found: bool) -> None:
    probabilities = np.linspace(0.5 * mean, 1.5 * mean, 40)
    assert bool(list(doctor.does_not_end(Endings("sft", probabilities)))) is found


def test_a_few_answers_leave_it_open_whether_they_end() -> None:
    assert list(doctor.does_not_end(Endings("sft", np.array([0.01, 0.15])))) == []
    with pytest.raises(Missing):
        list(doctor.does_not_end(Endings("sft", np.array([0.01]))))
