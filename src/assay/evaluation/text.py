"""What the text itself looks like: overlap with references, variety, repetition, length, truncation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.data.ngrams import ngrams, repetition
from assay.errors import DataError
from assay.statistics import bootstrap_mean, proportion, same_length
from assay.types import Completion

References = Sequence[str] | Sequence[Sequence[str]]
"""One reference text per response, or several."""

WORD = re.compile(r"\w+|[^\w\s]")
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return WORD.findall(text.lower())


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams over all n-grams of all texts together (Li et al. 2016, arXiv 1510.03055, sec. 5.2).

    It falls with the amount of text: compare only sets of similar size. `None` where no text holds an n-gram.
    """
    runs = [run for text in texts for run in ngrams(words(text), n)]
    return len(set(runs)) / len(runs) if runs else None


def bleu(responses: Sequence[str], references: References) -> dict[str, Any]:
    """Corpus BLEU-4 by sacrebleu, 0–100. Keys: bleu, bleu_signature (what to cite), bleu_brevity."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(responses), _columns(responses, references))
    return {"bleu": float(score.score), "bleu_brevity": float(score.bp), "bleu_signature": str(metric.get_signature())}


def rouge(responses: Sequence[str], references: References, *, seed: int) -> dict[str, Any]:
    """Mean ROUGE F1 by rouge-score with stemming, 0–1; the best reference counts where there are several.

    Keys: rouge1, rouge2, rougeL, each with _low and _high (bootstrap over responses).
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    rows = [
        scorer.score_multi(targets, response)
        for response, targets in zip(responses, reference_rows(responses, references), strict=True)
    ]
    report: dict[str, Any] = {}
    for name in ROUGE_TYPES:
        report |= bootstrap_mean([row[name].fmeasure for row in rows], seed=seed).named(name)
    return report


def reference_rows(responses: Sequence[str], references: References) -> list[list[str]]:
    """References as one non-empty list per response."""
    same_length(responses=responses, references=references)
    rows = [[targets] if isinstance(targets, str) else list(targets) for targets in references]
    if not rows or not all(rows):
        raise DataError("a response has no reference text", hint="give at least one reference for each response")
    return rows


def _columns(responses: Sequence[str], references: References) -> list[list[Any]]:
    """References as sacrebleu wants them: the i-th column holds everyone's i-th reference, or None."""
    rows = reference_rows(responses, references)
    widest = max(map(len, rows))
    return [[row[i] if i < len(row) else None for row in rows] for i in range(widest)]


def text_report(
    completions: Sequence[Completion], *, seed: int, references: References | None = None
) -> dict[str, Any]:
    """Statistics of what a policy wrote.

    Keys: n, repetition (mean rep-4, with _low and _high), distinct_1, distinct_2, length_words and length_tokens
    (mean, with _low and _high), length_tokens_median, length_tokens_p95, truncated (share that ran out of tokens,
    with _low and _high), empty (share without a word, with _low and _high), and with references those of `bleu`
    and `rouge`.
    """
    if not completions:
        raise DataError("completions: there is nothing to evaluate", hint="give at least one completion")
    texts = [completion.response for completion in completions]
    tokens = np.array([completion.tokens for completion in completions], dtype=np.float64)
    counts = [len(words(text)) for text in texts]
    report: dict[str, Any] = {
        "n": len(texts),
        **bootstrap_mean([repetition(words(text)) for text in texts], seed=seed).named("repetition"),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        **bootstrap_mean(counts, seed=seed).named("length_words"),
        **bootstrap_mean(tokens, seed=seed).named("length_tokens"),
        "length_tokens_median": float(np.median(tokens)),
        "length_tokens_p95": float(np.quantile(tokens, 0.95)),
        **proportion([float(completion.finish == "length") for completion in completions]).named("truncated"),
        **proportion([float(count == 0) for count in counts]).named("empty"),
    }
    if references is not None:
        report |= bleu(texts, references) | rouge(texts, references, seed=seed)
    return report
