"""Process rewards: a judgement of every step of a response, and the reward of the whole."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.algorithms.masked import zero_pads
from assay.algorithms.preference_loss import wins

StepAggregate = Literal["sum", "min", "product", "last"]


def step_loss(
    logits_BS: Tensor, good_BS: Tensor, mask_BS: Tensor, *, total: int | Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of each step's judgement; a judged step counts once wherever it stands.

        L = 1/total · Σ [ y·softplus(−z) + (1 − y)·softplus(z) ]

    Shapes: logits z, labels y (True: the step is good), mask, all [B, S] → scalar. `total` is the number of judged
    steps of the whole optimizer step; this batch's if left out. Metrics, as shares of `total`: accuracy (z = 0: ½).
    Source: Lightman et al. 2023 (arXiv 2305.20050), sec. 2.6; Uesato et al. 2022 (arXiv 2211.14275), sec. 2.
    """
    logits_BS = zero_pads(logits_BS, mask_BS)
    loss_BS = F.binary_cross_entropy_with_logits(logits_BS, good_BS.to(logits_BS.dtype), reduction="none")
    total = mask_BS.sum() if total is None else total
    with torch.no_grad():
        right_BS = wins(torch.where(good_BS, logits_BS, -logits_BS))
        metrics = {"accuracy": zero_pads(right_BS, mask_BS).sum() / total}
    return zero_pads(loss_BS, mask_BS).sum() / total, metrics


def whole_response(logits_BS: Tensor, mask_BS: Tensor, how: StepAggregate) -> Tensor:
    """The reward of a response from its steps' logits z_s, or log-chances of being good, log p_s = −softplus(−z_s).

        sum: Σ_s z_s      product: Σ_s log p_s = log P(every step is good)      min: min_s log p_s      last: log p_S

    If a step is judged good with the chance σ(u_s − u_{s−1}) that a response is preferred with it to the response
    without it (Bradley–Terry), then z_s is what it adds to the worth u, and the sum is the worth of the whole. The
    others never grow with a further step, so that they like short responses.
    Shapes: [B, S], [B, S] with at least one step in every row → [B], in nats; all but the sum at most 0.
    Source: Lightman et al. 2023 (arXiv 2305.20050), app. F: product and minimum.
    """
    if how == "sum":
        return zero_pads(logits_BS, mask_BS).sum(dim=1)
    log_chance_BS = F.logsigmoid(zero_pads(logits_BS, mask_BS))
    if how == "product":
        return zero_pads(log_chance_BS, mask_BS).sum(dim=1)
    if how == "min":
        return log_chance_BS.masked_fill(~mask_BS, torch.inf).amin(dim=1)
    places_S = torch.arange(1, mask_BS.shape[1] + 1, device=mask_BS.device)
    last_B = (mask_BS * places_S).argmax(dim=1, keepdim=True)
    return log_chance_BS.gather(1, last_B)[:, 0]
