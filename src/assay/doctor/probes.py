"""Active probes: a model that is there is asked a few questions whose answers are known.

    RewardProbe     score twice, alone and padded, after a reload; learn 32 pairs by heart
    PolicyProbe     padded and alone, reference and SFT model, sampler and trainer, adapters, tokenizer
    LabelProbe      learn labels that mean nothing: nobody can know those of held-out pairs
    StepProbe       the gradient of one optimizer step, split in two ways
    PromptBatch     what generation is about to be given

All but the last run the model; none changes it. N rows, T tokens, P pairs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from assay import rng
from assay.algorithms.kl import k3
from assay.algorithms.preference_loss import bradley_terry
from assay.data.pack import collate
from assay.data.render import Row
from assay.doctor.data import at_least, percent
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.labels import TOO_GOOD
from assay.doctor.policy import KL_BEFORE_TRAINING, SAMPLER_DIFFERS, SAMPLER_KL
from assay.doctor.reward import CONSTANT, CONSTANT_SCORES, FLUCTUATING, NOT_FINITE, REWARD_AT_CHANCE, SURE
from assay.errors import ModelError
from assay.models.backbone import Backbone
from assay.models.load_reward import load_reward_model
from assay.models.policy import Policy
from assay.models.reward_model import RewardModel
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.statistics import proportion
from assay.types import Preference, Prompt

ACCUMULATION_BIAS = Mode(
    15,
    "accumulation-bias",
    "sft",
    "The gradient depends on how a batch is split",
    "Each micro-batch divides by its own number of tokens, and a mean of means weighs short rows more than long ones.",
    "Divide every micro-batch by the number of label tokens of the whole optimizer step.",
)
TOKENIZER_MISMATCH = Mode(
    16,
    "tokenizer-mismatch",
    "sft",
    "Tokens in the data whose embeddings the model has never learnt, or that it reads as others",
    "The tokenizer is not the one that the model was trained with, or tokens were added and their rows never trained.",
    "Load the tokenizer from the model's own folder; give new tokens the mean of the old rows and train them.",
    ("not-finite", "eos-not-learned", "double-bos"),
)
PADDING_CHANGES_SCORE = Mode(
    20,
    "padding-changes-score",
    "reward",
    "A response scores differently beside longer ones",
    "The score is read at a wrong place (such as the token before the first pad), or pads are attended to.",
    "Read the score at the rightmost token whose attention mask is 1, and pass attention mask and positions.",
    ("fluctuating-accuracy", "head-lost", "reward-at-chance", "constant-scores"),
)
HEAD_LOST = Mode(
    21,
    "head-lost",
    "reward",
    "A reward model scores differently after it was saved and loaded",
    "The score head, or part of the model, is not in its folder and is drawn anew at every load.",
    "Save the head with the model (`modules_to_save: [score]` in peft) and refuse to load without it.",
    ("reward-at-chance", "fluctuating-accuracy"),
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
RIGHT_PADDED = Mode(
    32,
    "right-padded-prompts",
    "policy",
    "Prompts are padded on the right before generation",
    "A causal model goes on from the last column, and there it finds pads instead of the end of the prompt.",
    'Pad prompts on the left: `tokenizer.padding_side = "left"`.',
    ("repetition", "empty-answers", "never-stops", "negative-kl", "sampler-differs"),
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

SCORE_TOLERANCE = 1e-3  # of the scores' standard deviation; fp32 differs by 1e-6
TOKEN_TOLERANCE = 1e-3  # nats a token; fp32 differs by 1e-5
ROUNDED = 50.0  # times that, where products are computed in bf16 (8 bits: 2⁻⁸ of a logit of about 10)
SPLIT_TOLERANCE = 1e-4  # of the gradient's norm; the catalogue's
BY_HEART = 32  # pairs
TRIES = 60  # optimizer steps; a healthy tiny model needs 10
LOTS = 240  # steps: labels without sense take longer
LEARNT = 26  # of 32 right: p < 0.001 for a coin
UNTRAINED = 1e-2  # of the median norm of embeddings
OUTLIER = 20.0  # times the median norm
ANSWER = 16  # tokens that the sampler is asked for


@dataclass(frozen=True)
class RewardProbe:
    """A reward model, and a few pairs to ask it about."""

    model: RewardModel
    pairs: Sequence[Preference]
    saved: Path | None = None
    """Where it was saved."""
    where: str = "reward"
    kind: str = "reward-model"

    @property
    def rows(self) -> list[Row]:
        """Chosen and rejected of every pair that fits, one after the other."""
        found = [[self.model.row(pair.prompt, text) for text in (pair.chosen, pair.rejected)] for pair in self.pairs]
        rows = [row for pair in found if all(pair) for row in pair if row]
        if not rows:
            raise Missing("no pair to ask the reward model about")
        return rows


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


@dataclass(frozen=True)
class StepProbe:
    """One optimizer step's gradient as the trainer computes it, for any size of micro-batch (None: all at once)."""

    gradient: Callable[[int | None], Any]
    parameters: Mapping[str, Parameter]
    where: str = "sft"
    kind: str = "step"


