"""Probes of policies: their log-probabilities, beside whatever should give the same, their adapters and tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay import rng
from assay.algorithms.kl import k3
from assay.data.pack import collate
from assay.data.render import Row
from assay.doctor.data import evenly
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.kl import KL_BEFORE_TRAINING
from assay.doctor.probing import ROUNDED, exact, not_finite_in, unchanged
from assay.doctor.reward import NOT_FINITE
from assay.doctor.updates import SAMPLER_DIFFERS, SAMPLER_KL
from assay.models.policy import Policy
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.types import Prompt

TOKENIZER_MISMATCH = Mode(
    16,
    "tokenizer-mismatch",
    "sft",
    "Tokens in the data whose embeddings the model has never learnt, or that it reads as others",
    "The tokenizer is not the one that the model was trained with, or tokens were added and their rows never trained.",
    "Load the tokenizer from the model's own folder; give new tokens the mean of the old rows and train them.",
    ("not-finite", "eos-not-learned", "double-bos"),
)
FROZEN_BLOCKS = Mode(
    27,
    "frozen-adapter-blocks",
    "policy",
    "Some adapter blocks have no gradient",
    "Activations are recomputed by re-entrant checkpointing: a block whose input needs no gradient then gives none.",
    "Use `use_reentrant=False`, or call `model.enable_input_require_grads()` before training.",
    ("nothing-moves", "stuck-at-ln2"),
)
MASK_IGNORED = Mode(
    31,
    "mask-ignored",
    "policy",
    "Log-probabilities change when a row is padded",
    "The attention mask or the positions do not reach the model, so that pads are read as text.",
    "Pass `attention_mask` and `position_ids` (cumulated mask − 1) in every forward pass.",
    ("negative-kl", "kl-before-training", "ratio-not-one", "sampler-differs", "padding-changes-score"),
)
WRONG_REFERENCE = Mode(
    47,
    "wrong-reference",
    "direct",
    "The reference is not the SFT model",
    "The reference is the bare base, or another adapter: turning the adapter off took the SFT away as well.",
    "Merge the SFT adapter before a new one is added, or load the reference from the SFT folder.",
    ("kl-before-training", "negative-kl", "kl-blow-up"),
)

TOKEN_TOLERANCE = 1e-3  # nats a token; fp32 differs by 1e-5
UNTRAINED = 1e-2  # of the median norm of embeddings
OUTLIER = 20.0  # times the median norm
WORDS_KNOWN = 0.72  # AUC: 0.85 for the embedded model and its tokenizer, 0.63 at most for four others with it
TOKENS, FEWEST_WORDS = 8192, 50  # of the vocabulary that are looked at, and of each of two kinds
BEGINS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write the blank before a word
ANSWER = 16  # tokens that the sampler is asked for


@dataclass(frozen=True)
class PolicyProbe:
    """A policy, a few rows, and whatever stands beside it."""

    policy: Policy
    rows: Sequence[Row]
    reference: Policy | None = None
    sft: Policy | None = None
    """The model that the policy started from, loaded on its own."""
    engine: Engine | None = None
    prompts: Sequence[Prompt] = ()
    fresh: bool = True
    """Not trained yet: policy and reference are the same."""
    where: str = "policy"
    kind: str = "policy-model"


def token_tolerance(policy: Policy) -> float:
    return TOKEN_TOLERANCE * (1.0 if exact(policy.backbone) else ROUNDED)


def logprobs(policy: Policy, rows: Sequence[Row], *, pads: str = "", gradient: bool = False) -> Tensor:
    """Log-probabilities [labels] of all rows in one batch; with pads on the "left" or "right" where that is said."""
    if unknown_ids(policy, rows):
        raise Missing("the rows hold ids that the model has no embedding for")
    batch = collate(rows, policy.pad_id, side="left" if pads == "left" else "right")
    with torch.set_grad_enabled(gradient):
        scored = policy.logprobs((replace(batch, rows=None) if pads else batch).to(policy.backbone.device))
    return scored.logprobs_BR[scored.mask_BR].float().cpu()


def unknown_ids(policy: Policy, rows: Sequence[Row]) -> list[int]:
    """Ids that the model has no embedding for."""
    known = len(policy.model.get_input_embeddings().get_parameter("weight"))
    return sorted({i for row in rows for i in row.ids if i >= known})


def apart(one: Policy, other: Policy, rows: Sequence[Row]) -> float:
    """Mean absolute difference of two policies' log-probabilities, nats a token."""
    return (logprobs(one, rows) - logprobs(other, rows)).abs().mean().item()


