"""Every method on a world small enough to sum over: does it come to rest where its theory says?

The world is `tests/oracles/tree.py`: 64 responses of 3 tokens. The policy is a table of logits or a transformer; what
trains it is the production code of the stages, from sampled responses to the optimizer's step. Only the judge is exact:
the distance to where the method should rest, KL(π‖target), as a share of the reference's. Where the target is the
optimum π*, this share is (J* − J(π)) / (J* − J(π_ref)), because J* − J(π) = β·KL(π‖π*).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from tests.oracles import tree as oracle
from tests.oracles.tree import RESPONSES, STATES, STEPS, TOKENS, Array, Tree
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from assay.algorithms.distill_loss import reverse_kl, token_divergence
from assay.algorithms.kl import FixedKL, k1
from assay.data.pack import TokenBatch, collate
from assay.data.render import Row
from assay.models.backbone import Backbone
from assay.models.policy import Policy, ResponseLogprobs
from assay.rollout.collect import Rollouts
from assay.rollout.config import SamplingParams
from assay.stages import group, loop, ppo
from assay.stages.config import GroupConfig, OptimConfig, PPOConfig, PreferenceConfig
from assay.stages.direct import Example, Learner
from assay.types import Prompt

BETA = 0.7
SPREAD = 0.5
"""Standard deviation of the scores; with `BETA`, the optimum is far from the reference and no response certain."""

BATCH, GROUP = 512, 16

ROWS = [Row([0, *response], 1) for response in RESPONSES]
PATHS = torch.tensor(oracle.PATHS)
CHOSEN = torch.tensor(RESPONSES)
PROMPT = Prompt.ask("?")
SAMPLING = SamplingParams(max_new_tokens=STEPS)

Kind = Literal["table", "transformer"]


class Scorer(Protocol):
    """What the production code asks of a policy."""

    @property
    def pad_id(self) -> int: ...

    @property
    def backbone(self) -> Any: ...

    def logprobs(self, batch: TokenBatch, *, temperature: float = 1.0, entropy: bool = False) -> ResponseLogprobs: ...

    def parameters_trained(self) -> dict[str, nn.Parameter]: ...


class Whole:
    """Reads everything at once."""

    device = "cpu"

    def parts(self, examples: Sequence[Any], most: int | None = None) -> list[list[int]]:
        return [list(range(len(examples)))]


class Table:
    """A softmax policy with a logit for each token in each state."""

    pad_id = 0
    backbone = Whole()

    def __init__(self, seed: int) -> None:
        self.logits = nn.Parameter(torch.randn(len(STATES), TOKENS, generator=torch.Generator().manual_seed(seed)))

    def logprobs(self, batch: TokenBatch, *, temperature: float = 1.0, entropy: bool = False) -> ResponseLogprobs:
        responses = number(batch)
        table = (self.logits / temperature).log_softmax(-1)
        return ResponseLogprobs(table[PATHS[responses], CHOSEN[responses]], None, batch.loss_mask[:, 1:])

    def parameters_trained(self) -> dict[str, nn.Parameter]:
        return {"logits": self.logits}


class Critic:
    """A value for each state."""

    backbone = Whole()

    def __init__(self) -> None:
        self.table = nn.Parameter(torch.zeros(len(STATES)))

    def values(self, batch: TokenBatch) -> Tensor:
        return self.table[PATHS[number(batch)]]


def transformer(seed: int) -> Policy:
    """One layer of a GPT-2, freshly drawn, behind the production interface.

    Its positions are absolute. Relative ones cannot tell a prompt of token 0 from the same with a 0 or two after it:
    all that attention could weigh is alike there, and the closed forms would be out of reach.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=STEPS + 1,
        n_embd=64,
        n_layer=1,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
    )
    return Policy(Backbone(GPT2LMHeadModel(config), device="cpu"), SimpleNamespace(pad_token_id=0))


def number(batch: TokenBatch) -> Tensor:
    """Which of the 64 responses each row holds."""
    return (batch.input_ids[:, 1:] * torch.tensor([TOKENS**2, TOKENS, 1])).sum(1)


