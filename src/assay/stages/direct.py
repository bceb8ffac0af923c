"""One update of direct preference optimisation: what it learns from, and the gradient of one optimizer step.

Rewards come from log-ratios to the reference, whose log-probabilities are computed once: they never change.
Formulas: algorithms/direct_loss.py. N examples, B of them in a step, E = 2 rows each, R response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from assay import rng
from assay.algorithms import direct_loss
from assay.algorithms.masked import masked_sum
from assay.data.pack import collate, to_device
from assay.data.render import Row
from assay.data.stored import IN_MEMORY, Lazily, batched, lengths_of
from assay.models.policy import Policy, ResponseLogprobs
from assay.stages import loop
from assay.stages.config import PreferenceConfig

Pair = tuple[Row, Row]
"""Chosen and rejected."""

Judged = tuple[Row, bool]
"""An answer, and whether it is good."""


@dataclass(frozen=True, slots=True)
class Example:
    """A pair: the chosen answer, and the rejected one. A verdict: the judged answer, and one to another prompt."""

    row: Row
    other: Row
    good: bool = True
    """Always, for a pair; what people said, for a verdict."""


def size_of(example: Example) -> int:
    """Tokens of both rows."""
    return len(example.row.ids) + len(example.other.ids)


def examples_of(
    pairs: Sequence[Pair], verdicts: Sequence[Judged], config: PreferenceConfig, seed: int
) -> Sequence[Example]:
    """What is learnt from: pairs as they are; for KTO verdicts, a pair being a good one and a bad one.

    Rows that stand on disk stay there: an example is made when it is asked for.
    """
    if config.paired:
        lengths = pairs.lengths if isinstance(pairs, Lazily) else None
        return Lazily(np.arange(len(pairs)), lambda number: Example(*pairs[number]), lengths)
    numbers = np.arange(2 * len(pairs) + len(verdicts))

    def judged(number: int) -> Judged:
        if number >= 2 * len(pairs):
            return verdicts[number - 2 * len(pairs)]
        return pairs[number // 2][number % 2], number % 2 == 0

    others = mismatched(Lazily(numbers, lambda number: judged(number)[0]), seed, config.max_length)

    def example(number: int) -> Example:
        row, good = judged(number)
        return Example(row, others[number], good)

    return Lazily(numbers, example)


def plan(examples: Sequence[Example], config: PreferenceConfig, seed: int) -> list[list[int]]:
    """Indices of every optimizer step; pairs of like length together, verdicts in any mixture.

    Where bad answers are the longer ones, batches of like length would be all good or all bad.
    """
    lengths = lengths_of(examples, size_of) if config.paired else [0] * len(examples)
    return loop.plan(lengths, config.batch_size, config.epochs, seed)


def mismatched(rows: Sequence[Row], seed: int, max_length: int) -> Sequence[Row]:
    """Each row's prompt with the answer of another row: a derangement, and the answer to another prompt.

    In an order where rows of one prompt are neighbours, each takes the answer as many places on as the most frequent
    prompt has rows. (One that has more than half of all rows cannot but meet itself; then only the rows differ.)
    """
    prompts = np.array([rng.derive(seed, "mismatched", *row.ids[: row.prompt_length]) for row in rows], np.int64)
    order = prompts.argsort(kind="stable")
    _, rows_of_prompt = np.unique(prompts, return_counts=True)
    shift = min(int(rows_of_prompt.max(initial=0)), len(rows) // 2)
    answers = np.empty_like(order)
    answers[order] = np.roll(order, -shift)

    def other(number: int) -> Row:
        row, answer = rows[number], rows[int(answers[number])]
        asked, said = row.ids[: row.prompt_length], answer.ids[answer.prompt_length :]
        return Row([*asked, *said][:max_length], row.prompt_length)

    return Lazily(np.arange(len(rows)), other)


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy that learns, and how one optimizer step's loss is made."""

    policy: Policy
    config: PreferenceConfig
    device: str

    def parts(self, batch: Sequence[Example]) -> Iterator[list[int]]:
        """Numbers of the examples of each forward pass."""
        start = 0
        for some in batched(batch, IN_MEMORY):
            examples = [(example.row, example.other) for example in some]
            for part in self.policy.backbone.parts(examples, self.config.micro_batch_size):
                yield [start + number for number in part]
            start += len(some)

    def logprobs(self, policy: Policy, rows: Sequence[Row]) -> ResponseLogprobs:
        return policy.logprobs(collate(rows, policy.pad_id).to(self.device))

    @torch.no_grad()
    def reference(self, policy: Policy, examples: Sequence[Example]) -> Tensor:
        """Summed log-probabilities of both rows of each example under the reference, [N, 2]; 0 where it has no say.

        On the host: each step takes its own to the device.
        """
        sums_M = torch.zeros(2 * len(examples), device=self.device)
        if self.config.reference:
            start = 0
            for some in batched(examples, IN_MEMORY):
                rows = [row for example in some for row in (example.row, example.other)]
                for part in policy.backbone.parts([(row,) for row in rows]):
                    sums = self.logprobs(policy, [rows[i] for i in part]).logprobs_BR.sum(1)
                    sums_M[[start + i for i in part]] = sums
                start += len(rows)
        return sums_M.view(-1, 2).cpu()

    def step(self, batch: Sequence[Example], reference_BE: Tensor) -> dict[str, Tensor]:
        """Metrics of one optimizer step, or of all held-out examples; where gradients are on, its gradient too."""
        loss_of = self.pairs
        if not self.config.paired:
            loss_of = partial(self.verdicts, baseline=self.baseline(batch, reference_BE))
        goods = sum(example.good for example in batch)
        sums: dict[str, Tensor] = {}
        for index in self.parts(batch):
            part, reference = [batch[i] for i in index], to_device(reference_BE[index], self.device)
            loss, logprobs_B, measured = loss_of(part, reference, total=len(batch))
            if torch.is_grad_enabled():
                loss.backward()
            if goods:
                measured["chosen_logprob"] = masked_sum(logprobs_B.detach(), self.good(part)) / goods
            loop.add_to(sums, {"loss": loss.detach(), **measured})
        return sums

    def good(self, part: Sequence[Example]) -> Tensor:
        """Which of the judged answers are good, [B]."""
        return to_device(torch.tensor([example.good for example in part]), self.device)

    def pairs(
        self, part: Sequence[Example], reference_BE: Tensor, *, total: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Share of the loss, log-probabilities of the chosen answers, metrics; both rows go through in one batch."""
        config, count = self.config, len(part)
        scored = self.logprobs(self.policy, [e.row for e in part] + [e.other for e in part])
        ratio_M = self.ratios(scored, reference_BE.T.flatten())
        loss, metrics = direct_loss.pair_loss(
            ratio_M[:count], ratio_M[count:], link=link(config), loss=pair_loss(config), beta=config.beta, total=total
        )
        chosen_BR, mask_BR = scored.logprobs_BR[:count], scored.mask_BR[:count]
        if config.nll_weight:
            loss = loss + config.nll_weight * direct_loss.response_nll(chosen_BR, mask_BR, total=total)
        return loss, chosen_BR.sum(1), metrics

    def verdicts(
        self, part: Sequence[Example], reference_BE: Tensor, *, baseline: Tensor, total: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same for answers judged on their own."""
        scored = self.logprobs(self.policy, [example.row for example in part])
        loss, metrics = direct_loss.kto_loss(
            self.ratios(scored, reference_BE[:, 0]),
            self.good(part),
            baseline=baseline,
            beta=self.config.beta,
            desirable_weight=self.config.desirable_weight,
            total=total,
        )
        return loss, scored.logprobs_BR.sum(1), metrics

    @torch.no_grad()
    def baseline(self, batch: Sequence[Example], reference_BE: Tensor) -> Tensor:
        """KTO's z₀ of the whole step."""
        ratios = [
            self.ratios(
                self.logprobs(self.policy, [batch[i].other for i in index]),
                to_device(reference_BE[index, 1], self.device),
            )
            for index in self.parts(batch)
        ]
        return direct_loss.kto_baseline(torch.cat(ratios))

    def ratios(self, scored: ResponseLogprobs, reference_B: Tensor) -> Tensor:
        return direct_loss.sequence_log_ratio(
            scored.logprobs_BR, scored.mask_BR, reference_B, length_normalised=self.config.length_normalised
        )


def link(config: PreferenceConfig) -> direct_loss.Link:
    """From log-ratio to reward."""
    return {
        "reverse_kl": direct_loss.reverse_kl,
        "forward_kl": direct_loss.forward_kl,
        "jensen_shannon": direct_loss.jensen_shannon,
        "alpha": partial(direct_loss.alpha_divergence, alpha=config.alpha),
        "log_odds": direct_loss.log_odds,
    }[config.link]


def pair_loss(config: PreferenceConfig) -> direct_loss.PairLoss:
    """From the difference of two rewards to a loss."""
    loss: dict[str, Callable[..., Tensor]] = {
        "logistic": partial(direct_loss.logistic, margin=config.margin, smoothing=config.label_smoothing),
        "robust": partial(direct_loss.robust, smoothing=config.label_smoothing),
        "squared": direct_loss.squared,
        "hinge": partial(direct_loss.hinge, margin=config.margin),
    }
    return partial(loss[config.loss], beta=config.beta)
