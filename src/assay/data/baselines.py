"""What a reward model must beat: chance, the longer answer, and a bag of words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.statistics import Floats, paired_bootstrap, proportion
from assay.types import Preference

CHANCE = 0.5
FEWEST_PAIRS = 10
"""Fewer training pairs than this teach a bag of words nothing worth a comparison."""
MOST_PAIRS = 20_000
"""More training pairs than this cost minutes and change a linear baseline's accuracy in the third digit."""
STRENGTHS = (0.003, 0.03, 0.3)
"""Inverse L2 regularisation strengths (scikit-learn's C) to choose from, the strongest regularisation first."""

Judge = Callable[[Sequence[Preference]], Floats]
"""Held-out pairs to one margin each: the chosen response's score less that of the rejected one."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """What a reward model must beat, fitted once: it may then judge as many held-out pairs as there are."""

    pairs: int
    """Training pairs that they learned from."""
    judges: Mapping[str, Judge]

    @classmethod
    def fit(cls, train: Sequence[Preference]) -> Baselines:
        """Length always; a bag of words only where it has enough to read."""
        judges = {"length_only": length_only(train)}
        if len(train) >= FEWEST_PAIRS:
            judges["bag_of_words"] = bag_of_words(train)
        return cls(len(train), judges)

    def margins(self, held_out: Sequence[Preference]) -> dict[str, Floats]:
        """Margins of every baseline on the held-out pairs, by name."""
        return {name: judge(held_out) for name, judge in self.judges.items()}


def outcomes(margins: Floats) -> Floats:
    """1 where the chosen response scores higher, ½ where both score the same, else 0."""
    return np.where(margins == 0, 0.5, margins > 0)


def answer_words(pairs: Sequence[Preference]) -> float:
    """Median number of words in a chosen response."""
    return float(np.median([len(pair.chosen.split()) for pair in pairs]))


def length_margins(pairs: Sequence[Preference]) -> Floats:
    """Characters of the chosen response less those of the rejected one."""
    return np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], dtype=np.float64)


def length_only(train: Sequence[Preference]) -> Judge:
    """A judge that sees nothing but length; whether longer is better it learns from `train`."""
    sign = 1 if not train or float(np.sign(length_margins(train)).sum()) >= 0 else -1
    return lambda held_out: sign * length_margins(held_out)


def bag_of_words(train: Sequence[Preference]) -> Judge:
    """Margins w·(x_chosen − x_rejected), x counting each word of a response; no order, no prompt.

    This is Bradley–Terry with a linear score: logistic regression on differences, without intercept. Words that
    fewer than three training responses use are dropped. The L2 strength is the one of `STRENGTHS` that is most
    accurate on every fifth training pair. At most `MOST_PAIRS` pairs, evenly spaced, are read.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    seen = train[:: 1 + (len(train) - 1) // MOST_PAIRS]
    counter = CountVectorizer(min_df=3, token_pattern=r"\w+|[^\w\s]")
    try:
        counter.fit([text for pair in seen for text in (pair.chosen, pair.rejected)])
    except ValueError:  # scikit-learn's word for "no word is frequent enough": such a bag is empty and sees only ties
        return lambda held_out: np.zeros(len(held_out))

    def differences(pairs: Sequence[Preference]) -> Any:
        return counter.transform([pair.chosen for pair in pairs]) - counter.transform([pair.rejected for pair in pairs])

    x = differences(seen)
    fifth = np.arange(len(seen)) % 5 == 0
    accuracy = {c: outcomes(x[fifth] @ _weights(x[~fifth], c)).mean() for c in STRENGTHS}
    weights = _weights(x, max(STRENGTHS, key=lambda c: accuracy[c]))
    return lambda held_out: differences(held_out) @ weights


def _weights(differences: Any, strength: float) -> Floats:
    """w of P(chosen) = σ(w·x). Every other row is turned round, which leaves the loss as it is and gives
    scikit-learn the two classes that it asks for."""
    from sklearn.linear_model import LogisticRegression

    turned = np.arange(differences.shape[0]) % 2
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(differences.multiply((1 - 2 * turned)[:, None]).tocsr(), 1 - turned)
    return np.asarray(model.coef_[0], dtype=np.float64)


def against(model: Floats, margins: Floats, *, groups: Sequence[Hashable], seed: int) -> dict[str, Any]:
    """A baseline's accuracy, and what the model adds to it on the same pairs.

    Keys: accuracy, accuracy_low, accuracy_high, ties, gain, gain_low, gain_high (model less baseline, paired).
    """
    right = outcomes(margins)
    return {
        **proportion(right, groups=groups).named("accuracy"),
        "ties": int((right == 0.5).sum()),
        **paired_bootstrap(right, outcomes(model), seed=seed, groups=groups).named("gain"),
    }
