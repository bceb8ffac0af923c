"""Group relative policy optimisation: PPO without a critic, for answers to one prompt judge each other.

    advantage  A_i = (s_i − mean_j s_j) / std_j s_j       of G responses i to one prompt, for all tokens of response i
    loss       mean_i (1/|y_i|)·Σ_t max(−A_i·ρ_t, −A_i·clip(ρ_t, 1 − ε, 1 + ε))
               + β·Σ_i ½·(Σ_t log π_θ/π_ref(y_t))² / Σ_i |y_i|

A critic learns what to expect of a prompt; the mean of a group says it, for the price of G answers. The KL to the SFT
model is a term of the loss. As published it is k3 of each token, whose gradient on sequences is not that of the KL;
half the squared log-ratio of the whole response has the right one (arXiv 2506.09477), so that is what stands here, all
responses alike: divided by |y_i|, as the surrogate is, it would not be the KL's gradient either.

Source: DeepSeekMath (Shao et al. 2024, arXiv 2402.03300), eq. 3.
Run: python examples/grpo.py    (after sft.py and reward.py; about a minute)
Shapes: N prompts, G responses each, B = N·G, R new tokens, K read at once, T tokens less one:
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
from assay.models.roles import SamplingRoles, sampling_roles
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


def judge(
    reward: RewardModel, renderer: Renderer, prompts: Sequence[Prompt], rows: Sequence[Row]
) -> tuple[Tensor, Tensor]:
    """The score of each response, 0 being that of an average one, and whether it has a text and an end, [B] each."""
    replies = [row.ids[row.prompt_length :] for row in rows]
    texts = [renderer.text(reply) for reply in replies]
    finishes: list[FinishReason] = ["stop" if reply[-1] == renderer.eos_id else "length" for reply in replies]
    complete = [finish == "stop" and bool(text) for finish, text in zip(finishes, texts, strict=True)]
    return torch.tensor(reward.score_texts(prompts, texts, finishes)) - reward.mean, torch.tensor(complete)


def advantages(scores_NG: Tensor) -> Tensor:
    """Scores in deviations of their group, from its mean; 0 where all answers are worth the same: nothing to learn."""
    centred_NG = scores_NG - scores_NG.mean(dim=1, keepdim=True)
    std_N = scores_NG.std(dim=1, keepdim=True, correction=0)
    return torch.where(std_N > 1e-6, centred_NG / (std_N + 1e-6), 0.0)


def train(
    roles: SamplingRoles,
    renderer: Renderer,
    rounds: Iterable[tuple[Sequence[Prompt], Tensor]],
    *,
    group_size: int,
    learning_rate: float,
    inner_epochs: int = 2,
    beta: float = 0.05,
    clip: float = 0.2,
) -> list[dict[str, float]]:
    """G answers to each prompt a round, drawn with uniform numbers; then a few steps on them. Returns what was seen."""
    parameters = list(roles.policy.parameters_trained().values())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, eps=1e-5)
    unit: tuple[float, float] | None = None
    history: list[dict[str, float]] = []
    for prompts, uniform_BR in rounds:
        # 1. Answer, and be scored.
        asked = [prompt for prompt in prompts for _ in range(group_size)]
        rows = sample(roles.policy, renderer, asked, uniform_BR)
        scores_B, complete_B = judge(roles.reward, renderer, asked, rows)
        unit = unit or (scores_B.mean().item(), scores_B.std(correction=0).item())
        scores_B = ((scores_B - unit[0]) / unit[1]).where(complete_B, -1.0)  # in deviations of the SFT model's scores

        # 2. Who did better than the others? Fixed before the first step.
        advantages_BT = advantages(scores_B.view(-1, group_size)).view(-1, 1)  # one number for all tokens of a response
        batch = collate(rows, roles.policy.pad_id)
        mask_BT = batch.loss_mask[:, 1:]
        lengths_B = mask_BT.sum(dim=1)
        with torch.no_grad():
            old_BT, reference_BT = logprobs(roles.policy, batch), logprobs(roles.reference, batch)
        kl = (old_BT - reference_BT)[mask_BT].sum().item() / len(rows)
        seen = {"reward": scores_B.mean().item(), "kl": kl, "loss": 0.0}

        # 3. Learn.
        for _ in range(inner_epochs):
            logprobs_BT = logprobs(roles.policy, batch)
            ratio_BT = (logprobs_BT - old_BT).exp()
            loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip))
            surrogate_B = loss_BT.where(mask_BT, 0).sum(dim=1)
            kl_B = 0.5 * (logprobs_BT - reference_BT).where(mask_BT, 0).sum(dim=1).square()
            loss = (surrogate_B / lengths_B).mean() + beta * kl_B.sum() / lengths_B.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            seen["loss"] += loss.item() / inner_epochs
        history.append(seen)
        print(f"round {len(history):3d}   " + "   ".join(f"{name} {number:+.3f}" for name, number in seen.items()))
    return history


def main() -> None:
    world = load_world("frontdesk")
    roles = sampling_roles(SFT, REWARD, None, max_length=128)
    renderer = roles.policy.renderer("chat", max_length=128)
    chance, generator = random.Random(0), torch.Generator().manual_seed(0)

    guests, noise_BR = world.prompts("test")[:200], torch.rand(200, 48, generator=generator)

    def worth() -> float:
        rows = sample(roles.policy, renderer, guests, noise_BR)
        texts = [renderer.text(row.ids[row.prompt_length :]) for row in rows]
        return sum(world.truth(*each).total for each in zip(guests, texts, strict=True)) / len(guests)

    before = worth()
    asked = world.prompts("train")
    rounds = ((chance.sample(asked, 16), torch.rand(128, 48, generator=generator)) for _ in range(12))
    train(roles, renderer, rounds, group_size=8, learning_rate=3e-4)
    best = world.best(guests[0])
    print(f"true worth of {len(guests)} answers to new questions: {before:.2f} → {worth():.2f} of {best:.0f} points")


if __name__ == "__main__":
    main()
