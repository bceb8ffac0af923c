"""Proximal policy optimisation, the third step of RLHF: answer, be scored, and make what scored well likelier.

    reward     r_t = −β·log(π_old/π_ref)(y_t)  +  the score of the response, paid at its last token
    advantage  A_t = Σ_l (γλ)^l·δ_{t+l},   δ_t = r_t + γ·V(s_{t+1}) − V(s_t)           was y_t better than expected?
    policy     L_t = max(−A_t·ρ_t, −A_t·clip(ρ_t, 1 − ε, 1 + ε)),   ρ_t = π_θ(y_t)/π_old(y_t)
    critic     L_t = ½·max((V − R_t)², (clip(V, V_old ± ε) − R_t)²),   R_t = A_t + V_old

The clip stops the policy from walking away from the answers it learns from; the KL penalty β keeps it near the SFT
model, where the reward model has seen what people prefer.

Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), eq. 7; GAE (1506.02438), eq. 16; the recipe, N+ (2403.17031).
Run: python examples/ppo.py    (after sft.py and reward.py; two minutes)
Shapes: B responses, R new tokens, K read at once, T tokens less one:
place t is about token t + 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from assay.data.pack import TokenBatch, collate
from assay.data.render import Renderer, Row
from assay.models.policy import Policy
from assay.models.reward_model import RewardModel
from assay.models.roles import PPORoles, ppo_roles
from assay.models.value_model import ValueModel
from assay.types import FinishReason, Prompt
from assay.worlds import load_world

SFT, REWARD = "runs/examples/sft", "runs/examples/reward"  # what sft.py and reward.py leave


@torch.no_grad()
def sample(policy: Policy, renderer: Renderer, prompts: Sequence[Prompt], uniform_BR: Tensor) -> list[Row]:
    """One response a prompt: each token is the first whose cumulative probability exceeds its uniform number."""
    longest = uniform_BR.shape[1]
    asked = [Row(ids, len(ids)) for ids in (renderer.prompt(prompt, reserve=longest) for prompt in prompts)]
    batch = collate(asked, policy.pad_id, side="left")  # so that the next token of every row is in the same column
    new_BK, mask_BT, place_BK, cache = batch.input_ids, batch.attention_mask, batch.position_ids, None
    drawn: list[Tensor] = []
    for t in range(longest):
        seen = policy.model(
            input_ids=new_BK, attention_mask=mask_BT, position_ids=place_BK, past_key_values=cache, use_cache=True
        )
        cumulative_BV = seen.logits[:, -1].double().softmax(dim=-1).cumsum(dim=-1)
        new_BK = torch.searchsorted(cumulative_BV, uniform_BR[:, t, None] * cumulative_BV[:, -1:], right=True)
        drawn.append(new_BK)
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
        place_BK, cache = place_BK[:, -1:] + 1, seen.past_key_values
    responses = [until(renderer.eos_id, ids) for ids in torch.cat(drawn, dim=1).tolist()]
    return [Row(row.ids + response, row.prompt_length) for row, response in zip(asked, responses, strict=True)]


def until(end: int, ids: list[int]) -> list[int]:
    """The ids up to the first end token; the tokens that were drawn after it are nobody's."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def logprobs(policy: Policy, batch: TokenBatch) -> Tensor:
    """log π of every token after the first, [B, T]."""
    logprobs_BTV = policy.model(**batch.model_inputs()).logits[:, :-1].log_softmax(dim=-1)
    return logprobs_BTV.gather(2, batch.input_ids[:, 1:, None]).squeeze(2)


def values(critic: ValueModel, batch: TokenBatch) -> Tensor:
    """What the critic expects still to come before each token after the first, [B, T]."""
    hidden_BTD = critic.backbone.trunk(**batch.model_inputs()).last_hidden_state[:, :-1]
    return hidden_BTD @ critic.head.weight + critic.head.bias


def judge(
    reward: RewardModel, renderer: Renderer, prompts: Sequence[Prompt], rows: Sequence[Row]
) -> tuple[Tensor, Tensor]:
    """The score of each response, 0 being that of an average one, and whether it has a text and an end, [B] each."""
    replies = [row.ids[row.prompt_length :] for row in rows]
    texts = [renderer.text(reply) for reply in replies]
    finishes: list[FinishReason] = ["stop" if reply[-1] == renderer.eos_id else "length" for reply in replies]
    complete = [finish == "stop" and bool(text) for finish, text in zip(finishes, texts, strict=True)]
    return torch.tensor(reward.score_texts(prompts, texts, finishes)) - reward.mean, torch.tensor(complete)