@detects(MASK_IGNORED, kinds=("policy-model",))
def mask_ignored(probe: PolicyProbe) -> Iterator[Finding]:
    """Rows of unequal length, padded on either side, against each alone."""
    policy, rows = probe.policy, probe.rows
    if len({len(row.ids) for row in rows}) < 2:
        raise Missing("rows of unequal length are needed: none is padded")
    if not same_twice(policy, rows):
        raise Missing("the policy gives other probabilities every time")
    alone = torch.cat([logprobs(policy, [row]) for row in rows])
    by_side = {side: (logprobs(policy, rows, pads=side) - alone).abs().mean().item() for side in ("left", "right")}
    side = max(by_side, key=by_side.__getitem__)
    if by_side[side] > token_tolerance(policy):
        yield Finding(
            MASK_IGNORED,
            probe.where,
            f"with pads on the {side}, log-probabilities change by {by_side[side]:.2g} nats a token "
            f"({len(alone)} tokens in {len(rows)} rows)",
            sureness="certain",
        )


def same_twice(policy: Policy, rows: Sequence[Row]) -> bool:
    """Whether the policy gives the same numbers again; with dropout it does not."""
    return apart(policy, policy, rows) < TOKEN_TOLERANCE


@detects(KL_BEFORE_TRAINING, kinds=("policy-model",))
def kl_before_training(probe: PolicyProbe) -> Iterator[Finding]:
    """A policy that has not been trained is its reference."""
    if probe.reference is None or not probe.fresh:
        raise Missing("only before its first step, and where there is a reference, has a policy to be the same")
    difference = apart(probe.policy, probe.reference, probe.rows)
    if difference > token_tolerance(probe.policy):
        noisy = not same_twice(probe.policy, probe.rows)
        yield Finding(
            KL_BEFORE_TRAINING,
            probe.where,
            f"log-probabilities of policy and reference differ by {difference:.2g} nats a token before any training"
            + ("; the policy scored twice differs as well" if noisy else ""),
            sureness="certain",
            cause="Dropout is on in the policy." if noisy else "",
            cure="Turn dropout off: `lora.dropout: 0.0`, and `model.eval()`." if noisy else "",
        )


@detects(WRONG_REFERENCE, kinds=("policy-model",))
def wrong_reference(probe: PolicyProbe) -> Iterator[Finding]:
    """The reference against the SFT model, loaded on its own."""
    if probe.reference is None or probe.sft is None:
        raise Missing("there is no reference that was loaded in another way than the SFT model")
    difference = apart(probe.reference, probe.sft, probe.rows)
    if difference > token_tolerance(probe.sft) and same_twice(probe.reference, probe.rows):
        yield Finding(
            WRONG_REFERENCE,
            probe.where,
            f"log-probabilities of reference and SFT model differ by {difference:.2g} nats a token",
            sureness="certain",
        )


@detects(SAMPLER_DIFFERS, kinds=("policy-model",))
def sampler_differs(probe: PolicyProbe) -> Iterator[Finding]:
    """A few answers, and their log-probabilities where they were drawn and where they are learnt from."""
    if probe.engine is None or not probe.prompts:
        raise Missing("a sampler and prompts are needed")
    policy, params = probe.policy, SamplingParams(max_new_tokens=ANSWER)
    if not same_twice(policy, probe.rows):
        raise Missing("the policy gives other probabilities every time")
    drawn = probe.engine.generate(probe.prompts, params, seeds=[rng.derive(0, i) for i in range(len(probe.prompts))])
    sampled = torch.tensor([x for answer in drawn for x in answer.logprobs])
    trained = logprobs(policy, [answer.row for answer in drawn])
    kl = k3(sampled, trained).mean().item()
    if kl > SAMPLER_KL:
        difference = sampled - trained
        yield Finding(
            SAMPLER_DIFFERS,
            probe.where,
            f"KL(sampler‖trainer) {kl:.2g} nats a token over {len(sampled)} tokens; mean log-ratio "
            f"{difference.mean():+.2g} ± {difference.std() / math.sqrt(len(difference)):.1g}",
            sureness="certain",
        )


