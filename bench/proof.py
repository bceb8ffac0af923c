"""Trains every method on a world small enough to sum over, and writes down how near each came to its optimum.

    make proof         →  docs/results/proof.md and proof.svg, exit code 1 where a method did not arrive

What is measured: bench/climb.py (methods), bench/gradients.py (estimators of the gradient).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import numpy as np
import torch
from bench import climb, common, gradients
from bench.climb import Climb, Kind, Method
from matplotlib.figure import Figure
from tests.oracles import tree as oracle

from assay.algorithms import bestof

LIMIT = 0.01
"""A method has arrived when this share of the way is left."""

KINDS: tuple[Kind, ...] = get_args(Kind)
ITERATIONS: Mapping[Kind, int] = {"table": 100, "transformer": 300}
"""Before a method's own pace."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="part of a method's name")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    facts = common.origin("make proof")
    tasks = [(method.name, kind) for kind in KINDS for method in climb.METHODS if asked.only in method.name]
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        climbs = list(shown(pool.map(one, tasks)))
    if not asked.only:
        common.write(asked.results / "proof.svg", picture(climbs))
        common.write(asked.results / "proof.md", page(facts, climbs))
    late = [found for found in climbs if found.shares[-1] > LIMIT]
    for found in late:
        print(f"not arrived: {found.name}, {found.kind}: {found.shares[-1]:.2%} left", file=sys.stderr)
    sys.exit(bool(late))


def one_thread() -> None:
    torch.set_num_threads(1)


def one(task: tuple[str, Kind]) -> Climb:
    """One method with one kind of policy, in a process of its own."""
    name, kind = task
    return climb.climb(by_name(name), kind, iterations=ITERATIONS[kind])


def by_name(name: str) -> Method:
    return next(method for method in climb.METHODS if method.name == name)


def shown(climbs: Iterator[Climb]) -> Iterator[Climb]:
    for found in climbs:
        print(f"{found.kind:12} {found.name:34} {found.shares[-1]:8.3%} left  {found.seconds:5.0f} s", flush=True)
        yield found


def page(facts: Mapping[str, Any], climbs: Sequence[Climb]) -> str:
    """The result as Markdown."""
    arrived = sum(found.shares[-1] <= LIMIT for found in climbs)
    certificate = max(found.certificate_error for found in climbs)
    return f"""# Proof on a world that can be summed over

{common.origin_text(facts)}
64 responses of 3 tokens out of 4; scores with deviation {climb.SPREAD}, β = {climb.BETA}. The policy is a table of
logits, or a transformer (one layer of a GPT-2). Each is trained by the code of the stages on {climb.BATCH} sampled
responses an iteration, with a learning rate that falls to 0. Only the measurement is exact:

- J(π) = E[r] − β·KL(π‖π_ref) has its optimum at π* ∝ π_ref·e^(r/β).
- What is left of the way is KL(π‖target) / KL(π_ref‖target). Where the target is π* that is
  (J* − J(π)) / (J* − J(π_ref)), because J* − J(π) = β·KL(π‖π*): along the way this held to {certificate:.0e}.

**{arrived} of {len(climbs)} arrived** (at most {LIMIT:.0%} of the way left).

![What is left of the way, against iterations](proof.svg)

## Methods whose optimum is π*

{methods_table(climbs, {method.name for method in climb.TO_OPTIMUM})}
The KL is in the reward unless the name says otherwise. Then dividing by the group's deviation moves no optimum: at π*
every response's score − β·log(π/π_ref) is the same, so no advantage is left to divide.

## Methods that rest elsewhere, as their theory says

{methods_table(climbs, {method.name for method in climb.TO_ANOTHER})}
Of preference methods every response stands against one opponent; h is its log-ratio less the opponent's, known in
closed form (`bench/climb.py`). With the KL in the loss, the score alone is divided by its deviation σ: GRPO then climbs
with β·σ in the place of β, and σ is that of the policy it ends with. A narrower policy has a smaller σ and so narrows
further: both forms of it are measured at β = 1.5, because at the β of the others they end at a single response. With k3
by token in the loss, as published, each state pulls with the gradient of the other direction of the KL, and the optimum
tilts π_ref rationally, π = β·π_ref/(c − Q/σ), and not exponentially (arXiv 2502.18548).

## Best of n, exactly

{best_of_n_table()}
No training: the best of n samples of π_ref. It lies on no path to π*, and its KL is below log n − (n − 1)/n.

## Estimators of the policy gradient

Over all 64² pairs of responses that can be drawn, by their probability; gradients of the production losses at ρ = 1.
Variance is per response, in units of ‖∇J‖².

{gradients_table()}"""