@torch.no_grad()
def table_of(policy: Scorer) -> Array:
    """A policy's probabilities, [21, 4]."""
    logprobs = policy.logprobs(collate(ROWS, policy.pad_id)).logprobs_BR.double()
    table = torch.zeros(len(STATES), TOKENS, dtype=torch.float64)
    table[PATHS, CHOSEN] = logprobs.exp()
    return (table / table.sum(1, keepdim=True)).numpy()


@dataclass(frozen=True)
class World:
    """The task for a policy that is still its own reference."""

    policy: Scorer
    tree: Tree
    reference_YR: Tensor
    """Log-probabilities of all responses under the reference."""
    noise: torch.Generator

    @classmethod
    def new(cls, kind: Kind, seed: int, beta: float = BETA) -> World:
        policy: Scorer = Table(seed) if kind == "table" else transformer(seed)
        scores = SPREAD * np.random.default_rng(seed).normal(size=len(RESPONSES))
        with torch.no_grad():
            reference_YR = policy.logprobs(collate(ROWS, policy.pad_id)).logprobs_BR
        tree = Tree(table_of(policy), scores, beta)
        return cls(policy, tree, reference_YR, torch.Generator().manual_seed(seed))

    def sample(self, count: int) -> Tensor:
        """Numbers of responses drawn from the policy, [B]."""
        chances = torch.from_numpy(oracle.responses(table_of(self.policy)))
        return torch.multinomial(chances, count, replacement=True, generator=self.noise)

    @property
    def scores_Y(self) -> Tensor:
        return torch.from_numpy(self.tree.scores).float()


Updates = Iterator[None]
"""Trains a world's policy, an iteration each time it is asked."""


@dataclass(frozen=True)
class Method:
    """A way to train, and the distribution over responses that it must come to."""

    name: str
    train: Callable[[World, int, OptimConfig], Updates]
    target: Callable[[Tree], Array]
    rests: str = "π*"
    """Name of the target."""
    haste: float = 1.0
    """Factor on the learning rate."""
    pace: int = 1
    """Factor on the number of iterations."""
    beta: float = BETA
    """Of the world, for methods that maximise reward − β·KL."""


def optimum(tree: Tree) -> Array:
    return oracle.best(tree)[0]


# Policy methods: what the stages `group` and `ppo` do with a batch of episodes, without prompts and texts around it.


def by_group(method: str, **choices: Any) -> Callable[[World, int, OptimConfig], Updates]:
    """A preset of the stage `group`."""

    def train(world: World, iterations: int, optim: OptimConfig) -> Updates:
        config = GroupConfig.model_validate(
            {
                "method": method,
                "kl_coef": world.tree.beta,
                "overlong": 0,
                "batch_size": BATCH,
                "episodes": BATCH * iterations,
                "sampling": SAMPLING,
                "optim": optim,
                **({} if method in ("reinforce", "reinforce_pp", "remax") else {"group_size": GROUP}),
                **choices,
            }
        )
        policy: Any = world.policy
        optimizer = loop.Optimizer(policy.parameters_trained(), optim, iterations * config.updates)
        for iteration in range(iterations):
            experience, _ = group.estimate(rollouts(world), online(world), config)
            group.update(experience, policy, optimizer, iteration, world.tree.beta, config, CONTEXT)
            yield

    return train


def by_ppo(**choices: Any) -> Callable[[World, int, OptimConfig], Updates]:
    """The stage `ppo`, with a table for a critic."""

    def train(world: World, iterations: int, optim: OptimConfig) -> Updates:
        config = PPOConfig.model_validate(
            {
                "kl_coef": world.tree.beta,
                "batch_size": BATCH,
                "episodes": BATCH * iterations,
                "inner_epochs": 2,
                "minibatches": 1,
                "sampling": SAMPLING,
                "optim": optim,
                "value_learning_rate": 0.05,
                "value_warmup": 0,
                **choices,
            }
        )
        roles: Any = SimpleNamespace(policy=world.policy, value=Critic())
        updates = iterations * config.updates
        rates = optim.model_copy(update={"learning_rate": config.value_learning_rate})
        optimizers = {
            "policy": loop.Optimizer(world.policy.parameters_trained(), optim, updates),
            "value": loop.Optimizer({"table": roles.value.table}, rates, updates),
        }
        for iteration in range(iterations):
            experience, _ = ppo.estimate(rollouts(world), roles, online(world), config)
            ppo.update(experience, roles, optimizers, iteration, world.tree.beta, config, CONTEXT)
            yield

    return train


