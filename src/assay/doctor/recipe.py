"""What is wrong with a recipe before it runs: what would be refused, settings known to fail, room, roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.probe_policy import TOKENIZER_MISMATCH
from assay.doctor.probe_reward import HEAD_LOST
from assay.doctor.reward import NOT_FINITE
from assay.doctor.tokens import Tokens

FAST, FAR_TOO_FAST = 2.0, 10.0
"""Times the usual rate, or a policy's share of it. The shipped recipes train at up to 1.3 times the one, policies at up
to 0.6 times the other."""
SLOW = 1e-3
"""Share of the usual rate below which a run of ordinary length moves nothing. The slowest of our recipes: 0.01."""
POLICIES, POLICY = ("ppo", "group", "preference"), 0.08
"""Of the usual rate, for a policy that learns from preferences or from its own samples, where nothing but the step
holds it near its start. DPO of the embedded model is well up to 0.22 times the usual rate with adapters and 0.09 times
with all weights; at 0.88 times both have KLs of 26 to 330 nats and have gained nothing or lost everything."""
ADAPTERS = 10.0
"""Adapters take about ten times the rate of all weights (Schulman et al. 2025, "LoRA Without Regret")."""

CANNOT_RUN = Mode(
    51,
    "cannot-run",
    "machine",
    "The run would be refused",
    "Settings, data, models and machine do not fit together, or a setting has a value that means nothing.",
    "Mend what is named: a setting, a path, or what is missing on this machine.",
)
OUT_OF_MEMORY = Mode(
    52,
    "out-of-memory",
    "machine",
    "A stage needs more memory than there is",
    "Weights, the optimizer's moments and the activations of a micro-batch are together larger than the memory.",
    "Set micro_batch_size, then lora, then gradient_checkpointing, then a smaller max_length.",
)
DISK_FULL = Mode(
    53,
    "disk-full",
    "machine",
    "The disk has no room for the run",
    "Every stage leaves a model, and while it trains a checkpoint with the optimizer's moments.",
    "Free some space, or write elsewhere: runs_dir=…",
)
LEARNING_RATE = Mode(
    54,
    "learning-rate-out-of-range",
    "machine",
    "A learning rate far from any that is known to work",
    "A rate that is too high destroys what the model knows; one that is too low moves nothing in the steps there are.",
    "Take a rate near the one that is named, or train on a small share of the data with a few rates first.",
    ("kl-blow-up", "ratio-spikes", "not-finite", "overfitting", "nothing-moves", "reward-at-chance", "stuck-at-ln2"),
)
NO_ANCHOR = Mode(
    55,
    "no-anchor",
    "policy",
    "Nothing holds the policy near the model it started from",
    "Without a KL penalty the policy goes wherever the reward model is wrong in its favour.",
    "Give the penalty a weight: kl_coef, or kl_target, by which it adapts.",
    ("kl-blow-up", "reward-hacking", "repetition", "length-growth", "entropy-out-of-bounds"),
)
STEPS_OF_NOISE = Mode(
    56,
    "steps-of-noise",
    "machine",
    "An optimizer step sees a single example",
    "One example says little about the gradient, and its advantage cannot be told from chance.",
    "Raise batch_size; micro_batch_size keeps the memory as it is.",
    ("fluctuating-accuracy", "ratio-spikes", "bad-critic"),
)


@dataclass(frozen=True)
class Refusals:
    """What an attempt to run would be refused for: what, how to fix it, for each."""

    where: str
    faults: Sequence[tuple[str, str]]
    kind: str = "refusals"


@dataclass(frozen=True)
class Planned:
    """The settings of a stage that is still to run, and the size of its model."""

    kind: str
    where: str
    config: Mapping[str, Any]
    parameters: int | None
    """None where the model is not here."""

    @property
    def learning_rate(self) -> float | None:
        """None for a stage that trains nothing."""
        idle = self.config.get("trained") or (self.config.get("rounds", 1) == 0 and self.kind == "bestof")
        return None if idle else self.config.get("optim", {}).get("learning_rate")


@dataclass(frozen=True)
class Memory:
    """What a stage will need, what the machine has, and what of it is free now; MB."""

    where: str
    needed_mb: float
    there_mb: float
    free_mb: float
    fits: bool = True
    """Whether what is needed is less than what there is, as nearly as can be known."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which it would fit."""
    kind: str = "memory"


