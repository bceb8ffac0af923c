"""A reward model, the second step of RLHF: learn from comparisons what people prefer.

    P(y_c ≻ y_r | x) = σ(r(x, y_c) − r(x, y_r))                                   Bradley & Terry 1952
    L(θ) = mean [ −log σ(r_θ(x, y_c) − r_θ(x, y_r))  +  λ·(r_θ(x, y_c) + r_θ(x, y_r))² ]

People are poor at giving marks and good at comparing, so all we have are pairs: y_c was chosen, y_r rejected. Only the
difference of two rewards means anything; the λ term keeps their free constant near 0.

Sources: InstructGPT (arXiv 2203.02155), eq. 1; the λ term, Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2;
calibration, Guo et al. 2017 (arXiv 1706.04599), sec. 4.2.
Run: python examples/reward.py    (after sft.py; two minutes; leaves its model in runs/examples/reward)
Shapes: P pairs, B = 2·P rows, T tokens, D features.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.data.pack import batches, collate
from assay.data.render import Row
from assay.models.roles import RewardModel, load_reward_model
from assay.types import Preference
from assay.worlds import load_world
from assay.worlds.config import WorldData
from assay.worlds.prepare import prepare_world

Pair = tuple[Row, Row]
"""Chosen and rejected, each a prompt with its response."""


def gaps(model: RewardModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Differences r_chosen − r_rejected and sums r_chosen + r_rejected, [P] each."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    batch = collate(rows, model.pad_id)
    hidden_BTD = model.backbone.trunk(**batch.model_inputs()).last_hidden_state
    # A causal model has read the whole response at its last token, and there the score is taken.
    last_B = batch.attention_mask.sum(dim=1) - 1
    scores_B = model.head(hidden_BTD[torch.arange(len(rows)), last_B]).squeeze(1)
    chosen_P, rejected_P = scores_B.chunk(2)
    return chosen_P - rejected_P, chosen_P + rejected_P


def train(
    model: RewardModel, steps: Iterable[Sequence[Pair]], *, learning_rate: float, centring: float = 0.01
) -> list[float]:
    """One optimizer step a batch; returns the loss of each."""
    parameters = list(model.parameters_trained().values())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses: list[float] = []
    for pairs in steps:
        gap_P, sum_P = gaps(model, pairs)
        loss = (-F.logsigmoid(gap_P) + centring * sum_P.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 25 == 1:
            right = (gap_P > 0).float().mean().item()
            print(f"step {len(losses):4d}   loss {losses[-1]:.3f}   pairs in the right order {right:.0%}")
    return losses


def calibrate(model: RewardModel, held_out: Sequence[Pair]) -> float:
    """Scale the head so that σ(gap) is the chance of being preferred, on pairs the model has not seen; the scale.

    g minimises Σ −log σ(g·gap) + ½·log² g: logistic regression with one weight, kept finite by the last term.
    """
    with torch.no_grad():
        gap_P, _ = gaps(model, held_out)
    gap_P = gap_P.double()
    log_gain = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_gain], max_iter=100, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        cost = -F.logsigmoid(log_gain.exp() * gap_P).sum() + 0.5 * log_gain.square()
        cost.backward()
        return cost

    optimizer.step(cost)
    gain = log_gain.exp().item()
    with torch.no_grad():
        model.head.weight.mul_(gain)
    return gain


def pairs_of(model: RewardModel, preferences: Sequence[Preference]) -> list[Pair]:
    """The comparisons as token rows."""
    rows = ((model.row(p.prompt, p.chosen), model.row(p.prompt, p.rejected)) for p in preferences)
    return [(chosen, rejected) for chosen, rejected in rows if chosen and rejected]


def main() -> None:
    world = load_world("frontdesk")
    data = prepare_world(WorldData(demonstrations=1, preferences=6000), seed=0)
    model = load_reward_model("runs/examples/sft", head_seed=0, max_length=128)  # a new head: one number a response
    train_on, held_out = pairs_of(model, data.preferences.train), pairs_of(model, data.preferences.validation)

    lengths = [len(chosen.ids) + len(rejected.ids) for chosen, rejected in train_on]
    plan = batches(lengths, 32, random.Random(0))  # one pass: reward models soon overfit (InstructGPT, app. C.2)

    def accuracy() -> float:
        with torch.no_grad():
            gap_P, _ = gaps(model, held_out)
        return (gap_P > 0).float().mean().item()

    before = accuracy()
    train(model, ([train_on[i] for i in batch] for batch in plan), learning_rate=5e-4)
    after, gain = accuracy(), calibrate(model, held_out)
    model.save(Path("runs/examples/reward"))
    print(f"agrees with the people in {len(held_out)} new comparisons: {before:.1%} → {after:.1%}")
    print(f"possible at most, for people differ: {data.report['annotators']['measured']['ceiling']:.1%}")
    print(f"it was {'over' if gain < 1 else 'under'}confident: its scores were multiplied by {gain:.2f}")

    test = data.preferences.test
    prompts = [pair.prompt for pair in test]
    chosen = model.score_texts(prompts, [pair.chosen for pair in test])
    rejected = model.score_texts(prompts, [pair.rejected for pair in test])
    truth = [world.truth(p.prompt, p.chosen).total - world.truth(p.prompt, p.rejected).total for p in test]
    judged = [(c > r) == (gap > 0) for c, r, gap in zip(chosen, rejected, truth, strict=True) if gap]
    print(f"agrees with what the people really want, which it never saw: {sum(judged) / len(judged):.1%}")


if __name__ == "__main__":
    main()
