"""Active probes: a model that is there is asked a few questions whose answers are known. What all of them need.

    probe_reward.py    RewardProbe    score twice, alone and padded, after a reload; learn 32 pairs by heart
                       LabelProbe     learn labels that mean nothing: nobody can know those of held-out pairs
    probe_policy.py    PolicyProbe    padded and alone, reference and SFT model, sampler and trainer, adapters, tokens
    probe_batch.py     StepProbe      the gradient of one optimizer step, split in two ways
                       PromptBatch    what generation is about to be given

All but the last run the model; none changes it. N rows, T tokens, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from assay.doctor.finding import Finding
from assay.doctor.reward import NOT_FINITE
from assay.models.backbone import Backbone

ROUNDED = 50.0  # times that, where products are computed in bf16 (8 bits: 2⁻⁸ of a logit of about 10)


def exact(backbone: Backbone) -> bool:
    """Whether products are computed in fp32."""
    return backbone.model.dtype == torch.float32 and isinstance(backbone.autocast(), nullcontext)


@contextmanager
def unchanged(parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Weights and gradients are put back afterwards."""
    held = {name: (p.detach().clone(), p.grad) for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                weight, parameter.grad = held[name]
                parameter.copy_(weight)


def not_finite_in(where: str, model: nn.Module, run: Callable[[], Tensor]) -> Iterator[Finding]:
    """Weights first, then what every module gives; modules end from the innermost outwards."""
    weights = [(name, p.dtype) for name, p in model.named_parameters() if not p.isfinite().all()]
    found: list[tuple[str, torch.dtype]] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            tensors = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
            odd = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all()]
            found.extend((name, tensor.dtype) for tensor in odd)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        finite = bool(run().isfinite().all())
    finally:
        for hook in hooks:
            hook.remove()
    if weights:
        said = f"weight {weights[0][0]} ({weights[0][1]}), one of {len(weights)} that are not finite"
    elif found:
        said = f"the output of {found[0][0]} ({found[0][1]}) is the first that is not finite"
    elif not finite:
        said = "what the model gives is not finite, though everything inside is"
    else:
        return
    yield Finding(NOT_FINITE, where, said, sureness="certain")
