"""BERTScore: how much of the meaning of two texts matches, token by token (arXiv 1904.09675)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from assay.errors import ModelError
from assay.evaluation.text import References, reference_rows
from assay.statistics import bootstrap_mean

UNSEEN = -1
"""Key of the document weight of tokens that no reference holds."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: list[int]
    special: list[bool]


class BertScorer:
    """BERTScore with any encoder that transformers opens from a folder.

    Scores of different encoders or layers cannot be compared, and none is rescaled by a baseline here.
    """

    def __init__(self, folder: str | Path, *, layer: int = -1, device: str = "cpu", batch_size: int = 64) -> None:
        """`layer` indexes the hidden states: 0 is the embeddings, −1 the last layer."""
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder).to(device).eval()
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}: no encoder there ({error})", hint="give the folder of a model") from error
        states = int(self._model.config.num_hidden_layers) + 1
        if not -states <= layer < states:
            raise ModelError(f"{folder} has no layer {layer}", hint=f"its hidden states are 0 to {states - 1}")
        positions = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        self._longest = min(int(positions), int(self._tokenizer.model_max_length))
        self._layer, self._device, self._batch_size = layer, device, batch_size

    def report(
        self, responses: Sequence[str], references: References, *, seed: int, idf: bool = False
    ) -> dict[str, float | None]:
        """Means with intervals. Keys: bertscore_precision, bertscore_recall, bertscore_f1, with _low and _high."""
        table = self.score(responses, references, idf=idf)
        report: dict[str, float | None] = {}
        for column, name in enumerate(("precision", "recall", "f1")):
            report |= bootstrap_mean([row[column] for row in table], seed=seed).named(f"bertscore_{name}")
        return report

    def score(
        self, responses: Sequence[str], references: References, *, idf: bool = False
    ) -> list[tuple[float, float, float]]:
        """(precision, recall, F1) per response; of its best reference by F1 where it has several.

        R = Σ_i w(x_i) max_j cos(x_i, y_j) / Σ_i w(x_i) over reference tokens x and response tokens y; P the other
        way round; F1 = 2PR/(P + R) (arXiv 1904.09675, sec. 3). w = 1, or with `idf` log((N + 1)/(n + 1)) of a token
        in n of the N references; a text of which all tokens are in every reference is weighed evenly. Special
        tokens may be matched but weigh nothing, as in the authors' code. A text without tokens scores 0.
        """
        rows = reference_rows(responses, references)
        tokens = {text: self._tokens(text) for text in {*responses, *(target for row in rows for target in row)}}
        vectors = self._embed(tokens)
        rarity = _rarity([tokens[target].ids for row in rows for target in row]) if idf else {}

        def match(response: str, reference: str) -> tuple[float, float, float]:
            y, x = tokens[response], tokens[reference]
            if all(y.special) or all(x.special):
                return 0.0, 0.0, 0.0
            similarity = vectors[response] @ vectors[reference].T
            precision = float(_weights(y, rarity) @ similarity.amax(1).double())
            recall = float(_weights(x, rarity) @ similarity.amax(0).double())
            total = precision + recall
            return precision, recall, 2 * precision * recall / total if total else 0.0

        scored = ([match(response, target) for target in row] for response, row in zip(responses, rows, strict=True))
        return [max(scores, key=lambda score: score[2]) for scores in scored]

    def _tokens(self, text: str) -> _Tokens:
        row = self._tokenizer(text.strip(), truncation=True, max_length=self._longest, return_special_tokens_mask=True)
        return _Tokens(list(row["input_ids"]), [bool(flag) for flag in row["special_tokens_mask"]])

    @torch.no_grad()
    def _embed(self, tokens: Mapping[str, _Tokens]) -> dict[str, Tensor]:
        """Unit vectors [tokens, width] of each text; texts of similar length share a batch."""
        texts = sorted((text for text in tokens if tokens[text].ids), key=lambda text: len(tokens[text].ids))
        vectors: dict[str, Tensor] = {}
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            longest = len(tokens[batch[-1]].ids)
            ids = torch.tensor([tokens[text].ids + [0] * (longest - len(tokens[text].ids)) for text in batch])
            lengths = torch.tensor([len(tokens[text].ids) for text in batch])
            mask = torch.arange(longest) < lengths[:, None]
            states = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.long().to(self._device), output_hidden_states=True
            ).hidden_states[self._layer]
            states = torch.nn.functional.normalize(states.float(), dim=-1).cpu()
            vectors |= {text: states[row, : len(tokens[text].ids)] for row, text in enumerate(batch)}
        return vectors


def _rarity(documents: Sequence[Sequence[int]]) -> dict[int, float]:
    """Inverse document frequency of every token, log((N + 1)/(n + 1)), and of an unseen one."""
    seen = Counter(token for document in documents for token in set(document))
    size = len(documents) + 1
    return {token: math.log(size / (count + 1)) for token, count in seen.items()} | {UNSEEN: math.log(size)}


def _weights(tokens: _Tokens, rarity: Mapping[int, float]) -> Tensor:
    """Weight of each token, summing to 1; special tokens weigh nothing."""
    plain = torch.tensor([float(not special) for special in tokens.special], dtype=torch.float64)
    rare = plain * torch.tensor([rarity.get(t, rarity[UNSEEN]) if rarity else 1.0 for t in tokens.ids]).double()
    chosen = rare if rare.sum() > 0 else plain
    return chosen / chosen.sum()
