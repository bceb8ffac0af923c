"""How reward grows with the distance from the SFT policy, and where more of it stops being better.

    best-of-n   R(d) = d·(α − β·d)              reinforcement learning   R(d) = d·(α − β·log d)

d = √KL(π ‖ π_SFT); R is the gain over the SFT policy. Both are linear in α and β: plain least squares fits them.
Source: Gao et al. 2022 (arXiv 2210.10760), eq. 1 and sec. 3.1. A curve is [3, M]: d, proxy and truth at M points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

from assay.statistics import Floats, Interval, percentile_interval, resampled_means

RESAMPLES = 1000
BASELINE = "single"
"""The arm that the others are compared with."""


class Form(NamedTuple):
    """R(d) = α·d − β·bend(d)."""

    text: str
    bend: Callable[[Floats], Floats]


BEST_OF_N = Form("d(α − β·d)", np.square)
LEARNED = Form("d(α − β·log d)", lambda d: xlogy(d, d))


class Fit(NamedTuple):
    """A form with its numbers."""

    form: Form
    alpha: float
    beta: float

    def at(self, d: Floats) -> Floats:
        return self.alpha * d - self.beta * self.form.bend(d)

    def peak(self, reach: float) -> tuple[float, float]:
        """(d, R) where R is largest in [0, reach]: beyond what was measured the form says nothing."""
        d = np.linspace(0, reach, 2001)
        best = int(np.argmax(self.at(d)))
        return float(d[best]), float(self.at(d)[best])

    def misfit(self, d: Floats, gain: Floats) -> float:
        """Root mean square distance from the points."""
        return float(np.sqrt(np.mean((gain - self.at(d)) ** 2)))


def fit(form: Form, d: Floats, gain: Floats) -> Fit:
    """Least squares. ValueError where fewer than two distances differ from 0 and from each other."""
    if len(set(d[d > 0])) < 2:
        raise ValueError(f"α and β need two distances above 0, not {sorted(set(d.tolist()))}")
    alpha, beta = np.linalg.lstsq(np.stack([d, -form.bend(d)], axis=1), gain, rcond=None)[0]
    return Fit(form, float(alpha), float(beta))


Key = tuple[str, str]
"""(arm, what was found about it)."""


def findings(form: Form, curves: Mapping[str, Floats], at: float) -> dict[Key, float]:
    """Every number that the study reports of some curves, one an arm; `at` is the d at which arms are compared."""
    found: dict[Key, float] = {}
    for arm, (d, proxy, truth) in curves.items():
        fits = {"proxy": fit(form, d, proxy), "truth": fit(form, d, truth)}
        for name, fitted in fits.items():
            found |= {(arm, f"{name} α"): fitted.alpha, (arm, f"{name} β"): fitted.beta}
        found[arm, "peak d"], found[arm, "peak"] = fits["truth"].peak(d.max())
        found[arm, "truth at d"] = float(fits["truth"].at(np.array(at)))
        found[arm, "proxy − truth at d"] = float(fits["proxy"].at(np.array(at))) - found[arm, "truth at d"]
    for arm in curves:
        for what in ("truth at d", "peak"):
            found[arm, f"{what}, gained"] = found[arm, what] - found[BASELINE, what]
    return found


@dataclass(frozen=True)
class Study:
    """One way of optimising, its arms side by side."""

    form: Form
    curves: Mapping[str, Floats]
    at: float
    """Arms are compared at this d: the largest that all of them reach."""
    found: Mapping[Key, Interval]


def study(form: Form, curves: Mapping[str, Floats], resampled: Iterable[Mapping[str, Floats]], units: int) -> Study:
    """The findings with bootstrap intervals; `units` were resampled whole, for all arms together."""
    at = min(float(curve[0].max()) for curve in curves.values())
    values = findings(form, curves, at)
    samples = [findings(form, again, at) for again in resampled]
    intervals = {
        key: percentile_interval(value, np.array([sample[key] for sample in samples]), groups=units)
        for key, value in values.items()
    }
    return Study(form, curves, at, intervals)


def best_of_n_study(arms: Mapping[str, Floats], *, seed: int) -> Study:
    """From what each prompt says: arms of [P, 3, N], KL (not d), proxy and truth of every n. Prompts are resampled."""
    prompts = len(next(iter(arms.values())))
    table = np.stack(list(arms.values()), axis=1)  # [P, A, 3, N]

    def curves(means: Floats) -> dict[str, Floats]:
        by_arm = means.reshape(table.shape[1:])
        by_arm[:, 0] = np.sqrt(by_arm[:, 0].clip(0))
        return dict(zip(arms, by_arm, strict=True))

    flat = table.reshape(prompts, -1)
    means = resampled_means(flat, np.ones(prompts), seed=seed, resamples=RESAMPLES)
    return study(BEST_OF_N, curves(flat.mean(0)), map(curves, means), prompts)


def learned_study(arms: Mapping[str, Sequence[Floats]]) -> Study:
    """From one curve a seed for every arm. Seeds are resampled: all choices there are, for there are few."""
    seeds = len(next(iter(arms.values())))

    def curves(chosen: Sequence[int]) -> dict[str, Floats]:
        return {arm: np.concatenate([each[seed] for seed in chosen], axis=1) for arm, each in arms.items()}

    def resampled() -> Iterator[dict[str, Floats]]:
        return map(curves, product(range(seeds), repeat=seeds))

    return study(LEARNED, curves(range(seeds)), resampled(), seeds)
