"""Direct preference optimisation: the policy learns from comparisons itself, without a reward model or sampling.

    L(θ) = −mean log σ(β·h)        h = log π_θ(y_c|x)/π_ref(y_c|x) − log π_θ(y_r|x)/π_ref(y_r|x)

The policy that PPO looks for, the best one under the reward r with a penalty β on the KL to π_ref, is known:
π* ∝ π_ref·exp(r/β). Read backwards, r = β·log π*/π_ref + a constant of the prompt, which the difference of two answers
cancels. So the policy *is* a reward model, and the loss is that of reward.py.

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 5–7.
Run: python examples/dpo.py    (after sft.py; two minutes)
Shapes: P pairs, B = 2·P rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.data.pack import batches, collate
from assay.data.render import Renderer, Row
from assay.models.policy import Policy, load_policy
from assay.types import Prompt
from assay.worlds import World, load_world
from assay.worlds.config import WorldData
from assay.worlds.prepare import prepare_world

Pair = tuple[Row, Row]
"""Chosen and rejected, each a prompt with its response."""


def preference(policy: Policy, pairs: Sequence[Pair]) -> Tensor:
    """log π(y_c|x) − log π(y_r|x) of whole responses, in nats, [P]."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    batch = collate(rows, policy.pad_id)
    logprobs_BTV = policy.model(**batch.model_inputs()).logits[:, :-1].log_softmax(dim=-1)
    logprobs_BT = logprobs_BTV.gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
    # The probability of a response is the product over its tokens: a sum of logs, and no mean.
    chosen_P, rejected_P = logprobs_BT.where(batch.loss_mask[:, 1:], 0).sum(dim=1).chunk(2)
    return chosen_P - rejected_P


def train(policy: Policy, steps: Sequence[Sequence[Pair]], *, learning_rate: float, beta: float = 0.1) -> list[float]:
    """One optimizer step a batch; returns the loss of each."""
    # The reference is the policy as it is now, and it never changes: its part of h is computed once, here.
    with torch.no_grad():
        references = [preference(policy, pairs) for pairs in steps]
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses: list[float] = []
    for pairs, reference_P in zip(steps, references, strict=True):
        h_P = preference(policy, pairs) - reference_P
        loss = -F.logsigmoid(beta * h_P).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())  # the first is log 2: a policy that is its own reference prefers nothing
        if len(losses) % 25 == 1:
            right = (h_P > 0).float().mean().item()
            print(f"step {len(losses):4d}   loss {losses[-1]:.3f}   pairs in the right order {right:.0%}")
    return losses


@torch.no_grad()
def answers(policy: Policy, renderer: Renderer, prompts: Sequence[Prompt]) -> list[str]:
    """One answer a prompt, sampled token by token until the policy ends it."""
    asked = [Row(ids, len(ids)) for ids in (renderer.prompt(prompt, reserve=48) for prompt in prompts)]
    batch = collate(asked, policy.pad_id, side="left")  # so that every answer starts in the same column
    model: Any = policy.model  # transformers does not say what `generate` returns
    torch.manual_seed(0)
    ids_BT = model.generate(
        batch.input_ids, attention_mask=batch.attention_mask, do_sample=True, top_k=0, max_new_tokens=48
    )
    return [renderer.text(row) for row in ids_BT[:, batch.input_ids.shape[1] :].tolist()]


def mean_truth(world: World, prompts: Sequence[Prompt], responses: Sequence[str]) -> float:
    """What the guests really think of the answers, in points: a world knows, real life does not."""
    pairs = zip(prompts, responses, strict=True)
    return sum(world.truth(prompt, response).total for prompt, response in pairs) / len(prompts)


def main() -> None:
    world = load_world("frontdesk")
    data = prepare_world(WorldData(demonstrations=1, preferences=3000), seed=0)
    policy = load_policy("runs/examples/sft")  # what sft.py leaves
    renderer = policy.renderer("chat", max_length=128)

    rows = ((renderer.row(p.prompt, p.chosen), renderer.row(p.prompt, p.rejected)) for p in data.preferences.train)
    pairs = [(chosen, rejected) for chosen, rejected in rows if chosen and rejected]
    plan = batches([len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs], 32, random.Random(0))

    guests = data.prompts.test[:200]
    before = mean_truth(world, guests, answers(policy, renderer, guests))
    train(policy, [[pairs[i] for i in batch] for batch in plan], learning_rate=1e-4)
    after = mean_truth(world, guests, answers(policy, renderer, guests))
    best = world.best(guests[0])
    print(f"true worth of {len(guests)} answers to new questions: {before:.2f} → {after:.2f} of {best:.0f} points")


if __name__ == "__main__":
    main()
