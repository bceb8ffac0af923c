"""The reward model: text to one score. A causal trunk read at its last token, or an encoder with its own tokenizer.

It may have several scores inside: objectives, members of an ensemble, steps of a response (`readout.py`). Its folder is
a plain `AutoModelForSequenceClassification(num_labels=1)` and gives the same scores there, wherever a single head can:
`reward_plain_is_exact` in its config.json says so where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from assay.algorithms.process_loss import whole_response
from assay.data.pack import TokenBatch, collate
from assay.data.render import Renderer, Row
from assay.data.steps import split_steps
from assay.errors import ModelError
from assay.models.attribution import attribute
from assay.models.backbone import Backbone
from assay.models.calibration import preference_gain
from assay.models.config import Template
from assay.models.load import Tokenizer, saving
from assay.models.locate import weights_hash
from assay.models.pairs import PairRenderer
from assay.models.reward_folder import (
    BASE,
    HEADS,
    Provenance,
    adapter_folder,
    adapter_name,
    head_parameters,
)
from assay.types import FinishReason, Prompt


class RewardModel:
    """Scores responses; after calibration, σ(score_a − score_b) is the probability that a is preferred to b."""

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Linear,
        tokenizer: Tokenizer,
        renderer: Renderer | PairRenderer,
        provenance: Provenance,
        *,
        adapter: str | None = None,
        source: Path = Path(),
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.readout = provenance.readout
        self.template: Template = provenance.template
        self.adapter = adapter
        """The adapter, or the first member's."""
        self.source = source
        self.base = provenance.base
        """Hash of the weights that the adapters stand on, where it is known already."""
        if self.readout.steps and not self.causal:
            raise ModelError(
                "an encoder reads a response as a whole and cannot judge its steps", hint="give a causal language model"
            )

    @property
    def mean(self) -> float:
        """Mean score of held-out responses; subtract it to centre a reward."""
        return self.readout.mean

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def causal(self) -> bool:
        """False for an encoder, which reads prompt and response as a whole and in both directions."""
        return isinstance(self.renderer, Renderer)

    def row(self, prompt: Prompt, response: str, finish: FinishReason = "stop") -> Row | None:
        """Ids in the model's own tokenizer; None when nothing of the response would remain.

        A response that was cut short has no end token, so the model can see that it was.
        """
        row = self.renderer.row(prompt, response)
        if row and self.causal and finish == "length" and row.ids[-1] == self.renderer.eos_id:  # pyright: ignore
            return Row(row.ids[:-1], row.prompt_length)
        return row

    def score(self, batch: TokenBatch) -> Tensor:
        """Scores [B], fp32."""
        return self.readout.read(self.scores(batch))

    def scores(self, batch: TokenBatch) -> Tensor:
        """Every member's score of every objective [B, M, O], fp32.

        A causal model is read at the rightmost token that counts, on whichever side the pads are.
        """
        places = torch.arange(1, batch.attention_mask.shape[1] + 1, device=batch.attention_mask.device)
        last_B = (batch.attention_mask * places).argmax(1)
        columns = [self._scores_at(batch, last_B[:, None], name, rows)[:, 0] for name, rows in self._members()]
        return torch.cat(columns, dim=1).view(len(last_B), self.readout.members, -1)

    def score_steps(self, batch: TokenBatch, ends_BS: Tensor) -> Tensor:
        """Log-odds [B, S], fp32, that the step which ends at each position is good."""
        return self._scores_at(batch, ends_BS, self.adapter, slice(None)).squeeze(2)

    def score_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        finishes: Sequence[FinishReason] | None = None,
        *,
        batch_size: int = 64,
    ) -> list[float]:
        """One score a response: the one path of evaluation, PPO and serving. An empty response is read as its end."""
        if self.readout.steps:
            judged = self.judge(prompts, [split_steps(response) for response in responses], batch_size=batch_size)
            logits_BS = torch.nn.utils.rnn.pad_sequence(judged, batch_first=True, padding_value=torch.nan)
            return whole_response(logits_BS, ~logits_BS.isnan(), self.readout.steps).tolist()
        return self.readout.read(self.member_scores(prompts, responses, finishes, batch_size=batch_size)).tolist()

    @torch.no_grad()
    def member_scores(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        finishes: Sequence[FinishReason] | None = None,
        *,
        batch_size: int = 64,
    ) -> Tensor:
        """[N, M, O] on the CPU: what `score_texts` makes one number of."""
        ends: list[FinishReason] = list(finishes) if finishes is not None else ["stop" for _ in prompts]
        rows = [self.row(*each) or self._empty(each[0]) for each in zip(prompts, responses, ends, strict=True)]
        return torch.stack(self._in_batches(rows, batch_size, lambda batch, _: self.scores(batch).cpu()))

    @torch.no_grad()
    def judge(self, prompts: Sequence[Prompt], steps: Sequence[Sequence[str]], *, batch_size: int = 64) -> list[Tensor]:
        """Log-odds that each step of each response is good, as far as they fit; for a process reward model only."""
        rows: list[Row] = []
        ends: list[list[int]] = []
        for prompt, response in zip(prompts, steps, strict=True):
            row, places = self.step_row(prompt, response) or (empty := self._empty(prompt), [len(empty.ids) - 1])
            rows.append(row)
            ends.append(places)

        def logits(batch: TokenBatch, index: Sequence[int]) -> list[Tensor]:
            scored = self.score_steps(batch, padded([ends[i] for i in index]).to(batch.input_ids.device)).cpu()
            return [row[: len(ends[i])] for row, i in zip(scored, index, strict=True)]

        return self._in_batches(rows, batch_size, logits)

    def step_row(self, prompt: Prompt, steps: Sequence[str]) -> tuple[Row, list[int]] | None:
        """The steps as one row and where each of them ends; None when nothing remains."""
        assert isinstance(self.renderer, Renderer)
        return self.renderer.steps(prompt, steps)

    def attribute(self, prompt: Prompt, response: str) -> list[tuple[str, float]]:
        """Which words the score comes from: (word, contribution), adding up to score − score of an empty response."""
        return attribute(response, lambda texts: self.score_texts([prompt] * len(texts), texts))

    @torch.no_grad()
    def calibrate(self, chosen: Sequence[float], rejected: Sequence[float], *, column: int = 0) -> float:
        """Scale the head so that score differences are log-odds of preference; keep the mean score. Returns the gain.

        Temperature scaling (Guo et al. 2017, arXiv 1706.04599, sec. 4.2): the gain is 1 / temperature. `chosen` and
        `rejected` are this column's scores of held-out pairs. The gain is positive: no order changes.
        """
        gain = preference_gain(chosen, rejected)
        self.head.weight[column].mul_(gain)
        if self.head.bias is not None:
            self.head.bias[column].mul_(gain)
        self.readout = self.readout.calibrated(column, gain * float(np.mean([*chosen, *rejected])))
        return gain

    def parameters_trained(self) -> dict[str, Parameter]:
        """What an optimizer changes, by name."""
        return {name: p for name, p in self.backbone.model.named_parameters() if p.requires_grad}

    def save(self, folder: Path) -> None:
        """A plain sequence-classification folder, adapter merged in; the tokenizer; and what reward_folder.py names."""
        model, adapters = self.backbone.model, self.backbone.adapters
        base = (self.base or weights_hash(self.source)) if self.adapter else ""
        Provenance(self.template, base, self.readout).write(model)
        head = self._plain_heads()
        with saving(folder):
            model.save_pretrained(folder, state_dict=adapters.merged(self.adapter) | head)
            self.tokenizer.save_pretrained(folder)
            for number, (name, _) in enumerate(self._members() if self.adapter else [], start=1):
                assert name
                own = self._plain_heads(number)
                adapters.save(name, folder / adapter_folder(number), base=str(self.source), head=own)
            if self.readout.adapters > 1:
                model.save_pretrained(folder / BASE, state_dict=adapters.merged(None) | head)
            if self.readout.columns > 1:
                heads = {name: p.detach().cpu().clone() for name, p in self.head.named_parameters()}
                save_file(heads, folder / HEADS, metadata={"format": "pt"})

    @torch.no_grad()
    def plain_head(self, parameter: Tensor, member: int = 1) -> Tensor:
        """The weight [1, D] or bias [1] of the one score that a plain model has."""
        return (self.readout.plain(member).to(parameter.device) @ parameter.float())[None]

    def _plain_heads(self, member: int = 1) -> dict[str, Tensor]:
        """Everything above the trunk as a plain model with one score has it."""
        several = (self.head.weight, self.head.bias) if self.readout.columns > 1 else ()
        return {
            name: self.plain_head(p, member) if any(p is own for own in several) else p
            for name, p in head_parameters(self.backbone.model).items()
        }

    def _members(self) -> list[tuple[str | None, slice]]:
        """The passes through the trunk that a score needs: an adapter and the rows of the head that read it."""
        size = len(self.readout.objectives)
        if self.readout.adapters == 1:
            return [(self.adapter, slice(None))]
        names = [adapter_name(number) for number in range(1, self.readout.adapters + 1)]
        return [(name, slice(m * size, (m + 1) * size)) for m, name in enumerate(names)]

    def _scores_at(self, batch: TokenBatch, places_BS: Tensor, adapter: str | None, rows: slice) -> Tensor:
        """Scores [B, S, rows], fp32, at positions [B, S]; an encoder has one position, its own."""
        if not self.causal:
            return self._score_pairs(batch, adapter)[:, None, rows]
        starts_B = torch.arange(len(places_BS), device=places_BS.device) * batch.input_ids.shape[1]
        hidden_ND = self.backbone.states(batch, (starts_B[:, None] + places_BS).flatten(), adapter)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            scores = nn.functional.linear(hidden_ND.float(), self.head.weight[rows].float())
        return scores.view(*places_BS.shape, -1)

    def _score_pairs(self, batch: TokenBatch, adapter: str | None) -> Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
        if getattr(self.backbone.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = batch.loss_mask.long()
        with self.backbone.adapters.use(adapter), self.backbone.autocast():
            return self.backbone.model(**inputs).logits.float()

    def _in_batches(
        self, rows: Sequence[Row], size: int, of: Callable[[TokenBatch, Sequence[int]], Iterable[Tensor]]
    ) -> list[Tensor]:
        """`of(batch, its row numbers)` for every row, in order."""
        found: dict[int, Tensor] = {}
        for index in self.backbone.parts([(row,) for row in rows], size):
            batch = collate([rows[i] for i in index], self.pad_id).to(self.backbone.device)
            found |= zip(index, of(batch, index), strict=True)
        return [found[i] for i in range(len(rows))]

    def _empty(self, prompt: Prompt) -> Row:
        """A response without any text."""
        if isinstance(self.renderer, PairRenderer):
            row = self.renderer.row(prompt, ".")
            assert row is not None
            return row
        ids = self.renderer.prompt(prompt)
        return Row([*ids, self.renderer.eos_id], len(ids))


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Positions [B, S]; shorter rows repeat their last one."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])