CONTEXT: Any = SimpleNamespace(seed=0, device="cpu")
"""All that the updates read of a run."""


def rollouts(world: World) -> Rollouts:
    """Responses of the policy as it is, with their true scores."""
    with torch.no_grad():
        everything_YR = world.policy.logprobs(collate(ROWS, world.policy.pad_id)).logprobs_BR
    drawn = world.sample(BATCH)
    yes_B = torch.ones(BATCH, dtype=torch.bool)
    return Rollouts(
        [PROMPT] * BATCH,
        [ROWS[y] for y in drawn.tolist()],
        [""] * BATCH,
        [""] * BATCH,
        yes_B[:, None].expand(-1, STEPS),
        everything_YR[drawn],
        world.reference_YR[drawn],
        world.scores_Y[drawn],
        finished_B=yes_B,
        empty_B=~yes_B,
        cut_B=~yes_B,
    )


def online(world: World) -> Any:
    """What the stages read of the run around them: scores as they are, and β."""

    def observe(sampled: Rollouts) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        return sampled.scores_B, sampled.logprobs_BR, k1(sampled.logprobs_BR, sampled.reference_BR), {}

    return SimpleNamespace(
        state=SimpleNamespace(reward_mean=0.0),
        penalty=FixedKL(world.tree.beta),
        observe=observe,
        scores=lambda sampled: sampled.scores_B,
        greedy_scores=lambda prompts: greedy_score(world).expand(len(prompts)),
    )


def greedy_score(world: World) -> Tensor:
    """Score of the policy's likeliest tokens, one after another."""
    table, said = table_of(world.policy), ()
    for _ in range(STEPS):
        said = (*said, int(table[oracle.STATE_OF[said]].argmax()))
    return world.scores_Y[RESPONSES.index(said)]


# Preference methods. Every response stands against one opponent, so that what people prefer decides every h = x − x_0
# (oracles.md, 2); h is then known in closed form, and with it the policy: π ∝ π_ref·e^h.

OPPONENT = 0
PREFERENCE_BETA = 0.5
SMOOTHING = 0.2


