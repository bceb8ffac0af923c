"""Divergences between the next-token distributions of a teacher p and a student q: the losses of distillation.

The text whose tokens are compared is the caller's choice: demonstrations or the teacher's samples (off-policy), or the
student's own (on-policy; GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543). No gradient flows through sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from assay.algorithms.logprobs import CHUNK
from assay.algorithms.product import linear

Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of student and teacher, [..., V] each, to nats, [...]."""

Head: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight [V, D] and bias [V] of a language-model head."""


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v·(log p_v − log q_v): the student covers all that the teacher may say.

    Shapes: log-probabilities [..., V], finite → [...]. Source: Hinton et al. 2015 (arXiv 1503.02531), sec. 2.
    """
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q ‖ p): the student says nothing that the teacher would not.

    Shapes: log-probabilities [..., V], finite → [...]. Source: MiniLLM (arXiv 2306.08543), eq. 1.
    """
    return forward_kl(teacher, student)


def jensen_shannon(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """β·KL(p ‖ m) + (1 − β)·KL(q ‖ m), m = β·p + (1 − β)·q: bounded, between the two.

    Divided by β it becomes the forward KL as β → 0; divided by 1 − β, the reverse KL as β → 1. 0 < β < 1.
    Shapes: log-probabilities [..., V], finite → [...]. Source: GKD (arXiv 2306.13649), eq. 1.
    """
    share = student.new_full((), beta)
    mixture = torch.logaddexp(teacher + share.log(), student + torch.log1p(-share))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)


def token_divergence(
    divergence: Divergence,
    hidden_ND: Tensor,
    head: Head,
    teacher_hidden_NE: Tensor,
    teacher_head: Head,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """Divergence of student and teacher at each token, both as softmax((h·Wᵀ + b) / temperature).

    Logits exist for `chunk` tokens at a time and are computed again in the backward pass; nothing of size V is kept.
    Heads work in float32 (float64 for float64 input), under autocast too. Rows of a head beyond those of the other are
    padding, no token, and left out. The teacher gets no gradient.
    Shapes: student [N, D], [V, D]; teacher [N, E], [V, E] → [N], nats.
    """
    size = min(len(head[0]), len(teacher_head[0]))

    def of_chunk(hidden_CD: Tensor, weight: Tensor, bias: Tensor | None, teacher_hidden_CE: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_CV = _token_logprobs(teacher_hidden_CE, *teacher_head, size, temperature)
        return divergence(_token_logprobs(hidden_CD, weight, bias, size, temperature), teacher_CV)

    chunks = zip(hidden_ND.split(chunk), teacher_hidden_NE.split(chunk), strict=True)
    parts = (checkpoint(of_chunk, h, *head, t, use_reentrant=False, preserve_rng_state=False) for h, t in chunks)
    return torch.cat(list(parts))


def _token_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, size: int, temperature: float) -> Tensor:
    """[C, D] → [C, V] over the first `size` tokens."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = linear(hidden.to(dtype), weight[:size].to(dtype), None if bias is None else bias[:size].to(dtype))
    return (logits / temperature).log_softmax(-1)