def methods_table(climbs: Sequence[Climb], names: set[str]) -> str:
    header = [
        "method",
        "comes to",
        *(f"left, {kind}" for kind in KINDS),
        "of J* − J(π_ref)",
        "iterations to 1 %",
        "time",
    ]
    found = {(one.name, one.kind): one for one in climbs}
    rows = []
    for method in climb.METHODS:
        if method.name not in names:
            continue
        both = [found[method.name, kind] for kind in KINDS]
        rows.append(
            [
                method.name,
                method.rests,
                *(f"{one.shares[-1]:.3%}" for one in both),
                " / ".join(f"{one.gap:.2%}" for one in both),
                " / ".join(arrival(one) for one in both),
                " / ".join(str(one.steps[-1]) for one in both),
                " / ".join(f"{one.seconds:.0f} s" for one in both),
            ]
        )
    return common.table(header, rows)


def arrival(found: Climb) -> str:
    """The iteration after which it never was farther than the limit."""
    far = [step for step, share in zip(found.steps, found.shares, strict=True) if share > LIMIT]
    later = [step for step in found.steps if step > max(far)]
    return str(later[0]) if later else "–"


def best_of_n_table() -> str:
    tree = climb.World.new("table", 0).tree
    probs, scores = torch.from_numpy(oracle.responses(tree.reference)), torch.from_numpy(tree.scores)
    worth = oracle.best(tree)[1]
    most = worth - oracle.objective(tree, tree.reference)
    rows = []
    for n in (1, 2, 4, 8, 16, 32):
        chances = bestof.best_of_n(probs, scores, n)
        rows.append(
            [
                str(n),
                f"{(chances @ scores).item():.3f}",
                f"{bestof.best_of_n_kl(probs, scores, n).item():.3f}",
                f"{bestof.kl_bound(n):.3f}",
                f"{(worth - oracle.objective_of(tree, chances.numpy())) / most:.1%}",
            ]
        )
    return common.table(["n", "E[r]", "KL, nats", "its bound", "of J* − J(π_ref) left"], rows)


def gradients_table() -> str:
    numbers = np.random.default_rng(0)
    reference, policy = (oracle.softmax(numbers.normal(size=(21, 4))) for _ in range(2))
    sampler = oracle.softmax(np.log(policy) + 0.3 * numbers.normal(size=(21, 4)))
    tree = oracle.Tree(reference, climb.SPREAD * numbers.normal(size=64), climb.BETA)
    rows = []
    for estimator in gradients.ESTIMATORS:
        found = gradients.moments(estimator, tree, policy, sampler)
        rows.append([estimator.name, f"{found.bias:.1e}", f"{found.cosine:.4f}", f"{found.variance:.1f}"])
    return common.table(["estimator", "bias, of ‖∇J‖", "cosine with ∇J", "variance"], rows)


def picture(climbs: Sequence[Climb]) -> str:
    """Share of the way left against iterations, a panel a kind of policy, as SVG."""
    with mpl.rc_context({"svg.hashsalt": "assay", "font.size": 8}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        panels = figure.subplots(1, len(KINDS), sharey=True, squeeze=False)[0]
        for panel, kind in zip(panels, KINDS, strict=True):
            for index, found in enumerate(one for one in climbs if one.kind == kind):
                style = "-" if index < 10 else "--" if index < 20 else ":"
                panel.plot(found.steps, found.shares, style, color=f"C{index % 10}", label=found.name, linewidth=1)
            panel.axhline(LIMIT, color="black", linewidth=0.8)
            panel.set(title=f"{kind} policy", xlabel="iterations", yscale="log")
        panels[0].set_ylabel("KL(π‖target) / KL(π_ref‖target)")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


if __name__ == "__main__":
    main()