@dataclass(frozen=True)
class Disk:
    """What the stages still to make will write, and what is free; MB."""

    where: str
    needed_mb: float
    free_mb: float
    kind: str = "disk"


@dataclass(frozen=True)
class RewardFolder:
    """A finished reward model that a stage reads: weights of its head that its folder does not hold."""

    where: str
    path: str
    missing: Sequence[str]
    kind: str = "reward-folder"


@dataclass(frozen=True)
class Weights:
    """A model that a stage starts from: weights in its folder that are not finite."""

    where: str
    path: str
    odd: Sequence[str]
    kind: str = "weights"


@dataclass(frozen=True)
class Vocabularies:
    """Tokens and their ids, of roles that must agree about them."""

    where: str
    words: Mapping[str, Mapping[str, int]]
    kind: str = "vocabularies"


@detects(CANNOT_RUN)
def refused(refusals: Refusals) -> Iterator[Finding]:
    """What the schema, the loader or the machine would say no to."""
    for what, hint in refusals.faults:
        yield Finding(CANNOT_RUN, refusals.where, what, sureness="certain", cure=hint[:1].upper() + hint[1:])


def usual_rate(parameters: int) -> float:
    """The peak rate at which GPT-3's models of 125 M to 175 B were pretrained, as a power of their size.

    5e-4 · (125 M / N)^0.32, within 20 % of Brown et al. 2020 (arXiv 2005.14165), table 2.1.
    """
    return 5e-4 * (125e6 / parameters) ** 0.32


def known_rates(parameters: int, kind: str, *, adapters: bool) -> tuple[float, float]:
    """The rate at which such a model learns, and the one that it bears well in a stage of this kind."""
    usual = usual_rate(parameters) * (ADAPTERS if adapters else 1)
    return usual, usual * (POLICY if kind in POLICIES else 1)


@detects(LEARNING_RATE)
def out_of_range(planned: Planned) -> Iterator[Finding]:
    """A rate beyond what the model's own pretraining would take, or so small that nothing moves."""
    rate = planned.learning_rate
    if rate is None:
        return
    if planned.parameters is None:
        raise Missing("its model is not here, and the range of rates depends on its size")
    adapters = planned.config.get("lora") is not None
    usual, most = known_rates(planned.parameters, planned.kind, adapters=adapters)
    what = "adapters on " * adapters + f"a model of {planned.parameters / 1e6:,.3g} M parameters"
    said = f"optim.learning_rate is {rate:g}; {what}"
    if rate > FAST * most:
        severity = "red" if rate > FAR_TOO_FAST * most else "amber"
        said += f" bear up to about {most:.1g}" if adapters else f" bears up to about {most:.1g}"
        cause = "Steps of this size destroy what the model knows before they teach it anything."
    elif rate < SLOW * usual:
        severity = "amber"
        said += f" learn at about {most:.1g}" if adapters else f" learns at about {most:.1g}"
        cause = "In a run of ordinary length such steps move nothing."
    else:
        return
    proposed = float(f"{most / 10:.0e}")
    yield Finding(
        LEARNING_RATE,
        planned.where,
        said,
        severity,
        cause=cause,
        change={"optim.learning_rate": proposed},
    )


@detects(NO_ANCHOR, kinds=("ppo",))
def no_anchor(planned: Planned) -> Iterator[Finding]:
    """PPO against a learned reward without a KL penalty. Group methods that leave it out do so by their name."""
    ends = (planned.config.get("kl_coef"), planned.config.get("kl_final"))
    if ends[0] == 0 and not ends[1]:
        yield Finding(
            NO_ANCHOR,
            planned.where,
            "kl_coef is 0, so the reward is the reward model's score alone",
            severity="amber",
            sureness="possible",
            change={"kl_coef": 0.05},
        )


