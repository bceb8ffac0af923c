"""From prompts to scored rollouts, and what is learnt from them: where every method that samples begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from assay import rng
from assay.algorithms.kl import k1, sequence_kl
from assay.data.ngrams import repetition
from assay.data.pack import TokenBatch, collate, to_device
from assay.data.render import Row
from assay.types import Completion, FinishReason, Prompt

if TYPE_CHECKING:
    from assay.models.backbone import Backbone
    from assay.models.roles import Policy
    from assay.rollout.config import SamplingParams
    from assay.rollout.engine import Engine, Generation

Reward = Callable[[Sequence[Prompt], Sequence[str], Sequence[FinishReason]], list[float]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Sampled responses with their scores; tensors are [B, R] over response tokens, end token included."""

    prompts: list[Prompt]
    rows: list[Row]
    texts: list[str]
    leaks: list[str]
    """A special token before each response's end, which its text does not show; empty where there is none."""
    mask_BR: Tensor
    logprobs_BR: Tensor
    """Of the distribution that was sampled."""
    reference_BR: Tensor
    """Log-probabilities of the same tokens under the reference policy."""
    scores_B: Tensor
    """Raw scores of the reward function."""
    finished_B: Tensor
    """True where the response ended by itself."""
    empty_B: Tensor
    """True where the response has no text: nobody compares such answers, so a reward model knows nothing of them."""
    cut_B: Tensor
    """True where the prompt was too long, and lost its beginning."""

    @classmethod
    def of(
        cls, generations: Sequence[Generation], scores: Sequence[float], reference_BR: Tensor | None = None
    ) -> Rollouts:
        """Scored responses; without `reference_BR` the policy that sampled them is its own reference."""
        logprobs_BR, mask_BR = pad([g.logprobs for g in generations])
        device = logprobs_BR.device if reference_BR is None else reference_BR.device
        return cls(
            [g.prompt for g in generations],
            [g.row for g in generations],
            [g.text for g in generations],
            [g.leak for g in generations],
            mask_BR.to(device),
            logprobs_BR.to(device),
            logprobs_BR if reference_BR is None else reference_BR,
            torch.tensor(scores, device=device),
            torch.tensor([g.finish == "stop" for g in generations], device=device),
            torch.tensor([not g.text for g in generations], device=device),
            torch.tensor([g.cut for g in generations], device=device),
        )

    @property
    def completions(self) -> list[Completion]:
        """The responses as plain text, for evaluation."""
        tensors = (tensor.tolist() for tensor in (self.finished_B, self.mask_BR.sum(1), self.cut_B))
        columns = zip(self.prompts, self.texts, self.leaks, *tensors, strict=True)
        return [
            Completion(prompt, text, "stop" if ended else "length", length, cut, leak)
            for prompt, text, leak, ended, length, cut in columns
        ]

    def take(self, index: Sequence[int]) -> Rollouts:
        """Some of the responses."""
        i = list(index)
        return Rollouts(
            [self.prompts[n] for n in i],
            [self.rows[n] for n in i],
            [self.texts[n] for n in i],
            [self.leaks[n] for n in i],
            self.mask_BR[i],
            self.logprobs_BR[i],
            self.reference_BR[i],
            self.scores_B[i],
            self.finished_B[i],
            self.empty_B[i],
            self.cut_B[i],
        )

    def kl_B(self) -> Tensor:
        """Sampled KL(policy ‖ reference) of each response in nats: the sum of k1 over its tokens, [B]."""
        return sequence_kl(k1(self.logprobs_BR, self.reference_BR), self.mask_BR)

    def repetition(self, n: int = 4) -> float:
        """Share of a response's token n-grams that occurred in it before, averaged over the responses."""
        return sum(repetition(row.ids[row.prompt_length :], n) for row in self.rows) / len(self.rows)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several batches of responses as one, padded to the longest."""
    width = max(part.mask_BR.shape[1] for part in parts)

    def wide(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])

    return Rollouts(
        [prompt for part in parts for prompt in part.prompts],
        [row for part in parts for row in part.rows],
        [text for part in parts for text in part.texts],
        [leak for part in parts for leak in part.leaks],
        wide(part.mask_BR for part in parts),
        wide(part.logprobs_BR for part in parts),
        wide(part.reference_BR for part in parts),
        torch.cat([part.scores_B for part in parts]),
        torch.cat([part.finished_B for part in parts]),
        torch.cat([part.empty_B for part in parts]),
        torch.cat([part.cut_B for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class Experience:
    """What the updates of one iteration learn from, fixed before the first of them.

    It waits on the host, where counting its tokens and choosing its rows asks nothing of the device.
    """

    rows: list[Row]
    mask_BR: Tensor
    logprobs_BR: Tensor
    """Under the policy as it was before the updates."""
    reference_BR: Tensor
    advantages_BR: Tensor
    weights_BR: Tensor
    """What each token counts for in a loss."""
    values_BR: Tensor
    """The critic's, from before the updates; without a critic, empty."""
    returns_BR: Tensor

    def take(self, index: Sequence[int]) -> Experience:
        """Some of the episodes, trimmed to the longest response among them."""
        rows = [self.rows[i] for i in index]
        width = max(len(row.ids) - row.prompt_length for row in rows)
        return Experience(rows, *(tensor[list(index), :width] for tensor in self._tensors))

    def on_host(self) -> Experience:
        """The same in the host's memory; this waits for the device."""
        return Experience(self.rows, *(tensor.cpu() for tensor in self._tensors))

    def to(self, device: torch.device | str) -> Experience:
        """The same, from the host to a device."""
        return Experience(self.rows, *(to_device(tensor, device) for tensor in self._tensors))

    @property
    def _tensors(self) -> Iterator[Tensor]:
        return (getattr(self, field.name) for field in fields(self)[1:])

    def with_signal(self) -> list[int]:
        """Numbers of the episodes with an advantage other than 0; of all, where none has one."""
        found = (self.advantages_BR.ne(0) & self.mask_BR).any(1).nonzero().flatten().tolist()
        return found or list(range(len(self.rows)))

    def weighted(self, weights_BR: Tensor) -> Experience:
        """The same episodes, every token's weight multiplied."""
        return replace(self, weights_BR=self.weights_BR * weights_BR)

    def minibatches(self, count: int, noise: random.Random) -> Iterator[Experience]:
        """The episodes in `count` batches as equal as can be; answers to one prompt stay neighbours."""
        prompts = [(row.prompt_length, row.ids[: row.prompt_length]) for row in self.rows]
        groups = [list(rows) for _, rows in groupby(range(len(prompts)), key=prompts.__getitem__)]
        noise.shuffle(groups)
        order = [row for group in groups for row in group]
        cuts = [len(order) * number // count for number in range(count + 1)]
        return (self.take(order[start:stop]) for start, stop in pairwise(cuts) if start < stop)

    def parts(self, backbone: Backbone, most: int | None) -> Iterator[Experience]:
        """The episodes of each forward pass, at most `most`, on the model's device."""
        return (self.take(part).to(backbone.device) for part in backbone.parts([(row,) for row in self.rows], most))

    def tokens(self, pad_id: int) -> TokenBatch:
        """Prompts and responses as one batch."""
        return collate(self.rows, pad_id).to(self.mask_BR.device)


def collect(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    seed: int,
    reward: Reward,
    reference: Policy,
    micro_batch_size: int | None = None,
) -> Rollouts:
    """Sample one response a prompt, score it, and compute the reference's log-probabilities."""
    generations = sample(engine, prompts, params, seed)
    scores = reward(prompts, [g.text for g in generations], [g.finish for g in generations])
    with torch.no_grad():
        reference_BR = over_rows(
            lambda batch: reference.logprobs(batch, temperature=params.temperature).logprobs_BR,
            [g.row for g in generations],
            reference.backbone,
            reference.pad_id,
            micro_batch_size,
        )
    return Rollouts.of(generations, scores, reference_BR)


def sample(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams, seed: int) -> list[Generation]:
    """One response a prompt; sample i depends on (seed, i) alone."""
    return engine.generate(prompts, params, seeds=[rng.derive(seed, i) for i in range(len(prompts))])


def over_rows(
    function: Callable[..., Tensor],
    rows: Sequence[Row],
    backbone: Backbone,
    pad_id: int,
    most: int | None = None,
) -> Tensor:
    """Apply a [b, r]-valued function to all rows, at most `most` in a forward pass; [B, R], zero-padded."""
    width = max(len(row.ids) - row.prompt_length for row in rows)
    result = torch.zeros(len(rows), width, device=backbone.device)
    for part in backbone.parts([(row,) for row in rows], most):
        values = function(collate([rows[i] for i in part], pad_id).to(backbone.device))
        result[torch.tensor(part, device=backbone.device), : values.shape[1]] = values
    return result


def pad(sequences: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Ragged numbers to ([B, R], mask), zeros where nothing counts."""
    lengths = torch.tensor([len(s) for s in sequences])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape)
    values[mask] = torch.tensor([x for s in sequences for x in s])
    return values, mask
