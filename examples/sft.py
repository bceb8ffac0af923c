"""Supervised fine-tuning, the first step of RLHF: imitate people who show how it is done.

    L(θ) = − Σ_t m_t · log π_θ(y_t | x, y_<t)  /  Σ_t m_t

x is the prompt, y the response that a person wrote. m_t is 1 for the tokens of the response, the token that ends it
included, and 0 for those of the prompt: the model reads what was asked and learns what to answer, and when to stop.

Source: InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), sec. 3.5.
Run: python examples/sft.py    (about a minute; leaves its model in runs/examples/sft for the next steps)
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.data.pack import batches, collate
from assay.data.render import Renderer, Row
from assay.models.policy import Policy, load_policy
from assay.types import Prompt
from assay.worlds import World, load_world
from assay.worlds.config import WorldData
from assay.worlds.prepare import prepare_world


def nll(policy: Policy, rows: Sequence[Row]) -> Tensor:
    """Negative log-likelihood of the responses, in nats per response token."""
    batch = collate(rows, policy.pad_id)  # right-padded; loss_mask is True at response tokens
    logits_BTV = policy.model(**batch.model_inputs()).logits
    # What the model says at place t is about the token at place t + 1: hence the two shifts by one.
    logprobs_BTV = logits_BTV[:, :-1].log_softmax(dim=-1)
    logprobs_BT = logprobs_BTV.gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
    mask_BT = batch.loss_mask[:, 1:]
    # One mean over the tokens of all rows. A mean of row means would make the tokens of short responses count for more.
    return -logprobs_BT[mask_BT].sum() / mask_BT.sum()


def train(policy: Policy, steps: Iterable[Sequence[Row]], *, learning_rate: float) -> list[float]:
    """One optimizer step a batch; returns the loss of each."""
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses: list[float] = []
    for rows in steps:
        loss = nll(policy, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 25 == 1:
            print(f"step {len(losses):4d}   loss {losses[-1]:.3f} nats per token")
    return losses


@torch.no_grad()
def answers(policy: Policy, renderer: Renderer, prompts: Sequence[Prompt]) -> list[str]:
    """One answer a prompt, sampled token by token until the policy ends it."""
    asked = [Row(ids, len(ids)) for ids in (renderer.prompt(prompt, reserve=48) for prompt in prompts)]
    batch = collate(asked, policy.pad_id, side="left")  # so that every answer starts in the same column
    model: Any = policy.model  # transformers does not say what `generate` returns
    torch.manual_seed(0)
    ids_BT = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=48,
        max_length=None,
    )
    return [renderer.text(row) for row in ids_BT[:, batch.input_ids.shape[1] :].tolist()]


def mean_truth(world: World, prompts: Sequence[Prompt], responses: Sequence[str]) -> float:
    """What the guests really think of the answers, in points: a world knows, real life does not."""
    pairs = zip(prompts, responses, strict=True)
    return sum(world.truth(prompt, response).total for prompt, response in pairs) / len(prompts)


def main() -> None:
    world = load_world("frontdesk")
    data = prepare_world(WorldData(demonstrations=4000, preferences=1), seed=0)
    policy = load_policy("embedded")  # 1 M parameters that have read about a hotel, but never answered a guest
    renderer = policy.renderer("chat", max_length=128)

    shown = [renderer.row(demonstration.prompt, demonstration.response) for demonstration in data.demonstrations.train]
    rows = [row for row in shown if row]
    chance = random.Random(0)
    plan = [batch for _ in range(2) for batch in batches([len(row.ids) for row in rows], 32, chance)]

    guests = data.prompts.test[:200]
    before = mean_truth(world, guests, answers(policy, renderer, guests))
    train(policy, ([rows[i] for i in batch] for batch in plan), learning_rate=1e-3)
    after = mean_truth(world, guests, answers(policy, renderer, guests))
    policy.save(Path("runs/examples/sft"))
    best, shown_worth = world.best(guests[0]), data.report["truth"]["demonstrations_mean"]
    print(f"true worth of {len(guests)} answers to new questions: {before:.2f} → {after:.2f} of {best:.0f} points")
    print(f"the people it imitates: {shown_worth:.2f}")


if __name__ == "__main__":
    main()
