"""Continuous batching over a preallocated key-value cache.

Prompts are read as trees: each once, however many answers it is to have, and none padded to the longest. Each step
runs the trunk on one token a row and the head on one state a row. A row that has ended makes way before the next step,
and the last one takes its place; once more than a quarter of the batch is free, waiting prompts are read into the cache
together. A sample's noise depends on its seed alone; so do its tokens, given its prompt, as far as sums round alike in
batches of any size: to 1e-5 nats in fp32, to some hundredths in bf16.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay.data.pack import collate
from assay.data.render import Renderer, Row
from assay.errors import NotFiniteError, UsageError
from assay.models.backbone import Backbone
from assay.models.int8 import Int8Linear, fits, in_int8
from assay.models.packed import in_packs, packed
from assay.models.policy import Policy
from assay.models.tree_attention import stretches_of
from assay.rollout.cache import LineCache, SlotCache, check_cacheable, seen_columns
from assay.rollout.config import SamplingParams, Weights
from assay.rollout.sampler import Generation, NgramBlock, draw, penalise, uniforms
from assay.rollout.stops import StopStrings
from assay.types import FinishReason, Prompt

REFILL_BELOW = 0.75
"""Prompts are admitted once fewer than this share of the batch is alive, so that many are read together."""

Head = Callable[[Tensor], Tensor]
"""From last states to logits, [B, D] → [B, V]."""


@dataclass(slots=True)
class Sample:
    """One response in the making."""

    prompt_ids: list[int]
    cut: bool
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    ngrams: NgramBlock | None = None

    @property
    def span(self) -> int:
        """Columns it fills in the cache: the newest token is not there yet."""
        return len(self.prompt_ids) + len(self.ids) - 1


@dataclass(slots=True)
class Slots:
    """The rows that are decoded together; tensors are [B, …]."""

    samples: list[Sample]
    cache: SlotCache
    mask: Tensor
    tokens: Tensor
    """The newest token of each row, [B, 1]."""
    positions: Tensor
    """Its position, [B, 1]."""
    drawn: Tensor
    """How many tokens each row has drawn, [B, 1]."""
    uniform: Tensor
    """Random numbers, [B, max_new_tokens]: number t of a row draws its token t."""
    seen: Tensor | None
    """Tokens that occurred, [B, V], where they are penalised."""

    @property
    def alive(self) -> list[int]:
        return [row for row, sample in enumerate(self.samples) if sample.finish is None]

    def compacted(self) -> Slots:
        """Without the rows that have ended: the last of the others take their places."""
        alive = self.alive
        count = len(alive)
        free = [row for row in range(count) if self.samples[row].finish is not None]
        moved = alive[count - len(free) :]
        order = list(range(count))
        for place, row in zip(free, moved, strict=True):
            order[place] = row
        index, sources, targets = (
            torch.tensor(rows, dtype=torch.long, device=self.tokens.device) for rows in (order, moved, free)
        )
        self.cache.compact(sources, targets, count, max((self.samples[row].span for row in moved), default=0))
        return Slots(
            [self.samples[row] for row in order],
            self.cache,
            self.mask[index],
            self.tokens[index],
            self.positions[index],
            self.drawn[index],
            self.uniform[index],
            None if self.seen is None else self.seen[index],
        )

    def align(self) -> None:
        """End at the first column that leaves room for these rows."""
        spans = [sample.span for sample in self.samples]
        self.cache.align(max(spans), max(spans))
        self.mask = seen_columns(spans, self.cache.length, self.cache.capacity, self.mask.device)

    def joined(self, new: Slots) -> Slots:
        """With the rows of `new`, which are in the cache already, and end where these do."""

        def both(name: str) -> Tensor:
            return torch.cat([getattr(self, name), getattr(new, name)])

        return Slots(
            self.samples + new.samples,
            self.cache,
            both("mask"),
            both("tokens"),
            both("positions"),
            both("drawn"),
            both("uniform"),
            None if self.seen is None else both("seen"),
        )


class Engine:
    """Samples from a policy as it is at the time: adapters and weights are read, or quantised, at every call."""

    def __init__(self, policy: Policy, renderer: Renderer, *, max_batch: int, weights: Weights = "trained") -> None:
        self.policy = policy
        self.renderer = renderer
        self.max_batch = max_batch
        self.weights: Weights = weights
        check_cacheable(policy.model)
        ends = (renderer.eos_id, policy.tokenizer.eos_token_id)
        self._ends = frozenset(token for token in ends if isinstance(token, int))
        self._stopping: dict[tuple[str, ...], StopStrings] = {}  # a cache of the class would keep every engine

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, *, seeds: Sequence[int]) -> list[Generation]:
        """One response a prompt, in the order of the prompts; sample i depends on prompt i and seed i alone.

        Raises `UsageError` when a prompt and the response do not fit the model's context, or a stop string can never
        come.
        """
        rendered = self._render(prompts, params)
        samples = [Sample(ids, cut, seed) for (ids, cut), seed in zip(rendered, seeds, strict=True)]
        if params.no_repeat_ngram:
            for sample in samples:
                sample.ngrams = NgramBlock(params.no_repeat_ngram, sample.prompt_ids)
        training = self.policy.model.training
        self.policy.eval()
        try:
            copies = sampled_from(self.policy.backbone, self.policy.adapter, *self.policy.head, self.weights)
            with torch.inference_mode(), copies as head:
                longest_first = sorted(samples, key=lambda s: (len(s.prompt_ids), s.prompt_ids), reverse=True)
                self._decode(longest_first, params, head)
        finally:
            self.policy.model.train(training)
        return [self._result(prompt, sample, params) for prompt, sample in zip(prompts, samples, strict=True)]

    def _render(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[tuple[list[int], bool]]:
        room = self.renderer.max_length - params.max_new_tokens
        if room < 1:
            raise UsageError(
                f"max_new_tokens ({params.max_new_tokens}) leaves no room for a prompt in max_length "
                f"({self.renderer.max_length})",
                hint="lower sampling.max_new_tokens, or raise max_length",
            )
        rendered = [self.renderer.fitted(prompt, reserve=params.max_new_tokens) for prompt in prompts]
        longest = max((len(ids) for ids, _ in rendered), default=0) + params.max_new_tokens
        if longest > self.policy.context:
            raise UsageError(
                f"prompt and response take up to {longest} tokens, and the model has {self.policy.context} positions",
                hint=f"set max_length to {self.policy.context} or less",
            )
        return rendered

    def _decode(self, samples: Sequence[Sample], params: SamplingParams, head: Head) -> None:
        """Fill in the samples; those with the longest prompts come first, and those of one prompt together."""
        waiting = deque(samples)
        widest = max((len(sample.prompt_ids) for sample in samples), default=0)
        blocks, rows = self.policy.model.config.num_hidden_layers, min(len(samples), self.max_batch)
        cache = SlotCache(blocks, rows, widest + params.max_new_tokens)
        cache.align(0, widest)
        slots = self._slots([], cache, params)
        while waiting or slots.samples:
            count = len(slots.samples)
            if len(slots.alive) < count:
                slots = slots.compacted()
            elif waiting and count < REFILL_BELOW * self.max_batch:
                admitted = [waiting.popleft() for _ in range(min(len(waiting), self.max_batch - count))]
                slots = slots.joined(self._prefill(admitted, cache, params, head))
            elif cache.full:
                slots.align()  # no prompt that still waits is longer than those that were admitted
            else:
                self._step(slots, params, head)

    def _prefill(self, samples: list[Sample], cache: SlotCache, params: SamplingParams, head: Head) -> Slots:
        """Read prompts into the cache, and draw the first token of each response."""
        hidden_BD = self._read([Row(sample.prompt_ids, len(sample.prompt_ids)) for sample in samples], cache)
        slots = self._slots(samples, cache, params)
        self._draw(slots, hidden_BD, params, head)
        return slots

    def _slots(self, samples: list[Sample], cache: SlotCache, params: SamplingParams) -> Slots:
        """Rows that have drawn nothing yet."""
        device = self.policy.backbone.device
        spans = [len(sample.prompt_ids) for sample in samples]
        last = torch.tensor(spans, dtype=torch.long, device=device)[:, None] - 1
        return Slots(
            samples,
            cache,
            seen_columns(spans, cache.length, cache.capacity, device),
            tokens=torch.zeros_like(last),
            positions=last,
            drawn=torch.zeros_like(last),
            uniform=uniforms([sample.seed for sample in samples], params.max_new_tokens).to(device),
            seen=self._seen(samples) if params.repetition_penalty != 1 else None,
        )

    def _read(self, rows: list[Row], cache: SlotCache) -> Tensor:
        """The prompts' last states [B, D]; the cache takes their keys and values. What comes again is read once.

        They go through the model a part at a time, as rows that are learnt from do.
        """
        states = list[Tensor]()
        for part in prompts_at_once(rows, self.policy.backbone.budget):
            asked = [rows[i] for i in part]
            hidden_BD, lines, places_BT = self._read_part(asked)
            ends_B = torch.tensor([len(row.ids) for row in asked], device=places_BT.device)
            tokens_BT = torch.arange(-places_BT.shape[1], 0, device=places_BT.device) + ends_B[:, None]
            cache.take(lines, places_BT.gather(1, tokens_BT.clamp(min=0)))  # aligned on the right
            states.append(hidden_BD)
        return torch.cat(states)

    def _read_part(self, rows: Sequence[Row]) -> tuple[Tensor, LineCache, Tensor]:
        """Last states [B, D], keys and values as the tokens lie in the model, and where each lies there [B, T]."""
        policy, backbone = self.policy, self.policy.backbone
        distinct = {tuple(row.ids): row for row in rows}
        batch = collate(list(distinct.values()), policy.pad_id).to(backbone.device)
        forest, ids = backbone.forest(batch), batch.input_ids
        places_BT = torch.arange(ids.numel(), device=ids.device).view_as(ids) if forest is None else forest.places_BT
        last_B = places_BT.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        lines = LineCache(policy.model.config.num_hidden_layers)
        more: dict[str, Any] = {"read": last_B, "past_key_values": lines, "use_cache": True}
        if forest is None:
            hidden_ND = backbone.hidden(batch, policy.adapter, **more).flatten(0, 1)
        else:
            hidden_ND = backbone.lines(batch, forest, policy.adapter, **more)
        number = {prompt: number for number, prompt in enumerate(distinct)}
        which_B = torch.tensor([number[tuple(row.ids)] for row in rows], device=ids.device)
        return hidden_ND[last_B[which_B]], lines, places_BT[which_B]

    def _step(self, slots: Slots, params: SamplingParams, head: Head) -> None:
        """Run the trunk on the newest token of every row, and draw the next one."""
        self._draw(slots, states_after(self.policy.backbone, self.policy.adapter, slots), params, head)

    def _draw(self, slots: Slots, hidden_BD: Tensor, params: SamplingParams, head: Head) -> None:
        """Draw a token from each of these states, and append it to its row."""
        logits = head(hidden_BD.float())
        if slots.seen is not None:
            logits = penalise(logits, slots.seen, params.repetition_penalty)
        for row, sample in enumerate(slots.samples):
            if sample.ngrams is not None and (banned := sample.ngrams.banned()):
                logits[row, banned] = -torch.inf
        tokens, logprobs = draw(logits, params, slots.uniform.gather(1, slots.drawn).squeeze(1))
        self._append(slots.samples, tokens, logprobs, params)
        slots.tokens, slots.positions, slots.drawn = tokens[:, None], slots.positions + 1, slots.drawn + 1
        if slots.seen is not None:
            slots.seen.scatter_(1, slots.tokens, True)

    def _seen(self, samples: Sequence[Sample]) -> Tensor:
        """The tokens of the prompts as [B, V]."""
        weight, _ = self.policy.head
        seen = torch.zeros(len(samples), weight.shape[0], dtype=torch.bool, device=weight.device)
        for row, sample in zip(seen, samples, strict=True):
            row[torch.tensor(sample.prompt_ids, device=weight.device)] = True
        return seen

    def _append(self, samples: Sequence[Sample], tokens: Tensor, logprobs: Tensor, params: SamplingParams) -> None:
        """Move a step's tokens to the host, the step's only synchronisation, and see which samples end with them."""
        pairs = torch.stack([tokens.double(), logprobs.double()]).tolist()
        stops = self._stops(params.stop)
        for sample, number, logprob in zip(samples, *pairs, strict=True):
            if math.isnan(logprob):
                raise NotFiniteError(
                    "the next token has no probability: the policy's logits are not finite, or every token is banned",
                    hint="lower optim.learning_rate if this came with training; else look at sampling and the model",
                )
            token = int(number)
            sample.ids.append(token)
            sample.logprobs.append(logprob)
            if sample.ngrams is not None:
                sample.ngrams.add(token)
            if self._ends_here(sample, stops):
                sample.finish = "stop"
            elif len(sample.ids) == params.max_new_tokens:
                sample.finish = "length"

    def _ends_here(self, sample: Sample, stops: StopStrings) -> bool:
        return sample.ids[-1] in self._ends or stops.end(sample.ids)

    def _stops(self, stop: tuple[str, ...]) -> StopStrings:
        if stop not in self._stopping:
            self._stopping[stop] = StopStrings(self.policy.tokenizer, (*stop, *self.renderer.stop_strings))
            self._stopping[stop].check(stop)
        return self._stopping[stop]

    def _result(self, prompt: Prompt, sample: Sample, params: SamplingParams) -> Generation:
        assert sample.finish is not None
        text = self.renderer.text(sample.ids)
        if params.stop and sample.finish == "stop":
            text = self._stops(params.stop).before(sample.ids)
        return Generation(
            *(prompt, sample.prompt_ids, sample.ids, sample.logprobs, text.strip(), sample.finish, sample.cut),
            leak=self.renderer.leak(sample.ids, params.stop),
        )


@contextlib.contextmanager
def sampled_from(
    backbone: Backbone, adapter: str | None, weight: Tensor, bias: Tensor | None, weights: Weights
) -> Iterator[Head]:
    """The head, with logits in fp32; inside, the trunk has the weights that are sampled from."""
    int8 = weights == "int8"
    with (in_int8 if int8 else in_packs)(backbone, adapter):
        if int8 and fits(weight):
            yield Int8Linear.of(weight, bias)
        else:
            yield packed(weight.float(), None if bias is None else bias.float())


def states_after(backbone: Backbone, adapter: str | None, slots: Slots) -> Tensor:
    """Run the trunk on the newest token of every row, [B, D]; the cache takes its keys and values."""
    width = slots.cache.length + 1
    told: dict[str, Any] = {"attention_mask": slots.mask[:, :width]}
    if backbone.takes_masks and backbone.window > width:
        # Of a mask with two axes transformers asks whether all of it is True, and waits for the device to tell.
        told["attention_mask"] = slots.mask[:, None, None, :width]
        if backbone.attends_by_blocks:
            told["stretches"] = stretches_of([sample.span + 1 for sample in slots.samples], width)
    more: dict[str, Any] = {"past_key_values": slots.cache, "use_cache": True, **told}
    return backbone.forward(slots.tokens, position_ids=slots.positions, adapter=adapter, **more)[:, -1]


def prompts_at_once(rows: Sequence[Row], tokens: int) -> Iterator[list[int]]:
    """Numbers of neighbours whose prompts are read together: at most `tokens` tokens, what comes again read once."""
    part: list[int] = []
    held = 0
    for number, row in enumerate(rows):
        new = 0 if part and rows[part[-1]].ids == row.ids else len(row.ids)
        if part and new and held + new > tokens:
            yield part
            part, held, new = [], 0, len(row.ids)
        part.append(number)
        held += new
    if part:
        yield part