@detects(STEPS_OF_NOISE)
def steps_of_noise(planned: Planned) -> Iterator[Finding]:
    """Optimizer steps on one row or one episode."""
    if planned.learning_rate is None:
        return
    batch, parts = planned.config["batch_size"], planned.config.get("minibatches", 1)
    if batch // parts <= 1:
        said = f"batch_size is {batch}" + f", in {parts} minibatches" * (parts > 1)
        change = {"batch_size": 32 * parts}
        yield Finding(STEPS_OF_NOISE, planned.where, said, "amber", "possible", change=change)


@detects(OUT_OF_MEMORY)
def out_of_memory(memory: Memory) -> Iterator[Finding]:
    """More than the machine has is certain to fail; more than is free now will, unless somebody makes room."""
    need = f"{memory.where} would need about {memory.needed_mb:,.0f} MB of memory"
    if not memory.fits:
        cure = "" if memory.change else "It needs a smaller model or a larger machine."
        said = f"{need}, and there are {memory.there_mb:,.0f} MB"
        yield Finding(OUT_OF_MEMORY, memory.where, said, cure=cure, change=memory.change)
    elif memory.needed_mb > memory.free_mb:
        said = f"{need}; {memory.free_mb:,.0f} of {memory.there_mb:,.0f} MB are free now"
        cure = "End what else holds memory on this machine, or make the stage smaller (micro_batch_size, lora)."
        cause = "Other programs hold the memory."
        yield Finding(OUT_OF_MEMORY, memory.where, said, "amber", "possible", cause, cure)


@detects(DISK_FULL)
def disk_full(disk: Disk) -> Iterator[Finding]:
    """Less room than models and one checkpoint take."""
    if disk.needed_mb > disk.free_mb:
        said = f"models and a checkpoint take about {disk.needed_mb:,.0f} MB, and {disk.free_mb:,.0f} MB are free"
        yield Finding(DISK_FULL, disk.where, said)


@detects(HEAD_LOST)
def head_not_in_folder(folder: RewardFolder) -> Iterator[Finding]:
    """A reward model without its head would score by numbers drawn at random."""
    if folder.missing:
        names = ", ".join(folder.missing[:3])
        yield Finding(
            HEAD_LOST,
            folder.where,
            f"{folder.path} has no weights for {names}",
            sureness="certain",
            cure="Name the folder of a reward stage, or of a sequence-classification model with one label; save the "
            "head with the model (`modules_to_save: [score]` in peft).",
        )


@detects(NOT_FINITE)
def weights_not_finite(weights: Weights) -> Iterator[Finding]:
    """A model that is broken before it is trained."""
    if weights.odd:
        said = f"{weights.path}: {weights.odd[0]} is one of {len(weights.odd)} weights that are not finite"
        cure = "Take the model from where it was made again, or an earlier checkpoint of it."
        cause = "The training that made the model had failed, or its file is damaged."
        yield Finding(NOT_FINITE, weights.where, said, sureness="certain", cause=cause, cure=cure)


@detects(TOKENIZER_MISMATCH)
def other_words(vocabularies: Vocabularies) -> Iterator[Finding]:
    """Roles that give a token different ids, or know different tokens."""
    (one, first), (other, second) = vocabularies.words.items()
    odd = sorted(word for word in first.keys() | second.keys() if first.get(word) != second.get(word))
    if odd:
        yield Finding(
            TOKENIZER_MISMATCH,
            vocabularies.where,
            f"{one} and {other} disagree about {len(odd):,} tokens, {odd[0]!r} first",
            sureness="certain",
            cause="They have different tokenizers, so the same ids are other words to each.",
            cure="Name two models with one tokenizer.",
        )


@detects(TOKENIZER_MISMATCH)
def without_embedding(tokens: Tokens) -> Iterator[Finding]:
    """Tokens that the data are written in and that the model has no embedding for."""
    if tokens.embeddings is None:
        return
    beyond = sorted({i for row in tokens.whole for i in row.ids if i >= tokens.embeddings})
    if beyond:
        names = ", ".join(map(str, tokens.renderer.tokenizer.convert_ids_to_tokens(beyond[:3])))
        yield Finding(
            TOKENIZER_MISMATCH,
            tokens.where,
            f"{len(beyond)} tokens of the data ({names}) are not among the model's {tokens.embeddings:,} embeddings",
            sureness="certain",
            cause="The tokenizer has tokens that the model was never trained with; their embeddings would be made up.",
        )