@dataclass(frozen=True)
class LabelProbe:
    """What is learnt from, what is held out, and a model to learn; nobody should know the labels of the latter."""

    model: RewardModel
    train: Sequence[Preference]
    held_out: Sequence[Preference]
    where: str = "data"
    kind: str = "labels"


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as they are handed to generation, [B, T], with the policy that goes on from them where it is there."""

    input_ids: Tensor
    attention_mask: Tensor
    policy: Policy | None = None
    where: str = "policy"
    kind: str = "prompts"


def exact(backbone: Backbone) -> bool:
    """Whether products are computed in fp32."""
    return backbone.model.dtype == torch.float32 and isinstance(backbone.autocast(), nullcontext)


def token_tolerance(policy: Policy) -> float:
    return TOKEN_TOLERANCE * (1.0 if exact(policy.backbone) else ROUNDED)


@torch.no_grad()
def scores(model: RewardModel, rows: Sequence[Row], *, padded: bool = False) -> Tensor:
    """[N]: all rows in one batch as everybody scores them, or with pads between them."""
    batch = collate(rows, model.pad_id).to(model.backbone.device)
    return model.score(replace(batch, rows=None) if padded else batch).float().cpu()


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


@detects(FLUCTUATING, kinds=("reward-model",))
def scored_twice(probe: RewardProbe) -> Iterator[Finding]:
    """The same texts, twice."""
    rows = probe.rows
    first, second = scores(probe.model, rows), scores(probe.model, rows)
    difference = (first - second).abs().max().item()
    if difference > SCORE_TOLERANCE * first.std().item():
        yield Finding(
            FLUCTUATING,
            probe.where,
            f"the same {len(rows)} responses scored twice differ by up to {difference:.2g} (their standard deviation: "
            f"{first.std():.2g})",
            sureness="certain",
            cause="Dropout is on while the model is measured.",
            cure="Call `model.eval()` before scoring, or set dropout to 0.",
        )


@detects(PADDING_CHANGES_SCORE, kinds=("reward-model",))
def padded_and_alone(probe: RewardProbe) -> Iterator[Finding]:
    """Every response in a padded batch, in a batch as usual, and alone."""
    model, rows = probe.model, probe.rows
    alone = torch.cat([scores(model, [row]) for row in rows])
    worst = max((scores(model, rows, padded=pads) - alone).abs().max().item() for pads in (True, False))
    tolerance = SCORE_TOLERANCE * (1.0 if exact(model.backbone) else ROUNDED)
    if worst > tolerance * alone.std().item() and repeats(model, rows):
        yield Finding(
            PADDING_CHANGES_SCORE,
            probe.where,
            f"in a batch a score changes by up to {worst:.2g}; the scores' standard deviation is {alone.std():.2g} "
            f"({len(rows)} responses)",
            sureness="certain",
        )


def repeats(model: RewardModel, rows: Sequence[Row]) -> bool:
    """Whether the same question has the same answer twice; if not, nothing can be told from a difference."""
    first, second = scores(model, rows), scores(model, rows)
    return (first - second).abs().max().item() <= SCORE_TOLERANCE * first.std().item()


@detects(HEAD_LOST, kinds=("reward-model",))
def reloaded(probe: RewardProbe) -> Iterator[Finding]:
    """The model as its folder gives it, against the one in memory."""
    model, rows = probe.model, probe.rows
    with folder_of(probe) as folder:
        try:
            again = load_reward_model(
                folder,
                trainable=False,
                template=model.template,
                max_length=model.renderer.max_length,
                device=model.backbone.device,
            )
        except ModelError as error:
            yield Finding(HEAD_LOST, probe.where, str(error).splitlines()[0], sureness="certain")
            return
        before, after = scores(model, rows), scores(again, rows)
    difference = (before - after).abs().max().item()
    if difference > SCORE_TOLERANCE * ROUNDED * before.std().item() and repeats(model, rows):
        yield Finding(
            HEAD_LOST,
            probe.where,
            f"scores change by up to {difference:.2g} (standard deviation {before.std():.2g}); correlation of old and "
            f"new {torch.corrcoef(torch.stack([before, after]))[0, 1]:.2f}",
            sureness="certain",
        )


@contextmanager
def folder_of(probe: RewardProbe) -> Iterator[Path]:
    """Where the model was saved, or a place where it is saved for this."""
    if probe.saved is not None:
        yield probe.saved
        return
    with tempfile.TemporaryDirectory() as folder:
        probe.model.save(Path(folder))
        yield Path(folder)


@detects(CONSTANT_SCORES, kinds=("reward-model",))
def scores_of_a_pair(probe: RewardProbe) -> Iterator[Finding]:
    """Different responses to one prompt."""
    rows = probe.rows
    found = scores(probe.model, rows)
    differ = [one.ids != other.ids for one, other in zip(rows[0::2], rows[1::2], strict=True)]
    gaps = (found[0::2] - found[1::2])[differ]
    if not len(gaps):
        raise Missing("no pair of different responses")
    if gaps.abs().max() < CONSTANT:
        yield Finding(
            CONSTANT_SCORES,
            probe.where,
            f"the responses of {len(gaps)} different pairs score alike to {gaps.abs().max():.1e}; over all prompts "
            f"the standard deviation is {found.std():.1e}",
            sureness="certain",
        )


@detects(REWARD_AT_CHANCE, kinds=("reward-model",))
def by_heart(probe: RewardProbe) -> Iterator[Finding]:
    """Can it learn 32 pairs? If not, the fault is in code; else it is in data or learning rate."""
    model = probe.model
    trained = model.parameters_trained()
    if not trained:
        raise Missing("the reward model was loaded without anything to train")
    rows = probe.rows[: 2 * BY_HEART]
    pairs = len(rows) // 2
    with unchanged(trained):
        loss = learn(model, rows)
        found = scores(model, rows)
    right = int((found[0::2] > found[1::2]).sum())
    if right < LEARNT / BY_HEART * pairs:
        yield Finding(
            REWARD_AT_CHANCE,
            probe.where,
            f"after {TRIES} steps on {pairs} pairs it has {right} of them right, loss {loss:.3f}",
            sureness="certain",
            cause="It cannot learn even a few pairs by heart: the fault is in the code, not in data or learning rate; "
            "no gradient reaches the weights, or the score does not depend on the response.",
            cure="Check that head and adapters require gradients and that the score is read at the last token.",
        )


def learn(model: RewardModel, rows: Sequence[Row], steps: int = TRIES) -> float:
    """Steps on all pairs at once until each is right; rows are chosen, rejected, chosen … Returns the last loss."""
    batch = collate([*rows[0::2], *rows[1::2]], model.pad_id).to(model.backbone.device)
    # Adam moves every weight by its rate, so that a state moves by rate · width.
    optimizer = torch.optim.Adam(model.parameters_trained().values(), lr=0.1 / model.backbone.width)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen, rejected = model.score(batch).chunk(2)
        loss, _ = bradley_terry(chosen, rejected)
        if not loss.requires_grad or bool((chosen > rejected).all()):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


@detects(TOO_GOOD, kinds=("labels",))
def labels_by_lot(probe: LabelProbe) -> Iterator[Finding]:
    """Answers get a worth by lot, which decides every pair: only who has seen an answer can know its worth."""
    rows = RewardProbe(probe.model, [drawn_by_lot(pair) for pair in probe.train]).rows
    held = RewardProbe(probe.model, [drawn_by_lot(pair) for pair in probe.held_out]).rows
    with unchanged(probe.model.parameters_trained()):
        learn(probe.model, rows, LOTS)
        found = scores(probe.model, held)
    right = (found[0::2] > found[1::2]).double().numpy()
    prompts = [tuple(row.ids[: row.prompt_length]) for row in held[0::2]]
    known = proportion(right, groups=prompts, confidence=1 - 2 * SURE)
    if at_least(known, 0.5):
        yield Finding(
            TOO_GOOD,
            probe.where,
            f"after learning {len(rows) // 2} pairs whose labels were drawn by lot, {right.sum():.0f} of {len(right)} "
            f"lots of held-out pairs are known ({percent(known)})",
            sureness="certain",
            cause="Held-out pairs, or copies of them, are among the pairs that are learnt from.",
        )


def drawn_by_lot(pair: Preference) -> Preference:
    """The same two answers in the order of their lots: one lot an answer, or three might beat each other in a ring."""
    first, second = sorted(
        (pair.chosen, pair.rejected), key=lambda answer: rng.derive(0, "lot", pair.prompt.text, answer)
    )
    return Preference(pair.prompt, first, second)


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
        raise Missing("a reference, and a policy before its first step, are needed")
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
        raise Missing("reference and SFT model are needed")
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
    """Embeddings of the tokens that occur, and how likely the texts are: less than by a guess means wrong ids."""
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
    if found.mean() + 3 * error < guess - 1:
        yield Finding(
            TOKENIZER_MISMATCH,
            probe.where,
            f"{-found.mean():.1f} ± {error:.1f} nats a token, where a blind guess among {len(weight)} has {-guess:.1f}",
            cause="The model reads these ids as other words than the tokenizer wrote.",
        )


@detects(NOT_FINITE, kinds=("policy-model",))
def policy_not_finite(probe: PolicyProbe) -> Iterator[Finding]:
    """The first number that is not finite, on the way to log-probabilities."""
    yield from not_finite_in(probe.where, probe.policy.model, lambda: logprobs(probe.policy, probe.rows))


@detects(NOT_FINITE, kinds=("reward-model",))
def reward_not_finite(probe: RewardProbe) -> Iterator[Finding]:
    """The first number that is not finite, on the way to scores."""
    yield from not_finite_in(probe.where, probe.model.backbone.model, lambda: scores(probe.model, probe.rows))


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


@detects(ACCUMULATION_BIAS, kinds=("step",))
def accumulation_bias(probe: StepProbe) -> Iterator[Finding]:
    """The gradient of a whole batch against that of its rows one by one."""
    whole, parts = (gradient(probe, size) for size in (None, 1))
    if whole.norm() == 0:
        raise Missing("the step has no gradient")
    difference = ((whole - parts).norm() / whole.norm()).item()
    if difference > SPLIT_TOLERANCE:
        yield Finding(
            ACCUMULATION_BIAS,
            probe.where,
            f"all rows at once and one by one give gradients that differ by {difference:.1%} of their norm",
            sureness="certain",
        )


def gradient(probe: StepProbe, size: int | None) -> Tensor:
    """All of it, flat."""
    with unchanged(probe.parameters):
        probe.gradient(size)
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in probe.parameters.values()]
    return torch.cat([g.flatten().float().cpu() for g in found])


@detects(RIGHT_PADDED, kinds=("prompts",))
def right_padded(batch: PromptBatch) -> Iterator[Finding]:
    """Whether the last column, from which generation goes on, is a pad."""
    padded = batch.attention_mask[:, -1] == 0
    if padded.any():
        yield Finding(
            RIGHT_PADDED,
            batch.where,
            f"{int(padded.sum())} of {len(padded)} prompts end in pads" + consequence(batch),
            sureness="certain",
        )


@torch.no_grad()
def consequence(batch: PromptBatch) -> str:
    """How often the most likely next token is another one than after the prompt alone."""
    if batch.policy is None:
        return ""
    model, device = batch.policy.model, batch.policy.backbone.device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    together = model(input_ids=ids, attention_mask=mask).logits[:, -1].argmax(1)
    alone = torch.stack(
        [model(input_ids=row[keep == 1][None]).logits[0, -1].argmax() for row, keep in zip(ids, mask, strict=True)]
    )
    changed = int((together != alone).sum())
    return f"; the likeliest next token is another one after {changed} of them"