def by_preference(method: str, people: Callable[[Tree], Array], **choices: Any) -> Callable[..., Updates]:
    """A preset of the stage `preference`; `people` gives the chance that each response is preferred to the opponent."""

    def train(world: World, iterations: int, optim: OptimConfig) -> Updates:
        step = preference_steps(world, iterations, optim, method, **choices)
        drawn = torch.arange(len(RESPONSES)).repeat_interleave(BATCH // len(RESPONSES))
        chance_B = torch.from_numpy(people(world.tree))[drawn]
        for iteration in range(iterations):
            answers = answered(chance_B, iteration)
            step(iteration, [(y, OPPONENT, won) for y, won in zip(drawn.tolist(), answers, strict=True)])
            yield

    return train


def online_dpo(world: World, iterations: int, optim: OptimConfig) -> Updates:
    """Two responses of the policy as it is, and people who prefer by Bradley–Terry; an update; again."""
    step = preference_steps(world, iterations, optim, "dpo", beta=BETA)
    for iteration in range(iterations):
        pairs = sorted(zip(world.sample(BATCH).tolist(), world.sample(BATCH).tolist(), strict=True))
        one_B, other_B = torch.tensor(pairs).T
        answers = answered(torch.sigmoid(world.scores_Y[one_B] - world.scores_Y[other_B]).double(), iteration)
        step(iteration, [(one, other, won) for (one, other), won in zip(pairs, answers, strict=True)])
        yield


def answered(chance_B: Tensor, iteration: int) -> list[bool]:
    """Whether people say yes, each time with its chance, and over the iterations as often as they should.

    Systematic sampling: of neighbours in a row as many say yes as their chances add up to, rounded up or down. Which
    way takes even turns (multiples of the golden ratio) and is not drawn: the noise of n iterations is 1/n, not 1/√n.
    """
    ends_B = chance_B.cumsum(0) + iteration * (5**0.5 - 1) / 2 % 1
    return (ends_B.floor() > (ends_B - chance_B).floor()).tolist()


def preference_steps(
    world: World, iterations: int, optim: OptimConfig, method: str, **choices: Any
) -> Callable[[int, list[tuple[int, int, bool]]], None]:
    """An optimizer step on comparisons: a response, another, and whether the first was preferred."""
    config = PreferenceConfig.model_validate(
        {"method": method, "beta": PREFERENCE_BETA, "batch_size": BATCH, **choices}
    )
    policy: Any = world.policy
    learner = Learner(policy, config, "cpu")
    optimizer = loop.Optimizer(policy.parameters_trained(), optim, iterations)
    reference_Y = world.reference_YR.sum(1)

    def step(iteration: int, comparisons: list[tuple[int, int, bool]]) -> None:
        pairs = [(one, other) if won else (other, one) for one, other, won in comparisons]
        learner.step([Example(ROWS[good], ROWS[bad]) for good, bad in pairs], reference_Y[torch.tensor(pairs)])
        optimizer.update(iteration)

    return step


def bradley_terry(tree: Tree) -> Array:
    """People whose preference follows the scores, with noise."""
    return 1 / (1 + np.exp(tree.scores[OPPONENT] - tree.scores))


def certain(tree: Tree) -> Array:
    """People who always prefer the higher score."""
    return np.where(tree.scores > tree.scores[OPPONENT], 1.0, 0.0)


def tilted(h: Callable[[Tree], Array]) -> Callable[[Tree], Array]:
    """π ∝ π_ref·e^h, h = 0 at the opponent."""

    def target(tree: Tree) -> Array:
        shift_Y = h(tree)
        shift_Y[OPPONENT] = 0
        weights_Y = oracle.responses(tree.reference) * np.exp(shift_Y)
        return weights_Y / weights_Y.sum()

    return target


def distillation(world: World, iterations: int, optim: OptimConfig) -> Updates:
    """Reverse KL to the optimum, token by token on the student's own responses."""
    policy = world.policy
    optimizer = loop.Optimizer(policy.parameters_trained(), optim, iterations)
    teacher = torch.from_numpy(oracle.soft_policy(world.tree)).log().float()
    for iteration in range(iterations):
        drawn = world.sample(BATCH)
        batch = collate([ROWS[y] for y in drawn.tolist()], policy.pad_id)
        hidden_ND, head = states(policy, batch)
        teacher_ND = teacher[PATHS[drawn]].flatten(0, 1)
        token_divergence(reverse_kl, hidden_ND, head, teacher_ND, (torch.eye(TOKENS), None)).mean().backward()
        optimizer.update(iteration)
        yield


def states(policy: Scorer, batch: TokenBatch) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """What the head of a policy reads at every token, [B·R, D], and the head."""
    if isinstance(policy, Policy):
        return policy.backbone.states(batch, batch.labels.before_N), policy.head
    assert isinstance(policy, Table)
    return policy.logits[PATHS[number(batch)]].flatten(0, 1), (torch.eye(TOKENS), None)


def shrunk(share: float) -> Callable[[Tree], Array]:
    """The optimum for scores that count for less."""
    return lambda tree: oracle.best(Tree(tree.reference, share * tree.scores, tree.beta))[0]


TO_OPTIMUM = [
    Method("REINFORCE", by_group("reinforce"), optimum, haste=2, pace=2),
    Method("ReMax", by_group("remax"), optimum, pace=3),
    Method("RLOO", by_group("rloo"), optimum),
    Method("RLOO, k2 in the loss", by_group("rloo", kl_loss="k2"), optimum),
    Method("GRPO", by_group("grpo", kl_loss=None), optimum),
    Method("Dr.GRPO", by_group("dr_grpo", kl_loss=None), optimum),
    Method("DAPO", by_group("dapo"), optimum),
    Method("GSPO", by_group("gspo", kl_loss=None), optimum),
    Method("CISPO", by_group("cispo"), optimum, pace=2),
    Method("REINFORCE++", by_group("reinforce_pp"), optimum),
    Method("REINFORCE++ baseline", by_group("reinforce_pp_baseline", kl_loss=None), optimum),
    Method("PPO, clip", by_ppo(), optimum),
    Method("PPO, dual clip", by_ppo(dual_clip=3.0), optimum),
    Method("PPO, penalty", by_ppo(surrogate="penalty"), optimum),
    Method("DPO", by_preference("dpo", bradley_terry, beta=BETA), optimum, haste=2, pace=2),
    Method("online DPO", online_dpo, optimum, pace=5),
    Method("distillation, reverse KL to π*", distillation, optimum),
]
TO_ANOTHER = [
    Method(
        "IPO",
        by_preference("ipo", bradley_terry),
        tilted(lambda tree: (2 * bradley_terry(tree) - 1) / (2 * PREFERENCE_BETA)),
        "h = (2P − 1)/(2β)",
        haste=2,
        pace=2,
    ),
    Method(
        "cDPO, certain people",
        by_preference("cdpo", certain, label_smoothing=SMOOTHING),
        tilted(lambda tree: (2 * certain(tree) - 1) * math.log(1 / SMOOTHING - 1) / PREFERENCE_BETA),
        "h = ±logit(1 − ε)/β",
        haste=2,
        pace=2,
    ),
    Method(
        "Dr.GRPO, k2 in the loss, G = 4",
        by_group("dr_grpo", group_size=4, kl_loss="k2"),
        shrunk(3 / 4),
        "π* of (G−1)/G·r",
    ),
    # Dividing by the deviation raises the reward as the policy narrows: at BETA it would narrow to a single response.
    Method(
        "GRPO, k2 in the loss", by_group("grpo", group_size=64), oracle.standardised_best, "π* of β·std(r)", beta=1.5
    ),
    Method(
        "GRPO as published, k3",
        by_group("grpo", group_size=64, kl_loss="k3"),
        oracle.grpo_best,
        "rational tilt",
        beta=1.5,
    ),
]
METHODS = TO_OPTIMUM + TO_ANOTHER


@dataclass(frozen=True)
class Climb:
    """What became of one method with one kind of policy."""

    name: str
    kind: Kind
    steps: list[int]
    shares: list[float]
    """KL(π‖target) / KL(π_ref‖target) after each of `steps` iterations."""
    gap: float
    """(J* − J(π)) / (J* − J(π_ref)) at the end; negative nowhere."""
    certificate_error: float
    """The largest |J* − J(π) − β·KL(π‖π*)| on the way."""
    seconds: float


RATES: Mapping[Kind, float] = {"table": 0.05, "transformer": 0.002}


def climb(method: Method, kind: Kind, *, iterations: int, seed: int = 0, points: int = 20) -> Climb:
    """Train, and measure on the way; the learning rate falls to 0, so that the noise of sampling dies away."""
    world = World.new(kind, seed, method.beta)
    tree = world.tree
    target, (best, worth) = method.target(tree), oracle.best(tree)
    start = oracle.kl(oracle.responses(tree.reference), target)
    optim = OptimConfig(learning_rate=method.haste * RATES[kind], schedule="linear", warmup=0.0, eps=1e-5)
    iterations *= method.pace
    steps, shares, errors, gap = [0], [1.0], [], math.nan
    began = time.perf_counter()
    for done, _ in enumerate(method.train(world, iterations, optim), start=1):
        if done % (iterations // points) == 0 or done == iterations:
            chances = oracle.responses(table_of(world.policy))
            gap = worth - oracle.objective_of(tree, chances)
            errors.append(abs(gap - tree.beta * oracle.kl(chances, best)))
            steps.append(done)
            shares.append(oracle.kl(chances, target) / start)
    most = worth - oracle.objective(tree, tree.reference)
    return Climb(method.name, kind, steps, shares, gap / most, max(errors), time.perf_counter() - began)