def gae(rewards_BT: Tensor, values_BT: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantages; rewards and values are 0 wherever no response token is."""
    advantages_BT, advantage_B, next_B = torch.zeros_like(rewards_BT), 0.0, 0.0
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_B - values_BT[:, t]
        advantages_BT[:, t] = advantage_B = delta_B + gamma * lam * advantage_B
        next_B = values_BT[:, t]
    return advantages_BT


def train(
    roles: PPORoles,
    renderer: Renderer,
    rounds: Iterable[tuple[Sequence[Prompt], Tensor]],
    *,
    learning_rate: float,
    value_learning_rate: float,
    inner_epochs: int = 4,
    beta: float = 0.05,
    clip: float = 0.2,
) -> list[dict[str, float]]:
    """One batch of answers a round, from prompts and uniform numbers; then a few steps on it. Returns what was seen."""
    policy_optimizer = torch.optim.Adam(roles.policy.parameters_trained().values(), lr=learning_rate, eps=1e-5)
    value_optimizer = torch.optim.Adam(roles.value.parameters_trained().values(), lr=value_learning_rate, eps=1e-5)
    unit: tuple[float, float] | None = None
    history: list[dict[str, float]] = []
    for prompts, uniform_BR in rounds:
        # 1. Answer, and be scored.
        rows = sample(roles.policy, renderer, prompts, uniform_BR)
        scores_B, complete_B = judge(roles.reward, renderer, prompts, rows)
        if unit is None:  # rewards are measured in deviations of the SFT model's own scores, and so is what is expected
            unit = scores_B.mean().item(), scores_B.std(correction=0).item()
            roles.value.rescale(1 / unit[1], -unit[0] / unit[1])
        scores_B = ((scores_B - unit[0]) / unit[1]).where(complete_B, -1.0)

        # 2. What it was worth, token by token. All of this is fixed before the first step.
        batch = collate(rows, roles.policy.pad_id)
        mask_BT = batch.loss_mask[:, 1:]
        with torch.no_grad():
            old_BT = logprobs(roles.policy, batch)
            kl_BT = (old_BT - logprobs(roles.reference, batch)).where(mask_BT, 0)
            old_values_BT = values(roles.value, batch).where(mask_BT, 0)
        rewards_BT = -beta * kl_BT
        rewards_BT[torch.arange(len(rows)), [len(row.ids) - 2 for row in rows]] += scores_B
        advantages_BT = gae(rewards_BT, old_values_BT)
        returns_BT = advantages_BT + old_values_BT
        spread, centre = torch.var_mean(advantages_BT[mask_BT], correction=0)
        advantages_BT = (advantages_BT - centre) * torch.rsqrt(spread + 1e-8)

        # 3. Learn.
        kl = kl_BT.sum(dim=1).mean().item()
        seen = {"reward": scores_B.mean().item(), "kl": kl, "policy_loss": 0.0, "value_loss": 0.0}
        for _ in range(inner_epochs):
            ratio_BT = (logprobs(roles.policy, batch) - old_BT).exp()
            loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip))
            policy_loss = loss_BT[mask_BT].mean()
            step(policy_optimizer, policy_loss)

            values_BT = values(roles.value, batch)
            near_BT = values_BT.clamp(old_values_BT - clip, old_values_BT + clip)
            error_BT = (values_BT - returns_BT).square()
            value_loss = 0.5 * torch.maximum(error_BT, (near_BT - returns_BT).square())[mask_BT].mean()
            step(value_optimizer, value_loss)
            seen["policy_loss"] += policy_loss.item() / inner_epochs
            seen["value_loss"] += 0.5 * error_BT[mask_BT].mean().item() / inner_epochs
        history.append(seen)
        print(f"round {len(history):3d}   " + "   ".join(f"{name} {number:+.3f}" for name, number in seen.items()))
    return history


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Down the gradient, which is cut to length 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def main() -> None:
    world = load_world("frontdesk")
    roles = ppo_roles(SFT, REWARD, None, max_length=128)
    renderer = roles.policy.renderer("chat", max_length=128)
    chance, generator = random.Random(0), torch.Generator().manual_seed(0)

    guests, noise_BR = world.prompts("test")[:200], torch.rand(200, 48, generator=generator)

    def worth() -> float:
        rows = sample(roles.policy, renderer, guests, noise_BR)
        texts = [renderer.text(row.ids[row.prompt_length :]) for row in rows]
        return sum(world.truth(*each).total for each in zip(guests, texts, strict=True)) / len(guests)

    before = worth()
    asked = world.prompts("train")
    rounds = ((chance.sample(asked, 128), torch.rand(128, 48, generator=generator)) for _ in range(12))
    train(roles, renderer, rounds, learning_rate=3e-4, value_learning_rate=1e-3)
    best = world.best(guests[0])
    print(f"true worth of {len(guests)} answers to new questions: {before:.2f} → {worth():.2f} of {best:.0f} points")


if __name__ == "__main__":
    main()
