"""Thresholds of the detectors, and where a run stands on each: the limit at which it would just be a finding.

A detector is asked again and again with another limit in the place of its own, until the one is found at which its
answer changes. That number is the run's; the distance of healthy and faulty runs to the limit is what it is worth.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from assay.doctor import (
    data,
    direct,
    groups,
    kl,
    labels,
    machine,
    probe_batch,
    probe_policy,
    probe_reward,
    responses,
    reward,
    sft,
    tokens,
    trl,
    updates,
)
from assay.doctor.detector import DETECTORS, Detector, Evidence, Find, examine

ROUNDS = 10
"""Halvings of the range, on a logarithmic scale."""


@dataclass(frozen=True)
class Dial:
    """A threshold of one detector, and the range in which it is turned."""

    find: Find[Any]
    name: str
    """The constant's, in the detector's file."""
    low: float
    high: float
    what: str
    """The number that is compared with it."""
    above: bool = True
    """Whether what lies above is a finding; else what lies below."""
    opened: tuple[tuple[str, float], ...] = ()
    """Other constants of the file, and what they are while it is turned: conditions that would hold the answer back."""

    @property
    def module(self) -> str:
        return self.find.__module__

    @property
    def key(self) -> str:
        return f"{detector_name(self.detector)}: {self.name}"

    @property
    def limit(self) -> float:
        """As it is set."""
        return getattr(sys.modules[self.module], self.name)

    @property
    def detector(self) -> Detector:
        return next(detector for detector in DETECTORS if detector.find is self.find)


def detector_name(detector: Detector) -> str:
    """As in the pages: file and function."""
    return f"{detector.find.__module__.rpartition('.')[2]}.{detector.find.__name__}"


def standing(dial: Dial, evidence: Sequence[Evidence]) -> float | None:
    """The limit from which on the evidence is a finding; None where it is none at any in the range."""

    def found(limit: float) -> bool:
        with ExitStack() as turned:
            for name, value in (*dial.opened, (dial.name, limit)):
                turned.enter_context(patch.object(sys.modules[dial.module], name, value))
            return bool(examine(evidence, [dial.detector]).findings)

    strict, lax = (dial.low, dial.high) if dial.above else (dial.high, dial.low)
    if not found(strict):
        return None
    if found(lax):
        return lax
    for _ in range(ROUNDS):
        middle = math.sqrt(strict * lax)
        strict, lax = (middle, lax) if found(middle) else (strict, middle)
    return strict


def standings(evidence: Sequence[Evidence], detectors: Sequence[Detector]) -> dict[str, float | None]:
    """On every dial of these detectors that read some of the evidence."""
    dials = [dial for dial in DIALS if dial.detector in detectors]
    read = {dial: [one for one in evidence if dial.detector.reads(one)] for dial in dials}
    return {dial.key: standing(dial, found) for dial, found in read.items() if found}


DIALS: tuple[Dial, ...] = (
    # data
    Dial(data.left_out, "RARE", 1e-4, 1, "share of rows dropped for one reason, lower bound"),
    Dial(data.empty_cells, "RARE", 1e-4, 1, "share of answers that say nothing but nan or None, lower bound"),
    Dial(data.turns_in_answers, "RARE", 1e-4, 1, "share of pairs in which an answer holds another turn, lower bound"),
    Dial(data.copies, "COPIES", 1e-3, 1, "share of held-out prompts with a twin in training, lower bound"),
    Dial(data.trick, "LENGTH_WINS", 0.3, 1, "accuracy of length alone, lower bound"),
    Dial(data.trick, "WORDS_WIN", 0.3, 1, "accuracy of a bag of words, lower bound"),
    Dial(labels.no_better_than_a_trick, "ADDS", 1e-3, 1, "what the model adds to its rival, upper bound", above=False),
    Dial(labels.surest_contradicted, "AGAINST", 1e-4, 1, "share of the surest pairs labelled otherwise, lower bound"),
    Dial(tokens.cut_away, "CUT", 1e-4, 1, "share of answers that lose their end, lower bound"),
    Dial(tokens.same_rows, "RARE", 1e-4, 1, "share of pairs with equal tokens, lower bound"),
    Dial(tokens.does_not_end, "ENDS", 1e-6, 1, "probability of the end where it belongs, upper bound", above=False),
    # machine
    Dial(machine.imitated, "SLOWER", 0.1, 1e5, "time of a product in the format in use over that in fp32"),
    # sft
    Dial(sft.loss_blow_up, "WORSE", 0.01, 1e4, "late training loss over that of the start, lower bound"),
    Dial(sft.overfitting, "RISE", 1e-4, 100, "rise of the validation loss over its lowest"),
    # reward
    Dial(reward.against_margin, "FEW_TIES", 1e-4, 1, "share of ties, lower bound"),
    Dial(reward.fluctuating, "VISIBLE", 1e-3, 1, "deviation of the validation accuracy between evaluations"),
    Dial(reward.constant_scores, "CONSTANT", 1e-9, 1e3, "standard deviation of scores or gaps", above=False),
    Dial(reward.score_drift, "DRIFT", 1e-3, 1e5, "mean score in standard deviations"),
    Dial(reward.length_bias, "TASTE", 1e-4, 1, "more of the longer than people prefer, lower bound"),
    Dial(probe_reward.scored_twice, "SCORE_TOLERANCE", 1e-9, 1e3, "difference of two scorings, in deviations"),
    Dial(probe_reward.padded_and_alone, "SCORE_TOLERANCE", 1e-9, 1e3, "change of a score by padding, in deviations"),
    Dial(probe_reward.reloaded, "ROUNDED", 1e-6, 1e6, "change of a score by a reload, in thousandths of the deviation"),
    Dial(probe_reward.scores_of_a_pair, "CONSTANT", 1e-9, 1e3, "largest gap of a pair", above=False),
    Dial(probe_reward.by_heart, "LEARNT", 1, 33, "pairs of 32 learnt by heart", above=False),
    Dial(probe_reward.labels_by_lot, "SURE", 1e-12, 0.05, "p of the lots known of held-out pairs", above=False),
    # policy
    Dial(kl.negative_kl, "SIGNIFICANT", 1e-300, 1, "p of the most negative stretch", above=False),
    Dial(kl.kl_before_training, "START_KL", 1e-9, 1e3, "KL per token before the first step"),
    Dial(updates.ratio_not_one, "FIRST_RATIO", 1e-9, 1e3, "median ratio error at an iteration's first step"),
    Dial(kl.kl_blow_up, "KL_OVER_TARGET", 1e-3, 1e4, "late KL over its target, lower bound"),
    Dial(kl.kl_blow_up, "SURPRISE", 0.1, 1e3, "late surprise of the reference over its own, lower bound"),
    Dial(updates.ratio_spikes, "CLIPPED", 1e-4, 1, "share of clipped tokens, again and again"),
    Dial(updates.ratio_spikes, "DRIFT", 1e-6, 1e4, "KL(old‖new) per token within one batch"),
    Dial(responses.repeats, "LOOPS", 1e-4, 1, "late share of repeated 4-grams, lower bound"),
    Dial(responses.never_stops, "HALF", 1e-4, 1, "late share of answers cut off, lower bound"),
    Dial(responses.empty_answers, "EMPTY", 1e-4, 1, "late share of empty answers, lower bound"),
    Dial(responses.empty_answers, "SHRUNK", 1e-3, 10, "late length over that of the start, upper bound", above=False),
    Dial(kl.entropy_out_of_bounds, "EXPLODED", 0.1, 100, "late entropy over that of the start, lower bound"),
    Dial(kl.entropy_out_of_bounds, "COLLAPSED", 1e-4, 1, "the same, upper bound, no reward gained", above=False),
    Dial(groups.groups_without_signal, "MOST", 1e-4, 1, "share of groups without spread, lower bound"),
    Dial(probe_policy.mask_ignored, "TOKEN_TOLERANCE", 1e-9, 1e3, "change of a token's log-probability by pads, nats"),
    Dial(
        probe_policy.kl_before_training,
        "TOKEN_TOLERANCE",
        1e-9,
        1e3,
        "policy from reference before training, nats a token",
    ),
    Dial(probe_policy.sampler_differs, "SAMPLER_KL", 1e-16, 1e3, "KL(sampler‖trainer), nats a token"),
    Dial(probe_policy.tokenizer_mismatch, "UNTRAINED", 1e-6, 1, "smallest embedding over the median one", above=False),
    Dial(probe_policy.tokenizer_mismatch, "OUTLIER", 1, 1e4, "largest embedding over the median one"),
    # direct
    Dial(direct.stuck, "NOTHING", 1e-12, 1e3, "margin in the second half", above=False),
    Dial(direct.saturated_early, "EASY", 0.3, 1, "accuracy after a tenth of the data"),
    Dial(direct.length_growth, "LONGER", 0.1, 100, "length over that before, lower bound"),
    Dial(direct.chosen_falls, "SPOILED", 1e-4, 1, "rise of repetition or of endless answers"),
    Dial(direct.chosen_falls, "SHRUNK", 0.05, 10, "length over that before, upper bound", above=False),
    Dial(probe_policy.wrong_reference, "TOKEN_TOLERANCE", 1e-9, 1e3, "reference from the SFT model, nats a token"),
    # steps
    Dial(
        probe_batch.accumulation_bias,
        "SPLIT_TOLERANCE",
        1e-9,
        1e3,
        "difference of two splits' gradients over their norm",
    ),
    # logs of TRL's trainers
    Dial(trl.stands_still, "ROUNDING", 1e-12, 1e3, "largest size of the KL after a step, nats an answer", above=False),
    Dial(
        trl.kl_blow_up,
        "SURPRISE",
        0.1,
        1e3,
        "what each of the last answers costs the reference over what answers cost the policy",
        opened=(("NATS", -math.inf),),
    ),
    Dial(
        trl.kl_blow_up,
        "NATS",
        1e-4,
        1e3,
        "rise of the KL in each of the last lines, nats a token",
        opened=(("SURPRISE", -math.inf),),
    ),
    Dial(
        trl.collapsed,
        "COLLAPSED",
        1e-4,
        10,
        "late entropy of an answer over that of the start, upper bound",
        above=False,
        opened=(("FALLEN", -math.inf), ("OPEN", -math.inf)),
    ),
    Dial(
        trl.collapsed,
        "FALLEN",
        1e-4,
        1e3,
        "nats an answer by which its entropy has fallen",
        opened=(("COLLAPSED", math.inf), ("OPEN", -math.inf)),
    ),
    Dial(trl.no_end_token, "HALF", 1e-4, 1, "share of the last steps without any end token"),
    Dial(trl.clipped, "CLIPPED", 1e-6, 1, "share of clipped tokens, again and again"),
    Dial(trl.ratio_far_from_one, "MEAN_RATIO", 1e-3, 1e6, "largest mean ratio of a step"),
    Dial(trl.at_chance, "TELLING", 0.3, 1, "late accuracy, upper bound, if the lower is at most a half", above=False),
    Dial(
        trl.both_fall,
        "SURPRISE",
        0.1,
        1e3,
        "late surprise over that of the start, of chosen and of rejected answers",
        opened=(("GONE", -math.inf),),
    ),
    Dial(
        trl.both_fall,
        "GONE",
        1e-4,
        1e4,
        "nats by which chosen and rejected answers both have become less likely",
        opened=(("SURPRISE", -math.inf),),
    ),
    Dial(trl.constant_scores, "CONSTANT", 1e-9, 1e3, "largest range of scores in a batch, late", above=False),
    Dial(trl.score_drift, "DRIFT", 1e-3, 1e5, "late mean score over half the range of a batch, lower bound"),
    Dial(trl.fluctuating, "VISIBLE", 1e-3, 1, "falls of the accuracy between evaluations, root mean square"),
    Dial(trl.saturated_early, "EASY", 0.3, 1, "accuracy after a tenth of the first epoch"),
)
