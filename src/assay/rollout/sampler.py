"""What sampling is: the protocol, its result, and the distribution a token is drawn from. Shapes: [B, V]."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from assay import rng
from assay.data.render import Row
from assay.rollout.config import SamplingParams
from assay.types import Completion, FinishReason, Prompt

BLOCK = 256
"""Tokens of the vocabulary that are added up first."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled response, as ids and as text."""

    prompt: Prompt
    prompt_ids: list[int]
    ids: list[int]
    """Sampled tokens, the end token included where one was sampled."""
    logprobs: list[float]
    """Of each token under the distribution it was drawn from; greedy: under softmax of the (penalised) logits."""
    text: str
    finish: FinishReason
    cut: bool = False
    """Whether the prompt was too long for `prompt_ids` to hold all of it."""
    leak: str = ""
    """A special token before the end, which `text` does not show."""

    @property
    def row(self) -> Row:
        """Prompt and response as they were read and drawn: what is sampled is what is trained."""
        return Row([*self.prompt_ids, *self.ids], len(self.prompt_ids))

    @property
    def whole(self) -> bool:
        """Whether it has text and ended by itself: a reward model has seen no other, and none should be imitated."""
        return bool(self.text) and self.finish == "stop"

    @property
    def completion(self) -> Completion:
        """The response as plain text, for evaluation."""
        return Completion(self.prompt, self.text, self.finish, len(self.ids), self.cut, self.leak)


class Sampler(Protocol):
    """Anything that answers prompts: this machine's engine, or a remote one."""

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seeds: Sequence[int]
    ) -> list[Generation]: ...


def uniforms(seeds: Sequence[int], tokens: int) -> Tensor:
    """[B, tokens] numbers in [0, 1): one stream a sample, one number a token, whoever else is in the batch."""
    streams = np.empty((len(seeds), tokens))
    for stream, seed in zip(streams, seeds, strict=True):
        stream[:] = rng.numpy_rng(seed, "tokens").random(tokens)
    return torch.from_numpy(streams)


def draw(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [B] under the distribution they were drawn from.

    Inverse transform sampling: the first token whose cumulative probability exceeds the uniform number. Whole blocks
    of the vocabulary are added up before single tokens, so that no cumulative sum of all of it is made.
    """
    if params.greedy:
        tokens_B = logits_BV.argmax(-1)
        return tokens_B, logits_BV.log_softmax(-1).gather(1, tokens_B[:, None]).squeeze(1)
    scaled_BV = logits_BV if params.temperature == 1 else logits_BV / params.temperature
    logits_BV = restrict(scaled_BV, params)
    rows, vocabulary = logits_BV.shape
    blocks = -(-vocabulary // BLOCK)
    weights_BV = logits_BV.new_zeros(rows, blocks * BLOCK)
    torch.exp(logits_BV - logits_BV.amax(-1, keepdim=True), out=weights_BV[:, :vocabulary])
    weights_BCK = weights_BV.view(rows, blocks, BLOCK)

    sums_BC = weights_BCK.sum(-1).double()
    cumulative_BC = sums_BC.cumsum(-1)
    total_B = cumulative_BC[:, -1]
    target_B = torch.minimum(uniform_B * total_B, total_B.nextafter(torch.zeros_like(total_B)))
    # The bounds are for logits that are not finite: the number that comes out tells.
    block_B = torch.searchsorted(cumulative_BC, target_B[:, None], right=True).squeeze(1).clamp_(max=blocks - 1)
    each = torch.arange(rows, device=block_B.device)
    before_B = cumulative_BC[each, block_B] - sums_BC[each, block_B]

    cumulative_BK = weights_BCK[each, block_B].double().cumsum(-1)
    # What is left of the target lies in this block, but for rounding: never beyond its last possible token.
    left_B = torch.minimum(target_B - before_B, cumulative_BK[:, -1].nextafter(torch.zeros_like(total_B))).clamp(min=0)
    place_B = torch.searchsorted(cumulative_BK, left_B[:, None], right=True).squeeze(1)
    tokens_B = (block_B * BLOCK + place_B).clamp_(max=vocabulary - 1)
    return tokens_B, (weights_BV[each, tokens_B].double() / total_B).log().to(logits_BV.dtype)


def restrict(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    """Top-k, then top-p on what is left: −inf for every token outside the support.

    Top-p keeps the likeliest tokens up to and including the one that brings the sum to p (arXiv 1904.09751).
    """
    if params.top_k is not None and params.top_k < logits_BV.shape[-1]:
        least_B = logits_BV.topk(params.top_k).values[:, -1]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B[:, None], -torch.inf)
    if params.top_p < 1:
        ascending_BV, order_BV = logits_BV.sort(dim=-1)
        outside_BV = ascending_BV.softmax(-1).cumsum(-1) <= 1 - params.top_p
        outside_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), -torch.inf)
    return logits_BV


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: z > 0 → z / penalty, z < 0 → z · penalty (CTRL, arXiv 1909.05858, sec. 4.1)."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


class NgramBlock:
    """Tokens that would complete an n-gram which the sequence, prompt included, already holds."""

    def __init__(self, n: int, ids: Iterable[int]) -> None:
        self._n = n
        self._ids: list[int] = []
        self._followers: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the sequence."""
        if len(self._ids) >= self._n - 1:
            self._followers[self._tail()].append(token)
        self._ids.append(token)

    def banned(self) -> list[int]:
        """Tokens that must not come next."""
        return self._followers.get(self._tail(), []) if len(self._ids) >= self._n - 1 else []

    def _tail(self) -> tuple[int, ...]:
        return tuple(self._ids[len(self._ids) - self._n + 1 :])