@detects(FROZEN_BLOCKS, kinds=("policy-model",))
def frozen_blocks(probe: PolicyProbe) -> Iterator[Finding]:
    """Every B of an adapter has a gradient from its first step on (A has none while B is 0)."""
    policy = probe.policy
    parameters = policy.parameters_trained()
    ups = {name: p for name, p in parameters.items() if ".lora_B." in name}
    if not ups:
        raise Missing("the policy has no adapter that trains")
    with unchanged(parameters):
        loss = -logprobs(policy, probe.rows, gradient=True).sum()
        if loss.requires_grad:
            loss.backward()
        still = [name for name, p in ups.items() if p.grad is None or not p.grad.any()]
    if still:
        yield Finding(
            FROZEN_BLOCKS,
            probe.where,
            f"{len(still)} of {len(ups)} adapter blocks have no gradient, {still[0].split('.lora_B')[0]} first",
            sureness="certain",
        )


@detects(TOKENIZER_MISMATCH, kinds=("policy-model",))
def tokenizer_mismatch(probe: PolicyProbe) -> Iterator[Finding]:
    """Embeddings of the tokens that occur; and texts less likely than by a guess, which the embeddings explain or not.

    A model that is sure of itself finds unfamiliar text unlikelier than a guess, under right ids as under wrong ones.
    What its embeddings know of the tokens is the same whatever the text is about.
    """
    policy = probe.policy
    weight = policy.model.get_input_embeddings().get_parameter("weight")
    if beyond := unknown_ids(policy, probe.rows):
        seen = f"token {beyond[0]} occurs, and the model has {len(weight)} embeddings ({len(beyond)} such tokens)"
        yield Finding(TOKENIZER_MISMATCH, probe.where, seen, sureness="certain")
        return
    used = sorted({i for row in probe.rows for i in row.ids})
    norms = weight.detach().float().norm(dim=1).cpu()
    median = norms.median().item()
    odd = [i for i in used if not UNTRAINED * median < norms[i] < OUTLIER * median]
    if odd:
        names = ", ".join(f"{policy.tokenizer.convert_ids_to_tokens(i)} ({norms[i]:.2g})" for i in odd[:3])
        yield Finding(
            TOKENIZER_MISMATCH,
            probe.where,
            f"{len(odd)} of {len(used)} tokens in use have odd embeddings: {names}; the median norm is {median:.2g}",
            sureness="likely",
            cause="Their rows were added and never trained.",
        )
        return
    found = logprobs(policy, probe.rows)
    guess = -math.log(len(weight))
    error = (found.std() / math.sqrt(len(found))).item()
    if found.mean() + 3 * error < guess - 1 and (known := words_known(policy)) < WORDS_KNOWN:
        yield Finding(
            TOKENIZER_MISMATCH,
            probe.where,
            f"{-found.mean():.1f} ± {error:.1f} nats a token, and a blind guess among {len(weight)} has {-guess:.1f}; "
            f"its embeddings tell tokens that begin a word from others with an AUC of {known:.2f} (a coin: 0.5)",
            cause="The model reads these ids as other words than the tokenizer wrote.",
        )


def words_known(policy: Policy) -> float:
    """How well a line through the embeddings tells tokens that begin a word from the others: AUC on held-out tokens."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weight = policy.model.get_input_embeddings().get_parameter("weight").detach()
    ids = evenly(range(min(len(weight), len(policy.tokenizer))), TOKENS)
    names = policy.tokenizer.convert_ids_to_tokens(list(ids))
    begins = [name.startswith(BEGINS) for name in names]
    if not any(begins):  # WordPiece marks the tokens that go on instead
        begins = [not name.startswith("##") for name in names]
    if min(sum(begins), len(begins) - sum(begins)) < FEWEST_WORDS:
        raise Missing("the tokenizer does not say which tokens begin a word, so unfamiliar text looks like wrong ids")
    line = make_pipeline(StandardScaler(), RidgeClassifier(alpha=len(ids) / 2))
    return float(cross_val_score(line, weight[list(ids)].float().cpu().numpy(), begins, scoring="roc_auc").mean())


@detects(NOT_FINITE, kinds=("policy-model",))
def policy_not_finite(probe: PolicyProbe) -> Iterator[Finding]:
    """The first number that is not finite, on the way to log-probabilities."""
    yield from not_finite_in(probe.where, probe.policy.model, lambda: logprobs(probe.policy, probe.rows))
