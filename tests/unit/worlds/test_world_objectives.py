"""People who are asked about one thing alone."""

from __future__ import annotations

from collections import Counter

import pytest

from assay.errors import ConfigError
from assay.pipeline.evaluators import Evaluators
from assay.worlds import load_world
from assay.worlds.annotator import Annotator
from assay.worlds.config import AnnotatorConfig, WorldData
from assay.worlds.prepare import prepare_world

SIZES = {"demonstrations": 5, "preferences": 400, "held_out": 0.1}
SURE = AnnotatorConfig(noise=1e-3, length_bias=0.5)
ASKED = prepare_world(
    WorldData.model_validate({**SIZES, "objectives": ["concision", "courtesy"], "annotator": SURE.model_dump()}), 3
)


def test_every_pair_is_asked_about_one_objective_and_both_come_up() -> None:
    for _, pairs in ASKED.preferences.items():
        counts = Counter(pair.objective for pair in pairs)
        assert counts.keys() == {"concision", "courtesy"}
        assert min(counts.values()) > 0.3 * len(pairs)


def test_without_noise_the_better_answer_under_that_objective_wins() -> None:
    world = load_world("frontdesk")
    for pair in ASKED.preferences.train:
        good, bad = (world.truth(pair.prompt, text).objectives for text in (pair.chosen, pair.rejected))
        assert good[pair.objective] >= bad[pair.objective]


def test_one_thing_alone_counts_as_much_as_all_together() -> None:
    person = Annotator({"a": 3.0, "b": 1.0}, noise=1.0, length_bias=0.5)
    assert person.asked_about("b").weights == {"a": 0.0, "b": 4.0}


def test_the_answers_that_are_compared_do_not_depend_on_what_is_asked() -> None:
    plain = prepare_world(WorldData.model_validate(SIZES), 3)
    assert {pair.objective for pair in plain.preferences.train} == {""}
    compared = [{pair.chosen, pair.rejected} for pair in plain.preferences.train]
    assert [{pair.chosen, pair.rejected} for pair in ASKED.preferences.train] == compared


def test_a_report_measures_such_pairs_by_the_truth_about_that_objective() -> None:
    pairs = ASKED.preferences.test
    world = load_world("frontdesk")
    scores = [
        [world.truth(p.prompt, getattr(p, side)).objectives[p.objective] for p in pairs]
        for side in ("chosen", "rejected")
    ]
    report = Evaluators(ASKED, 0, world=world).preferences(pairs, *scores)
    assert report["truth_accuracy"] == 1.0
    assert report["agreement"] is None


def test_a_question_that_people_here_do_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match='people here know no "charm"'):
        prepare_world(WorldData.model_validate({**SIZES, "objectives": ["charm"]}), 0)
