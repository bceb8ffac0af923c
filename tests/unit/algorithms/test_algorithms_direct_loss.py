"""Direct preference optimisation: every link and loss, KTO, and the closed forms of a tabular problem (correctness
32–34, oracles 2)."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import direct
from tests.unit.algorithms.batches import Batch, assert_same, batches, quick
from torch import Tensor

from assay.algorithms import direct_loss as d
from assay.algorithms.direct_loss import Link, PairLoss

ALPHA, BETA, MARGIN, EPS = 0.3, 0.7, 0.4, 0.2
LINKS: dict[str, Link] = {
    "reverse_kl": d.reverse_kl,
    "forward_kl": d.forward_kl,
    "jensen_shannon": d.jensen_shannon,
    "alpha": partial(d.alpha_divergence, alpha=ALPHA),
    "log_odds": d.log_odds,
}
LOSSES: dict[str, tuple[PairLoss, dict[str, float]]] = {
    "dpo": (partial(d.logistic, beta=BETA), {}),
    "cdpo": (partial(d.logistic, beta=BETA, smoothing=EPS), {"smoothing": EPS}),
    "simpo": (partial(d.logistic, beta=BETA, margin=MARGIN), {"margin": MARGIN}),
    "robust": (partial(d.robust, beta=BETA, smoothing=EPS), {"smoothing": EPS}),
    "squared": (partial(d.squared, beta=BETA), {}),
    "hinge": (partial(d.hinge, beta=BETA, margin=MARGIN), {"margin": MARGIN}),
}
ORACLE = {"dpo": "logistic", "cdpo": "logistic", "simpo": "logistic"}
RATIO = st.floats(-4, 4, allow_subnormal=False)
PAIRS = st.lists(st.tuples(RATIO, RATIO), min_size=1, max_size=6)
VERDICTS = st.lists(st.tuples(RATIO, st.booleans()), min_size=1, max_size=6)


def f64(values: list[float], *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def log_probability(x: float) -> float:
    """A number in (−9, −1), as `log_odds` needs one."""
    return x - 5


@quick
@given(batch=batches(fields=1), reference=st.floats(-5, 5), per_token=st.booleans())
def test_a_log_ratio_is_summed_over_the_response_or_per_token(batch: Batch, reference: float, per_token: bool) -> None:
    x_B = d.sequence_log_ratio(batch.field(0), batch.mask_BT, f64([reference]), length_normalised=per_token)
    assert_same(x_B, [direct.log_ratio(row, reference, per_token=per_token) for row in batch.rows(0)])


@quick
@given(batch=batches(fields=1))
def test_nll_weighs_every_response_once_and_reads_no_pad(batch: Batch) -> None:
    logprobs = batch.field(0).requires_grad_()
    loss = d.response_nll(logprobs, batch.mask_BT, total=len(batch.tokens))
    loss.backward()
    assert_same(loss.detach(), direct.nll(batch.rows(0)))
    assert logprobs.grad is not None
    counted = batch.mask_BT.double()
    assert_same(logprobs.grad, -counted / counted.sum(1, keepdim=True) / len(batch.tokens))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("loss", LOSSES)
@quick
@given(pairs=PAIRS)
def test_every_link_with_every_loss_is_the_mean_over_its_pairs(
    link: str, loss: str, pairs: list[tuple[float, float]]
) -> None:
    if link == "log_odds":
        pairs = [(log_probability(c), log_probability(r)) for c, r in pairs]
    function, settings = LOSSES[loss]
    chosen, rejected = f64([c for c, _ in pairs]), f64([r for _, r in pairs])
    value, metrics = d.pair_loss(chosen, rejected, link=LINKS[link], loss=function, beta=BETA, total=len(pairs))
    rewards = [(direct.reward(c, link, ALPHA), direct.reward(r, link, ALPHA)) for c, r in pairs]
    n = len(pairs)
    assert_same(
        value, sum(direct.pair(ORACLE.get(loss, loss), c - r, beta=BETA, **settings) for c, r in rewards) / n, 1e-7
    )
    assert_same(metrics["chosen_reward"], sum(BETA * c for c, _ in rewards) / n, 1e-7)
    assert_same(metrics["rejected_reward"], sum(BETA * r for _, r in rewards) / n, 1e-7)
    assert_same(metrics["reward_margin"], sum(BETA * (c - r) for c, r in rewards) / n, 1e-7)
    assert not value.requires_grad
    assert not any(metric.requires_grad for metric in metrics.values())


@quick
@given(verdicts=VERDICTS, baseline=st.floats(0, 2), desirable=st.floats(0.5, 2))
def test_kto_is_the_mean_over_its_verdicts(
    verdicts: list[tuple[float, bool]], baseline: float, desirable: float
) -> None:
    x, good = f64([x for x, _ in verdicts]), torch.tensor([good for _, good in verdicts])
    n = len(verdicts)
    value, metrics = d.kto_loss(x, good, baseline=baseline, beta=BETA, desirable_weight=desirable, total=n)
    expected = [direct.verdict(x, g, baseline=baseline, beta=BETA, desirable=desirable) for x, g in verdicts]
    assert_same(value, sum(expected) / n)
    gains = [(1 if g else -1) * (x - baseline) for x, g in verdicts]
    assert_same(metrics["accuracy"], sum(0.5 if gain == 0 else float(gain > 0) for gain in gains) / n)
    assert_same(metrics["reward_margin"], BETA * sum(gains) / n)


@quick
@given(ratios=st.lists(RATIO, min_size=1, max_size=6))
def test_ktos_baseline_is_never_negative_and_has_no_gradient(ratios: list[float]) -> None:
    z0 = d.kto_baseline(f64(ratios, grad=True))
    assert_same(z0, direct.baseline(ratios))
    assert not z0.requires_grad


def test_accuracy_counts_a_tie_as_one_half() -> None:
    _, metrics = d.pair_loss(
        f64([1, 0, 2]), f64([0, 0, 3]), link=d.reverse_kl, loss=LOSSES["dpo"][0], beta=BETA, total=3
    )
    assert_same(metrics["accuracy"], 0.5)


@pytest.mark.parametrize("link", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_a_policy_that_equals_its_reference_has_loss_ln_2_and_reward_0(link: str) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    loss, metrics = d.pair_loss(zero, zero, link=LINKS[link], loss=partial(d.logistic, beta=BETA), beta=BETA, total=3)
    assert_same(loss, math.log(2))
    assert_same(metrics["chosen_reward"], 0.0)


@quick
@given(h=st.floats(-60, 60), beta=st.floats(0.05, 2))
def test_dpos_gradient_is_minus_beta_times_the_probability_of_being_wrong(h: float, beta: float) -> None:
    x = f64([h], grad=True)
    d.logistic(x, beta=beta).backward()
    assert x.grad is not None
    assert_same(x.grad, [-beta * direct.sigmoid(-beta * h)])


@quick
@given(h=st.floats(-20, 20), eps=st.floats(0, 0.45))
def test_robust_dpo_under_flipped_labels_is_dpo_on_average(h: float, eps: float) -> None:
    right, flipped = (d.robust(f64([sign * h]), beta=BETA, smoothing=eps) for sign in (1, -1))
    assert_same((1 - eps) * right + eps * flipped, d.logistic(f64([h]), beta=BETA))


@quick
@given(x=st.floats(-3, 3))
def test_the_alpha_divergence_lies_between_the_two_kl(x: float) -> None:
    assert_same(d.alpha_divergence(f64([x]), alpha=1e-9), [x], 1e-6)
    assert_same(d.alpha_divergence(f64([x]), alpha=1.0), d.forward_kl(f64([x])))


@pytest.mark.parametrize("link", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
@pytest.mark.parametrize("far", [300.0, -300.0])
def test_loss_and_gradient_stay_finite_in_float32_however_far_the_policy_is(link: str, far: float) -> None:
    chosen, rejected = torch.tensor([far], requires_grad=True), torch.tensor([-far], requires_grad=True)
    loss, _ = d.pair_loss(chosen, rejected, link=LINKS[link], loss=partial(d.logistic, beta=0.1), beta=0.1, total=1)
    loss.backward()
    assert loss.isfinite()
    for x in (chosen, rejected):
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("x", [-1e-7, -1e-12, 0.0, -1e-3, -math.log(2), -30.0, -200.0])
def test_log_odds_survive_a_probability_of_one(x: float) -> None:
    logprob = torch.tensor([x], requires_grad=True)
    odds = d.log_odds(logprob)
    odds.backward()
    assert logprob.grad is not None
    assert odds.isfinite()
    assert logprob.grad.isfinite().all()
    if x < -1e-6:
        assert_same(odds.detach(), [x - math.log(-math.expm1(x))], 1e-5)
        assert_same(logprob.grad, [1 / -math.expm1(x)], 1e-4)  # d/dx log(p/(1 − p)) = 1/(1 − p)


def test_each_loss_by_hand() -> None:
    """Log-ratios 1 and −1, so h = 2; β = ½ makes z = 1."""
    h = f64([2.0])
    assert_same(d.logistic(h, beta=0.5), [0.3132617], 1e-6)  # log(1 + e⁻¹)
    assert_same(d.logistic(h, beta=0.5, margin=1.0), [0.6931472], 1e-6)  # z = 0
    assert_same(d.logistic(h, beta=0.5, smoothing=0.1), [0.4132617], 1e-6)  # 0.9·0.3132617 + 0.1·1.3132617
    assert_same(d.robust(h, beta=0.5, smoothing=0.1), [0.1882617], 1e-6)  # (0.9·0.3132617 − 0.1·1.3132617)/0.8
    assert_same(d.squared(h, beta=0.5), [1.0])  # (2 − 1)²
    assert_same(d.hinge(h, beta=0.25), [0.5])  # 1 − ½
    assert_same(d.forward_kl(f64([1.0, -1.0])), [0.6321206, -1.7182818], 1e-6)  # 1 − e⁻¹, 1 − e
    assert_same(d.jensen_shannon(f64([1.0, -1.0])), [0.3798855, -0.6201145], 1e-6)  # log 2 − log(1 + e^∓1)
    assert_same(d.log_odds(f64([math.log(0.75)])), [math.log(3)])
    good = torch.tensor([True, False])
    assert_same(d.kto_loss(f64([2.0, 2.0]), good, baseline=0.0, beta=0.5, total=2)[0], 0.5)  # (σ(−1) + σ(1))/2


@pytest.mark.parametrize("split", [(6,), (2, 4), (1,) * 6])
def test_micro_batches_add_up(split: tuple[int, ...]) -> None:
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good = torch.tensor([True, False, True, True, False, False])
    pair = partial(d.pair_loss, link=d.jensen_shannon, loss=partial(d.logistic, beta=BETA), beta=BETA, total=6)
    verdict = partial(d.kto_loss, baseline=0.1, beta=BETA, desirable_weight=1.3, total=6)
    for function, columns in ((pair, (chosen, rejected)), (verdict, (chosen, good))):
        whole, metrics = function(*columns)
        parts = [function(*part) for part in zip(*(column.split(split) for column in columns), strict=True)]
        assert_same(torch.stack([loss for loss, _ in parts]).sum(), whole)
        for name, value in metrics.items():
            assert_same(torch.stack([measured[name] for _, measured in parts]).sum(), value)


@pytest.mark.parametrize("link", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha", "log_odds"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(link: str, loss: str) -> None:
    x = torch.tensor([[-0.5, -2.0], [-1.5, -0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: d.pair_loss(x[0], x[1], link=LINKS[link], loss=LOSSES[loss][0], beta=BETA, total=2)[0], (x,)
    )


def minimised(loss: PairLoss, share: Tensor) -> Tensor:
    """h of a tabular policy over three answers to one prompt, trained to the end on every pair: [3, 3].

    `share[a, b]` is the share of comparisons of a and b that a wins; the reference is not uniform.
    """
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    first, second = torch.triu_indices(3, 3, offset=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        x = logits.log_softmax(0) - reference
        h = x[first] - x[second]
        total = (share[first, second] * loss(h) + share[second, first] * loss(-h)).sum()
        total.backward()
        return total

    optimizer.step(closure)
    x = (logits.log_softmax(0) - reference).detach()
    return x[:, None] - x[None, :]


def test_dpo_ends_where_the_reward_difference_is_the_log_odds_of_winning() -> None:
    score = f64([1.0, 0.2, -0.5])  # Bradley–Terry, so all pairs can be met at once
    share = torch.sigmoid(score[:, None] - score[None, :])
    h = minimised(partial(d.logistic, beta=BETA), share)
    assert_same(h, torch.logit(share) / BETA, 1e-6)


def test_dpos_optimum_is_the_policy_that_the_rewards_ask_for() -> None:
    """π* ∝ π_ref·e^{r/β}: the pairs' optimum is the one of reward minus β·KL."""
    score = f64([1.0, 0.2, -0.5])
    h = minimised(partial(d.logistic, beta=BETA), torch.sigmoid(score[:, None] - score[None, :]))
    assert_same(BETA * h, score[:, None] - score[None, :], 1e-6)


