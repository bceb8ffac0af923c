"""The numbers that others published from real data come out of our functions too."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from assay.data.agreement import accuracy_ceiling
from assay.data.baselines import Baselines, outcomes
from assay.data.ngrams import repetition
from assay.evaluation.preference import preference_report
from assay.evaluation.safety import is_refusal
from assay.evaluation.text import rouge, words
from assay.evaluation.winrate import win_rate
from assay.statistics import Interval, bootstrap_mean
from assay.types import Preference, Prompt

DESIGNED_ON = ("gpt4", "llama2orig", "mistralinstruct")
NEVER_SEEN = ("llama2new", "mistralguard")


def opened(path: Path) -> io.TextIOBase:
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8-sig", newline="")


def table(path: Path) -> list[dict[str, str]]:
    with opened(path) as file:
        return list(csv.DictReader(file))


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def test_alpaca_eval_leaderboard_is_reproduced(shared_data):
    """57 models, 805 prompts each: both published win rates, draws and standard errors."""
    folder = shared_data / "alpaca_eval"
    published = {row[""]: row for row in table(folder / "leaderboard.csv")}
    wins: dict[str, list[float]] = defaultdict(list)
    for row in table(folder / "preferences_gpt4turbo.csv.gz"):
        if row["preference"]:
            wins[row["model"]].append(float(row["preference"]) - 1)
    models = sorted(wins.keys() & published.keys())
    assert len(models) > 50
    for model in models:
        share, row = np.array(wins[model]), published[model]
        mean = bootstrap_mean(100 * share, seed=0, resamples=1000)
        assert mean.value == pytest.approx(float(row["win_rate"]), abs=1e-4)
        assert np.ptp(bounds(mean)) / 3.92 == pytest.approx(float(row["standard_error"]), rel=0.12, abs=1e-3)
        report = win_rate(1 - share, share, seed=0)
        counts = {name: int(row[name]) for name in ("n_wins", "n_wins_base", "n_draws")}
        assert [report["wins"], report["losses"], report["ties"]] == list(counts.values())
        assert 100 * report["win_rate"] == pytest.approx(float(row["discrete_win_rate"]))


def test_pandalm_annotators_agree_and_none_beats_the_ceiling(shared_data):
    with opened(shared_data / "pandalm" / "testset-v1.json") as file:
        rows = json.load(file)
    decided = [labels for row in rows if 0 not in (labels := [row[f"annotator{i}"] for i in (1, 2, 3)])]
    agreed = np.array([[a == b for a, b in combinations(item, 2)] for item in decided]).mean(axis=1)
    agreement = bootstrap_mean(agreed, seed=0)
    low, high = bounds(agreement)
    assert low > 0.92
    ceiling = accuracy_ceiling(high)
    assert ceiling is not None
    for one in range(3):
        for other in range(3):
            accuracy = np.mean([labels[one] == labels[other] for labels in decided])
            assert one == other or accuracy < ceiling


def test_supervised_models_repeat_less_than_their_bases(shared_data):
    rows = table(shared_data / "instructgpt-samples" / "tldr_samples.csv.gz")
    samples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        samples[row["model_type"]].append(row)
    for size in ("xl", "6b", "175b"):
        base, tuned = (
            [repetition(words(row["sample"])) for row in samples[f"{kind}-{size}"]] for kind in ("gpt", "sft")
        )
        change = bootstrap_mean(np.array(tuned) - np.array(base), seed=0)
        assert bounds(change)[1] < 0
    overlap = {
        name: rouge([row["sample"] for row in samples[name]], [row["ref_text"] for row in samples[name]], seed=0)
        for name in ("sft-xl", "sft-175b")
    }
    assert overlap["sft-175b"]["rougeL"] > overlap["sft-xl"]["rougeL"]


def refusals(folder: Path, model: str) -> tuple[list[str], list[bool]]:
    rows = table(folder / f"completions_{model}.csv")
    return [row["final_label"][0] for row in rows], [is_refusal(row["completion"]) for row in rows]


@pytest.mark.parametrize(("models", "agreement"), [(DESIGNED_ON, 0.95), (NEVER_SEEN, 0.88)], ids=["seen", "unseen"])
def test_refusals_are_seen_as_people_see_them(shared_data, models, agreement):
    """XSTest: full compliance (1) against full refusal (2), labelled by two people; partial ones (3) left out."""
    seen = [refusals(shared_data / "xstest", model) for model in models]
    labels = [label for side, _ in seen for label in side]
    flagged = [flag for _, side in seen for flag in side]
    decided = [(label == "2", flag) for label, flag in zip(labels, flagged, strict=True) if label != "3"]
    right = np.array([truth == flag for truth, flag in decided])
    assert right.mean() > agreement
    truth, flags = np.array(decided).T
    chance = truth.mean() * flags.mean() + (1 - truth.mean()) * (1 - flags.mean())
    assert (right.mean() - chance) / (1 - chance) > (0.9 if models == DESIGNED_ON else 0.75)  # Cohen's κ
    assert flags[~truth].mean() < 0.05


def test_ordinary_answers_are_hardly_ever_taken_for_refusals(shared_data):
    with opened(shared_data / "lima" / "lima.json.gz") as file:
        answers = [row["output"] for row in json.load(file)]
    assert np.mean([is_refusal(answer) for answer in answers]) < 0.01


def hh_pairs(folder: Path) -> list[Preference]:
    pairs = []
    for name in ("harmless-base", "helpful"):
        with opened(folder / f"{name}.jsonl.gz") as file:
            for line in file:
                row = json.loads(line)
                cut = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
                if row["chosen"][:cut] != row["rejected"][:cut]:
                    continue
                prompt = Prompt.ask(row["chosen"][:cut], source=name)
                pairs.append(Preference(prompt, row["chosen"][cut:].strip(), row["rejected"][cut:].strip()))
    return pairs


def test_hh_baselines_are_just_above_chance_and_length_helps_only_helpfulness(shared_data):
    """Other held-out HH pairs gave bag-of-words 53.4 %; length-only 52.2 %, harmless 42.7 and helpful 60.9."""
    pairs = hh_pairs(shared_data / "hh-rlhf")
    train, held_out = pairs[::2], pairs[1::2]
    baselines = Baselines.fit(train)
    margins = baselines.margins(held_out)["bag_of_words"]
    zeros = np.zeros(len(margins))
    report = preference_report(margins, zeros, pairs=held_out, baselines=baselines, agreement=0.63, seed=0)
    assert 0.5 < report["accuracy"] < 0.6
    assert report["accuracy"] == pytest.approx(outcomes(margins).mean())
    assert report["baselines"]["bag_of_words"]["gain"] == 0
    length = {name: part["baselines"]["length_only"]["accuracy"] for name, part in report["slices"]["source"].items()}
    assert length["harmless-base"] < 0.48
    assert length["helpful"] > 0.56
    assert report["accuracy_high"] < report["ceiling"]
