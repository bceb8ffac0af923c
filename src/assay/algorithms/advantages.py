"""From the score of a response to an advantage for each of its tokens.

    scores, finished ─ missing_eos_scores ─ shaped_rewards ─ gae → advantages, returns          with a critic
    scores of G responses to one prompt ─ group_relative | leave_one_out → advantages           without one

Rewards to go are `gae` with values of 0 and λ = 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from assay.algorithms.masked import masked_var, zero_pads

MissingEosRule = Literal["set", "subtract", "none"]


def missing_eos_scores(scores_B: Tensor, finished_B: Tensor, *, rule: MissingEosRule, penalty: float) -> Tensor:
    """Scores after the rule for responses that ran out of tokens before they ended.

        set       s = −penalty       (N+ details, arXiv 2403.17031: the score is replaced)
        subtract  s = s − penalty    (TRL: the score is lowered)
        none      s                  (the score is kept)

    `finished_B` is True where the response emitted its end token or a stop string; those scores never change.
    Shapes: [B], [B] → [B].
    """
    missing = {"set": torch.full_like(scores_B, -penalty), "subtract": scores_B - penalty, "none": scores_B}
    if rule not in missing:
        raise ValueError(f"missing-EOS rule {rule!r}: choose one of {', '.join(missing)}")
    return scores_B.where(finished_B, missing[rule])


def shaped_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, coef: float) -> Tensor:
    """r_t = −β·kl_t, plus the score at the last counted token (the end token of a finished response).

    Σ_t r_t = score − β·Σ_t kl_t for every row. Uncounted positions are 0.
    Shapes: scores [B], kl (k1 of the sampled tokens) and mask [B, T] → [B, T]; every row counts a token.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), eq. 2; Ouyang et al. 2022 (arXiv 2203.02155), eq. 2.
    """
    if not mask_BT.any(dim=1).all():
        raise ValueError("a response without a counted token has nowhere to receive its score")
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = positions_T.where(mask_BT, -1).amax(dim=1)
    paid_BT = scores_B[:, None].to(kl_BT.dtype).where(positions_T == last_B[:, None], 0)
    return zero_pads(-coef * kl_BT, mask_BT) + paid_BT


@torch.no_grad()
def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        δ_t = r_t + γ·V_{t+1} − V_t        A_t = δ_t + γλ·A_{t+1}        R_t = A_t + V_t

    t+1 is the next *counted* token: an uncounted one (padding, or text that the policy did not write) takes no time
    and hides no value. After the last one V is 0, for a truncated response too: it was paid its score there, and
    paid a bootstrapped value as well, its future would count twice.
    Shapes: rewards, values and mask [B, T] → advantages, returns [B, T], 0 where not counted.
    Both are constants of the update: no gradient flows through them.
    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16.
    """
    next_value_B = torch.zeros_like(values_BT[:, 0])
    advantage_B = torch.zeros_like(next_value_B)
    advantages_BT = torch.zeros_like(values_BT)
    for t in reversed(range(values_BT.shape[1])):
        counts_B, value_B = mask_BT[:, t], values_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - value_B
        advantage_B = (delta_B + gamma * lam * advantage_B).where(counts_B, advantage_B)
        next_value_B = value_B.where(counts_B, next_value_B)
        advantages_BT[:, t] = advantage_B
    return zero_pads(advantages_BT, mask_BT), zero_pads(advantages_BT + values_BT, mask_BT)


@torch.no_grad()
def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R): 1 for a perfect critic, 0 for a constant one, negative for a harmful one.

    Shapes: [B, T] → scalar over the counted tokens of the whole batch. Where all returns are equal the ratio is
    undefined; then 1 if the error is constant too, else 0, as in scikit-learn's `explained_variance_score`.
    """
    error, spread = masked_var(returns_BT - values_BT, mask_BT), masked_var(returns_BT, mask_BT)
    return torch.where(spread > 0, 1 - error / spread, (error == 0).to(spread.dtype))


def group_relative(scores_NG: Tensor, *, scale: bool, eps: float = 1e-6) -> Tensor:
    """r − mean of the group, over its standard deviation if `scale`; 0 for a group whose scores are all equal.

    The deviation is the population's (ddof 0). Without it the expected gradient is (G−1)/G of the true one; with it
    the method climbs another objective, for a binary reward 2·arcsin√p (docs/proof.md).
    Shapes: N prompts, G responses each: [N, G] → [N, G].
    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300), sec. 4.1.2; unscaled, Dr.GRPO (arXiv 2503.20783), eq. 4.
    """
    centred_NG = scores_NG - scores_NG.mean(dim=1, keepdim=True)
    if not scale:
        return centred_NG
    std_N = scores_NG.std(dim=1, keepdim=True, correction=0)
    return torch.where(std_N > eps, centred_NG / (std_N + eps), 0.0)


def leave_one_out(scores_NG: Tensor) -> Tensor:
    """r − mean of the *other* responses to the same prompt = G/(G−1)·(r − mean): exactly unbiased.

    Shapes: [N, G] → [N, G], G ≥ 2. Source: RLOO, Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8.
    """
    size = scores_NG.shape[1]
    if size < 2:
        raise ValueError("a group of one has no others to compare with")
    return size / (size - 1) * group_relative(scores_NG, scale=False)


def informative_groups(scores_NG: Tensor, *, eps: float = 1e-6) -> Tensor:
    """True for groups whose scores differ: the others teach a group-relative method nothing.

    Shapes: [N, G] → [N] bool. Source: dynamic sampling, DAPO (arXiv 2503.14476), sec. 3.2.
    """
    return scores_NG.amax(dim=1) - scores_NG.amin(dim=1) > eps


def overlong_penalty(lengths_B: Tensor, *, max_tokens: int, buffer: float) -> Tensor:
    """0 up to max_tokens − buffer tokens, then falling in a line to −1 at max_tokens.

    Shapes: [B] → [B]. Source: soft overlong punishment, DAPO (arXiv 2503.14476), eq. 13.
    """
    return ((max_tokens - buffer - lengths_B) / buffer).clamp(-1, 0)
