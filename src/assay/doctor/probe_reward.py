"""Probes of reward models: of their scores, of what they can learn, and, by what they learn, of labels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms.preference_loss import bradley_terry
from assay.data.pack import collate
from assay.data.render import Row
from assay.doctor.data import at_least, percent
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.labels import TOO_GOOD
from assay.doctor.probing import ROUNDED, exact, not_finite_in, unchanged
from assay.doctor.reward import CONSTANT, CONSTANT_SCORES, FLUCTUATING, NOT_FINITE, REWARD_AT_CHANCE, SURE
from assay.errors import ModelError
from assay.models.load_reward import load_reward_model
from assay.models.reward_model import RewardModel
from assay.statistics import Floats, proportion
from assay.types import Preference

PADDING_CHANGES_SCORE = Mode(
    20,
    "padding-changes-score",
    "reward",
    "A response scores differently beside longer ones",
    "The score is read at a wrong place (such as the token before the first pad), or pads are attended to.",
    "Read the score at the rightmost token whose attention mask is 1, and pass attention mask and positions.",
    ("fluctuating-accuracy", "head-lost", "reward-at-chance", "constant-scores"),
)
HEAD_LOST = Mode(
    21,
    "head-lost",
    "reward",
    "A reward model scores differently after it was saved and loaded",
    "The score head, or part of the model, is not in its folder and is drawn anew at every load.",
    "Save the head with the model (`modules_to_save: [score]` in peft) and refuse to load without it.",
    ("reward-at-chance", "fluctuating-accuracy"),
)

SCORE_TOLERANCE = 1e-3  # of the scores' standard deviation; fp32 differs by 1e-6
BY_HEART = 32  # pairs
TRIES = 60  # optimizer steps; a healthy tiny model needs 10
LOTS = 240  # steps: labels without sense take longer
LEARNT = 26  # of 32 right: p < 0.001 for a coin


@dataclass(frozen=True)
class RewardProbe:
    """A reward model, and a few pairs to ask it about."""

    model: RewardModel
    pairs: Sequence[Preference]
    saved: Path | None = None
    """Where it was saved."""
    where: str = "reward"
    kind: str = "reward-model"

    @property
    def rows(self) -> list[Row]:
        """Chosen and rejected of every pair that fits, one after the other."""
        found = [[self.model.row(pair.prompt, text) for text in (pair.chosen, pair.rejected)] for pair in self.pairs]
        rows = [row for pair in found if all(pair) for row in pair if row]
        if not rows:
            raise Missing("no pair to ask the reward model about")
        return rows


@dataclass(frozen=True)
class Measured:
    """Scores of held-out answers by the model in its folder, and what the stage reported of the model in memory."""

    where: str
    scores: Floats
    """Of the chosen answers and of the rejected ones."""
    report: Mapping[str, Any]
    whole: bool = True
    """Whether these are all the answers that the report is of."""
    kind: str = "measured"


@dataclass(frozen=True)
class LabelProbe:
    """What is learnt from, what is held out, and a model to learn; nobody should know the labels of the latter."""

    model: RewardModel
    train: Sequence[Preference]
    held_out: Sequence[Preference]
    steps: int = LOTS
    """In which it may learn."""
    where: str = "data"
    kind: str = "labels"


@torch.no_grad()
def scores(model: RewardModel, rows: Sequence[Row], *, padded: bool = False) -> Tensor:
    """[N]: all rows in one batch as everybody scores them, or with pads between them."""
    batch = collate(rows, model.pad_id).to(model.backbone.device)
    return model.score(replace(batch, rows=None) if padded else batch).float().cpu()


@detects(FLUCTUATING, kinds=("reward-model",))
def scored_twice(probe: RewardProbe) -> Iterator[Finding]:
    """The same texts, twice."""
    rows = probe.rows
    first, second = scores(probe.model, rows), scores(probe.model, rows)
    difference = (first - second).abs().max().item()
    if difference > SCORE_TOLERANCE * first.std().item():
        yield Finding(
            FLUCTUATING,
            probe.where,
            f"the same {len(rows)} responses scored twice differ by up to {difference:.2g} (their standard deviation: "
            f"{first.std():.2g})",
            sureness="certain",
            cause="Dropout is on while the model is measured.",
            cure="Call `model.eval()` before scoring, or set dropout to 0.",
            brings=("head-lost", "reward-at-chance"),
        )


@detects(PADDING_CHANGES_SCORE, kinds=("reward-model",))
def padded_and_alone(probe: RewardProbe) -> Iterator[Finding]:
    """Every response in a padded batch, in a batch as usual, and alone."""
    model, rows = probe.model, probe.rows
    alone = torch.cat([scores(model, [row]) for row in rows])
    worst = max((scores(model, rows, padded=pads) - alone).abs().max().item() for pads in (True, False))
    tolerance = SCORE_TOLERANCE * (1.0 if exact(model.backbone) else ROUNDED)
    if worst > tolerance * alone.std().item() and repeats(model, rows):
        yield Finding(
            PADDING_CHANGES_SCORE,
            probe.where,
            f"in a batch a score changes by up to {worst:.2g}; the scores' standard deviation is {alone.std():.2g} "
            f"({len(rows)} responses)",
            sureness="certain",
        )


def repeats(model: RewardModel, rows: Sequence[Row]) -> bool:
    """Whether the same question has the same answer twice; if not, nothing can be told from a difference."""
    first, second = scores(model, rows), scores(model, rows)
    return (first - second).abs().max().item() <= SCORE_TOLERANCE * first.std().item()


@detects(HEAD_LOST, kinds=("reward-model",))
def reloaded(probe: RewardProbe) -> Iterator[Finding]:
    """The model as its folder gives it, against the one in memory."""
    model, rows = probe.model, probe.rows
    if probe.saved is not None and probe.saved in (model.source, model.source.parent):
        raise Missing("the model came from its folder: there are no two to compare")
    with folder_of(probe) as folder:
        try:
            again = load_reward_model(
                folder,
                trainable=False,
                template=model.template,
                max_length=model.renderer.max_length,
                device=model.backbone.device,
            )
        except ModelError as error:
            yield Finding(HEAD_LOST, probe.where, str(error).splitlines()[0], sureness="certain")
            return
        before, after = scores(model, rows), scores(again, rows)
    difference = (before - after).abs().max().item()
    if difference > SCORE_TOLERANCE * ROUNDED * before.std().item() and repeats(model, rows):
        yield Finding(
            HEAD_LOST,
            probe.where,
            f"scores change by up to {difference:.2g} (standard deviation {before.std():.2g}); correlation of old and "
            f"new {torch.corrcoef(torch.stack([before, after]))[0, 1]:.2f}",
            sureness="certain",
        )


@detects(HEAD_LOST)
def not_as_reported(measured: Measured) -> Iterator[Finding]:
    """Mean and spread of all scores, whichever answer was chosen, against those before the model was saved."""
    names = ("chosen_mean", "rejected_mean", "score_std")
    known = [measured.report.get(name) for name in names]
    if not all(isinstance(value, int | float) for value in known):
        raise Missing(f"the report has no {' or '.join(names)}")
    chosen, rejected, spread = (float(value) for value in known if value is not None)
    mean, found, std = (chosen + rejected) / 2, float(measured.scores.mean()), float(measured.scores.std())
    if not math.isfinite(found):
        raise Missing("the scores are not finite, which is no matter of saving")
    drawn = 0.0 if measured.whole else 5 / math.sqrt(len(measured.scores))
    tolerance = SCORE_TOLERANCE * ROUNDED + drawn
    if abs(found - mean) > tolerance * spread or abs(std - spread) > tolerance * spread:
        yield Finding(
            HEAD_LOST,
            measured.where,
            f"as the folder gives it, the model scores {len(measured.scores):,} held-out answers {found:.3g} ± "
            f"{std:.3g} (mean and deviation); before it was saved it gave them {mean:.3g} ± {spread:.3g}",
            sureness="certain",
            cause="The weights in the folder, of the head or of the trunk, are not those that the stage measured.",
        )


@contextmanager
def folder_of(probe: RewardProbe) -> Iterator[Path]:
    """Where the model was saved, or a place where it is saved for this."""
    if probe.saved is not None:
        yield probe.saved
        return
    with tempfile.TemporaryDirectory() as folder:
        probe.model.save(Path(folder))
        yield Path(folder)


@detects(CONSTANT_SCORES, kinds=("reward-model",))
def scores_of_a_pair(probe: RewardProbe) -> Iterator[Finding]:
    """Different responses to one prompt."""
    rows = probe.rows
    found = scores(probe.model, rows)
    differ = [one.ids != other.ids for one, other in zip(rows[0::2], rows[1::2], strict=True)]
    gaps = (found[0::2] - found[1::2])[differ]
    if not len(gaps):
        raise Missing("no pair of different responses")
    if gaps.abs().max() < CONSTANT:
        yield Finding(
            CONSTANT_SCORES,
            probe.where,
            f"the responses of {len(gaps)} different pairs score alike to {gaps.abs().max():.1e}; over all prompts "
            f"the standard deviation is {found.std():.1e}",
            sureness="certain",
        )


@detects(REWARD_AT_CHANCE, kinds=("reward-model",))
def by_heart(probe: RewardProbe) -> Iterator[Finding]:
    """Can it learn 32 pairs? If not, the fault is in code; else it is in data or learning rate."""
    model = probe.model
    trained = model.parameters_trained()
    if not trained:
        raise Missing("the reward model was loaded without anything to train")
    rows = probe.rows[: 2 * BY_HEART]
    pairs = len(rows) // 2
    with unchanged(trained):
        loss = learn(model, rows)
        found = scores(model, rows)
    right = int((found[0::2] > found[1::2]).sum())
    if right < LEARNT / BY_HEART * pairs:
        yield Finding(
            REWARD_AT_CHANCE,
            probe.where,
            f"after {TRIES} steps on {pairs} pairs it has {right} of them right, loss {loss:.3f}",
            sureness="certain",
            cause="It cannot learn even a few pairs by heart: the fault is in the code, not in data or learning rate; "
            "no gradient reaches the weights, or the score does not depend on the response.",
            cure="Check that head and adapters require gradients and that the score is read at the last token.",
        )


def learn(model: RewardModel, rows: Sequence[Row], steps: int = TRIES) -> float:
    """Steps on all pairs at once until each is right; rows are chosen, rejected, chosen … Returns the last loss."""
    batch = collate([*rows[0::2], *rows[1::2]], model.pad_id).to(model.backbone.device)
    # Adam moves every weight by its rate, so that a state moves by rate · width.
    optimizer = torch.optim.Adam(model.parameters_trained().values(), lr=0.1 / model.backbone.width)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen, rejected = model.score(batch).chunk(2)
        loss, _ = bradley_terry(chosen, rejected)
        if not loss.requires_grad or bool((chosen > rejected).all()):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


@detects(TOO_GOOD, kinds=("labels",))
def labels_by_lot(probe: LabelProbe) -> Iterator[Finding]:
    """Answers get a worth by lot, which decides every pair: only who has seen an answer can know its worth."""
    rows = RewardProbe(probe.model, [drawn_by_lot(pair) for pair in probe.train]).rows
    held = RewardProbe(probe.model, [drawn_by_lot(pair) for pair in probe.held_out]).rows
    with unchanged(probe.model.parameters_trained()):
        learn(probe.model, rows, probe.steps)
        learnt, found = scores(probe.model, rows), scores(probe.model, held)
    if (learnt[0::2] > learnt[1::2]).float().mean() < LEARNT / BY_HEART:
        raise Missing(f"{probe.steps} steps are too few to learn the lots of {len(rows) // 2} pairs by heart")
    right = (found[0::2] > found[1::2]).double().numpy()
    prompts = [tuple(row.ids[: row.prompt_length]) for row in held[0::2]]
    known = proportion(right, groups=prompts, confidence=1 - 2 * SURE)
    if at_least(known, 0.5):
        yield Finding(
            TOO_GOOD,
            probe.where,
            f"after learning {len(rows) // 2} pairs whose labels were drawn by lot, {right.sum():.0f} of {len(right)} "
            f"lots of held-out pairs are known ({percent(known)})",
            sureness="certain",
            cause="Held-out pairs, or copies of them, are among the pairs that are learnt from.",
        )


def drawn_by_lot(pair: Preference) -> Preference:
    """The same two answers in the order of their lots: one lot an answer, or three might beat each other in a ring."""
    first, second = sorted(
        (pair.chosen, pair.rejected), key=lambda answer: rng.derive(0, "lot", pair.prompt.text, answer)
    )
    return Preference(pair.prompt, first, second)


@detects(NOT_FINITE, kinds=("reward-model",))
def reward_not_finite(probe: RewardProbe) -> Iterator[Finding]:
    """The first number that is not finite, on the way to scores."""
    yield from not_finite_in(probe.where, probe.model.backbone.model, lambda: scores(probe.model, probe.rows))
