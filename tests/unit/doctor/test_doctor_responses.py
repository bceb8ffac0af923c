"""What answers have become is told from what they were at the start, and from what the reward says of them."""

from __future__ import annotations

import pytest
from tests.unit.doctor.policy_log import Column, diagnosed, kl_from_0, late, log, only, wave

from assay.doctor.finding import Diagnosis


def test_a_judge_that_prefers_the_start_shows_a_hacked_reward() -> None:
    without = log({"objective/truth": None}, final={"reward_gain_low": 0.5, "win_rate_high": 0.45})
    assert only(diagnosed(without)).mode.name == "reward-hacking"
    assert (
        diagnosed(log({"objective/truth": None}, final={"reward_gain_low": 0.5, "win_rate_high": 0.55})) == Diagnosis()
    )


def test_a_number_that_was_never_logged_is_not_told() -> None:
    """TRL logs no share of empty answers; 1 is one of 20 tokens."""
    columns: dict[str, Column] = {"lengths/response_mean": late(20.0, 1.0), "objective/kl": kl_from_0(0.1, 0.1)}
    short = only(diagnosed(log({**columns, "lengths/empty": None})))
    assert short.evidence == "1 (99 %: 0.99 to 1.01, last 6 steps) tokens an answer, 20 at the start"
    assert "of the answers are empty" in only(diagnosed(log({"lengths/empty": late(0.0, 0.5)}))).evidence


@pytest.mark.parametrize(("share", "sure"), [(wave(0.65, 0.05), "likely"), (wave(0.998, 0.002), "certain")])
def test_answers_of_which_some_end_may_only_be_too_long(share: Column, sure: str) -> None:
    found = only(diagnosed(log({"lengths/truncated": share})))
    assert (found.sureness, "or good answers are longer" in found.explanation) == (sure, True)


@pytest.mark.parametrize(("name", "mode"), [("text/repetition", "repetition"), ("lengths/truncated", "never-stops")])
def test_what_was_so_from_the_start_is_blamed_on_what_came_before(name: str, mode: str) -> None:
    early, grown = (only(diagnosed(log({name: column}))) for column in (wave(0.7, 0.05), late(0.02, 0.7)))
    assert early.mode.name == grown.mode.name == mode
    assert "before this stage began" in early.explanation
    assert "before this stage began" not in grown.explanation
