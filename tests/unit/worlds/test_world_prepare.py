"""Data made by a world: reproducible, apart by prompt, measured; and its settings, checked early."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from pydantic import ValidationError

from assay.data.items import as_preferences
from assay.data.prepared import Prepared
from assay.worlds import SPLITS, load_world
from assay.worlds.config import AnnotatorConfig, WorldData
from assay.worlds.prepare import prepare_world

SMALL = WorldData(demonstrations=300, preferences=400, held_out=0.1, documents=20)
PREPARED = prepare_world(SMALL, 3)
EXACT = AnnotatorConfig(noise=1e-6, length_bias=0.5, disagreement=0)


def test_counts_are_as_set_and_as_reported():
    assert PREPARED.demonstrations.counts() == {"train": 300, "validation": 30, "test": 30}
    assert PREPARED.preferences.counts() == {"train": 400, "validation": 40, "test": 40}
    assert len(PREPARED.text) == 20
    counts = PREPARED.report["counts"]
    assert counts["preferences"] == PREPARED.preferences.counts()
    assert counts["prompts"] == PREPARED.prompts.counts()
    assert sum(PREPARED.report["kinds"].values()) == counts["prompts"]["train"]


def test_every_row_belongs_to_its_prompts_split():
    home = {prompt.id: split for split in SPLITS for prompt in load_world("frontdesk").prompts(split)}
    for purpose in (PREPARED.demonstrations, PREPARED.preferences):
        for split, rows in purpose.items():
            assert {home[row.prompt.id] for row in rows} == {split}


def test_the_seed_alone_decides_the_data():
    again, other = prepare_world(SMALL, 3), prepare_world(SMALL, 4)
    assert again == PREPARED
    assert other.preferences.train != PREPARED.preferences.train
    assert other.prompts == PREPARED.prompts


def test_rows_are_numbered_so_that_more_data_only_adds_to_it():
    more = prepare_world(SMALL.model_copy(update={"preferences": 450}), 3)
    assert more.preferences.train[:400] == PREPARED.preferences.train


def test_the_two_answers_of_a_pair_differ_and_every_kind_is_compared():
    rows = PREPARED.preferences.train
    assert all(row.chosen != row.rejected for row in rows)
    assert len(Counter(row.prompt.kind for row in rows)) == 8


def test_the_report_measures_annotators_and_demonstrators():
    measured, truth = PREPARED.report["annotators"]["measured"], PREPARED.report["truth"]
    assert 0.70 < measured["agreement"] < 0.80
    assert 0.5 < measured["length_bias"] < 0.6
    assert truth["best_mean"] == pytest.approx(18)
    assert 11 < truth["demonstrations_mean"] < 15
    assert truth["demonstrations_at_best"] < 0.2


def test_verdicts_are_asked_for_and_change_nothing_else():
    judged = prepare_world(SMALL.model_copy(update={"verdicts": 200}), 3)
    assert judged.verdicts.counts() == {"train": 200, "validation": 20, "test": 20}
    assert (judged.demonstrations, judged.preferences) == (PREPARED.demonstrations, PREPARED.preferences)
    assert PREPARED.verdicts.train == []
    world = load_world("frontdesk")
    worth = {
        good: [world.truth(v.prompt, v.response).total for v in judged.verdicts.train if v.good == good]
        for good in (True, False)
    }
    assert 0.35 < len(worth[True]) / 200 < 0.65
    assert sum(worth[True]) / len(worth[True]) > sum(worth[False]) / len(worth[False]) + 2


def test_rankings_are_asked_for_and_bring_their_pairs():
    asked = prepare_world(SMALL.model_copy(update={"rankings": 100, "ranking_size": 5}), 3)
    assert asked.rankings.counts() == {"train": 100, "validation": 10, "test": 10}
    pairs = [pair for ranking in asked.rankings.train for pair in as_preferences(ranking)]
    assert asked.preferences.train == [*PREPARED.preferences.train, *pairs]
    assert all(len(set(ranking.responses)) == 5 for ranking in asked.rankings.train)
    assert asked.report["counts"]["rankings"] == asked.rankings.counts()


def test_a_person_without_noise_ranks_by_the_truth():
    asked = prepare_world(SMALL.model_copy(update={"rankings": 50, "annotator": EXACT}), 3)
    world = load_world("frontdesk")
    for ranking in asked.rankings.train:
        worth = [world.truth(ranking.prompt, answer).total for answer in ranking.responses]
        assert all(better >= worse - 1e-4 for better, worse in pairwise(worth))


def test_a_ranking_under_objectives_names_the_one_that_was_asked_about():
    named = {"rankings": 20, "objectives": ("helpfulness", "courtesy")}
    asked = prepare_world(SMALL.model_copy(update=named), 3)
    assert {ranking.objective for ranking in asked.rankings.train} == {"helpfulness", "courtesy"}


def test_a_step_is_good_where_the_answer_is_better_with_it():
    asked = prepare_world(SMALL.model_copy(update={"steps": 100, "annotator": EXACT}), 3)
    assert asked.steps.counts() == {"train": 100, "validation": 10, "test": 10}
    world = load_world("frontdesk")
    judged = 0
    for item in asked.steps.train:
        worth = [world.truth(item.prompt, " ".join(item.steps[:n])).total for n in range(len(item.steps) + 1)]
        for (before, after), good in zip(pairwise(worth), item.good, strict=True):
            if abs(after - before) > 1e-4:
                assert good == (after > before)
                judged += 1
    assert judged > 150


def test_prepared_data_survives_the_disk(tmp_path):
    PREPARED.save(tmp_path)
    assert Prepared.load(tmp_path) == PREPARED


def test_a_reversed_range_and_an_unknown_key_are_refused():
    with pytest.raises(ValidationError, match="lowest, highest"):
        WorldData(quality=(0.8, 0.2))
    with pytest.raises(ValidationError, match="demonstration"):
        WorldData.model_validate({"demonstration": 5})


def test_settings_load_without_torch():
    code = "import sys, assay.worlds.config, assay.worlds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