def test_robust_dpo_finds_the_same_optimum_from_flipped_labels() -> None:
    score = f64([1.0, 0.2, -0.5])
    clean = torch.sigmoid(score[:, None] - score[None, :])
    flipped = (1 - EPS) * clean + EPS * clean.T
    assert_same(minimised(partial(d.robust, beta=BETA, smoothing=EPS), flipped), torch.logit(clean) / BETA, 1e-5)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (partial(d.logistic, beta=BETA, smoothing=EPS), math.log((1 - EPS) / EPS) / BETA),
        (partial(d.squared, beta=BETA), 1 / (2 * BETA)),
    ],
    ids=["cdpo", "ipo"],
)
def test_cdpo_and_ipo_stop_at_a_finite_difference_where_every_label_agrees(loss: PairLoss, target: float) -> None:
    h = f64([0.0], grad=True)
    optimizer = torch.optim.LBFGS(
        [h], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(h).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert_same(h.detach(), [target], 1e-6)


def test_ipo_ends_at_the_share_of_wins() -> None:
    """h* = (2P − 1)/(2β) where the shares are additive in the answers."""
    position = f64([0.4, 0.1, -0.3])
    share = 0.5 + 0.5 * (position[:, None] - position[None, :])
    assert_same(minimised(partial(d.squared, beta=BETA), share), (2 * share - 1) / (2 * BETA), 1e-6)
