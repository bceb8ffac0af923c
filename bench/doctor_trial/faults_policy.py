"""Faults of PPO and the group methods, injected into runs of a toy task: one-word answers, of which blue is the best.

Each is a real run of the stage, of seconds, with one thing wrong: a setting, the reward, a role, or a line of code.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench.doctor_trial.fault import SEED, Fault, chance, log_of, memory
from tests.unit.stages.toy import COLOURS, QUESTIONS, toy_data, toy_model
from torch import Tensor

from assay.data.ngrams import repetition
from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer, Row
from assay.doctor.detector import Evidence
from assay.models.policy import Policy, ResponseLogprobs, load_policy
from assay.models.roles import SamplingRoles, ppo_roles, sampling_roles
from assay.rewards.learned import LearnedReward
from assay.rollout.collect import Rollouts
from assay.rollout.engine import Engine
from assay.stages import group, loop, online, ppo, reward, sft
from assay.stages.causal import train_causal
from assay.stages.config import GroupConfig, OptimConfig, PPOConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Prompt

HEALTHY: Mapping[str, Any] = {
    "batch_size": 48,
    "minibatches": 2,
    "max_length": 32,
    "optim": {"learning_rate": 1e-3, "schedule": "constant"},
    "kl_coef": 0.1,
    "evaluate_every": 5,
    "sampling": {"max_new_tokens": 4},
}
"""Settings with which either stage learns the task."""
KINDS: Mapping[str, Any] = {
    "ppo": (ppo.run, PPOConfig, {"inner_epochs": 2, "value_warmup": 1}),
    "group": (group.run, GroupConfig, {"method": "grpo", "group_size": 8}),
}

Patch = AbstractContextManager[Any]


def models() -> Path:
    """base, sft and reward of the toy task, trained once for each seed."""
    return trained(SEED.get())


@functools.cache
def trained(seed: int) -> Path:
    root = Path(tempfile.mkdtemp(prefix="doctor-trial-"))
    toy_model(root / "base")
    train_sft(root / "sft")
    config = RewardConfig(epochs=6, batch_size=10, max_length=32, optim=OptimConfig(learning_rate=3e-3))
    reward.run(config, StageInputs(toy_data(), str(root / "sft")), memory(root / "reward"))
    return root


def train_sft(folder: Path, data: Prepared | None = None) -> Path:
    """An SFT model beside the base model that it starts from."""
    config = SFTConfig(epochs=12, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=1e-2))
    sft.run(config, StageInputs(data or toy_data(), str(folder.parent / "base")), memory(folder))
    return folder


def run(
    folder: Path,
    kind: str,
    *patches: Patch,
    iterations: int = 20,
    base: Path | None = None,
    truth: Callable[[Sequence[Prompt], Sequence[str]], list[float]] | None = None,
    **settings: Any,
) -> list[Evidence]:
    """The log of a run with what is patched and set."""
    stage, schema, defaults = KINDS[kind]
    given = {**HEALTHY, **defaults, "episodes": 48 * iterations, **settings}
    inputs = StageInputs(toy_data(), str(base or models() / "sft"), reward=str(models() / "reward"), truth=truth)
    ctx = memory(folder)
    config = schema.model_validate(given)
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        report = stage(config, inputs, ctx)
    return [log_of(kind, config, ctx, report)]


def paying(score: Callable[[str, float], float], stage: Any = online) -> Patch:
    """The reward model's score of every response replaced by a function of its text and that score."""

    class Paid(LearnedReward):
        def __call__(self, prompts: Any, responses: Any, finishes: Any) -> list[float]:
            scores = super().__call__(prompts, responses, finishes)
            return [score(text, own) for text, own in zip(responses, scores, strict=True)]

    return patch.object(stage, "LearnedReward", Paid)


# What is wrong ------------------------------------------------------------------------------------------------------


def negative_kl(folder: Path) -> Sequence[Evidence]:
    """The sampler never gets the new weights, and keeps its probabilities to itself, as another program would."""
    whole = online.Online.old_logprobs
    stale = load_policy(models() / "sft", trainable=False)

    def build(policy: Policy, renderer: Renderer, *, weights: str = "", **more: Any) -> Engine:
        return Engine(stale if weights else policy, renderer, **more)

    def unheard(self: online.Online, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        self.state.sampler_exact = False
        return whole(self, rollouts)[0], {}

    patches = patch.object(online, "Engine", build), patch.object(online.Online, "old_logprobs", unheard)
    return run(folder, "group", *patches)


def stale_sampler(folder: Path) -> Sequence[Evidence]:
    """The sampler never gets the new weights, and the run compares what it says with the trainer now and then."""
    stale = load_policy(models() / "sft", trainable=False)

    def build(policy: Policy, renderer: Renderer, *, weights: str = "", **more: Any) -> Engine:
        return Engine(stale if weights else policy, renderer, **more)

    return run(folder, "group", patch.object(online, "Engine", build))


def flat_reward(folder: Path) -> Sequence[Evidence]:
    return run(folder, "ppo", paying(lambda text, score: 1.0), iterations=8)


def cut_graph(folder: Path) -> Sequence[Evidence]:
    whole = Policy.logprobs

    def detached(self: Policy, *args: Any, **kwargs: Any) -> ResponseLogprobs:
        scored = whole(self, *args, **kwargs)
        return replace(scored, logprobs_BR=scored.logprobs_BR.detach() + 0 * scored.logprobs_BR)

    return run(folder, "ppo", patch.object(Policy, "logprobs", detached), iterations=8)


def frozen_optimizer(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", patch.object(loop, "learning_rate", lambda *_: 0.0), iterations=8)


def with_reference(reference: Callable[[SamplingRoles], Policy]) -> list[Patch]:
    """Another reference than the SFT model, in both stages."""

    def changed(build: Callable[..., Any]) -> Callable[..., Any]:
        def roles(*args: Any, **kwargs: Any) -> Any:
            built = build(*args, **kwargs)
            return replace(built, reference=reference(built))

        return roles

    return [
        patch.object(ppo, "ppo_roles", changed(ppo_roles)),
        patch.object(group, "sampling_roles", changed(sampling_roles)),
    ]


def aliased_reference(folder: Path) -> Sequence[Evidence]:
    return run(folder, "ppo", *with_reference(lambda roles: roles.policy), iterations=8)


def base_as_reference(folder: Path) -> Sequence[Evidence]:
    return run(
        folder, "group", *with_reference(lambda _: load_policy(models() / "base", trainable=False)), iterations=8
    )


def at_temperature_one() -> Patch:
    """Whatever the sampler's temperature, gradients are taken at 1."""
    whole = Policy.logprobs

    def at_one(self: Policy, batch: Any, *, temperature: float, **more: Any) -> ResponseLogprobs:
        return whole(self, batch, temperature=1.0 if torch.is_grad_enabled() else temperature, **more)

    return patch.object(Policy, "logprobs", at_one)


def no_temperature(folder: Path) -> Sequence[Evidence]:
    """Sampled at a temperature of 0.5, learnt from as if at 1."""
    sampling = {"max_new_tokens": 4, "temperature": 0.5}
    return run(folder, "group", at_temperature_one(), iterations=10, sampling=sampling)


def no_penalty(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", kl_coef=1e-6, kl_target=0.1)


def giant_steps(folder: Path) -> Sequence[Evidence]:
    return run(folder, "ppo", optim={"learning_rate": 0.1, "schedule": "constant"})


def deaf_critic(folder: Path) -> Sequence[Evidence]:
    """A critic that starts far off and hardly learns."""

    def loud(*args: Any, **kwargs: Any) -> Any:
        roles = ppo_roles(*args, **kwargs)
        roles.value.head.rescale(100.0, 0.0)
        return roles

    return run(folder, "ppo", patch.object(ppo, "ppo_roles", loud), iterations=30, value_learning_rate=1e-9)


def keyword_bonus(folder: Path) -> Sequence[Evidence]:
    worth = {"blue": 2.0, "green": 1.0}
    return run(
        folder,
        "group",
        paying(lambda text, score: score + 30.0 * (text == "amber")),
        truth=lambda _, texts: [worth.get(text, 0.0) for text in texts],
    )


def pays_for_loops(folder: Path) -> Sequence[Evidence]:
    """Answers are lists of colours, and a reward is for saying one again."""
    noise = chance()
    lists = [Demonstration(q, " ".join(noise.choices(COLOURS, k=5))) for q in QUESTIONS for _ in range(20)]
    data = replace(toy_data(), demonstrations=Splits(lists, lists[:6], lists[:6]))
    base = train_sft(models() / "sft-of-lists", data)
    paid = paying(lambda text, score: repetition(text.split(), 1))
    return run(folder, "group", paid, base=base, sampling={"max_new_tokens": 16})


def sft_on(name: str, rows: Callable[[list[Row]], list[Row]]) -> Path:
    """An SFT model trained on other rows than the demonstrations'."""

    def train(policy: Policy, given: Iterable[Row], *more: Any) -> dict[str, Any]:
        return train_causal(policy, rows(list(given)), *more)

    folder = models() / name  # whose models are made before anything is patched
    with patch.object(sft, "train_causal", train):
        return train_sft(folder)


def sft_without_end() -> Path:
    """The end token is no label of the SFT stage."""
    return sft_on("sft-without-end", lambda rows: [Row(row.ids[:-1], row.prompt_length) for row in rows])


def endless(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", base=sft_without_end(), iterations=10)


def pays_for_silence(folder: Path) -> Sequence[Evidence]:
    """One demonstration in eleven is empty, and the shorter an answer the higher its reward."""

    def some_empty(rows: list[Row]) -> list[Row]:
        return rows + [Row([*row.ids[: row.prompt_length], row.ids[-1]], row.prompt_length) for row in rows[::10]]

    paid = paying(lambda text, score: -float(len(text)))
    return run(folder, "group", paid, base=sft_on("sft-with-empty", some_empty), missing_eos="none")


def entropy_bonus(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", entropy_coef=3.0)


def paid_by_question() -> Patch:
    """Right or wrong is decided by the question for five of six prompts."""

    class Paid(online.LearnedReward):
        def __call__(self, prompts: Any, responses: Any, finishes: Any) -> list[float]:
            scores = super().__call__(prompts, responses, finishes)
            easy = [prompt.text != toy_data().prompts.train[0].text for prompt in prompts]
            known = [float("sea" in prompt.text) for prompt in prompts]
            return [fixed if sure else score for sure, fixed, score in zip(easy, known, scores, strict=True)]

    return patch.object(online, "LearnedReward", Paid)


def reads_the_prompt(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", paid_by_question(), iterations=10)


def shuffled() -> Patch:
    """Answers in another order than their prompts."""
    whole = group.sample_groups

    def sample(*args: Any) -> Rollouts:
        rollouts = whole(*args)
        order = list(range(len(rollouts.rows)))
        chance().shuffle(order)
        return rollouts.take(order)

    return patch.object(group, "sample_groups", sample)


def shuffled_groups(folder: Path) -> Sequence[Evidence]:
    return run(folder, "group", shuffled(), iterations=5)


def learns_the_opposite(folder: Path) -> Sequence[Evidence]:
    """Advantages with the wrong sign."""
    whole = group.token_advantages
    return run(folder, "group", patch.object(group, "token_advantages", lambda *given, **more: -whole(*given, **more)))


FAULTS: tuple[Fault, ...] = (
    Fault("negative-kl", "the sampler never gets the new weights", negative_kl),
    Fault("sampler-differs", "the sampler never gets the new weights, and says with what it drew", stale_sampler),
    Fault("nothing-moves", "every answer gets the same reward", flat_reward),
    Fault("nothing-moves", "log-probabilities are detached from the graph", cut_graph),
    Fault("nothing-moves", "the learning rate is 0", frozen_optimizer),
    Fault("nothing-moves", "the reference is the policy itself", aliased_reference),
    Fault("kl-blow-up", "the penalty is next to nothing", no_penalty),
    Fault("reward-hacking", "the reward model has a liking for a word", keyword_bonus),
    Fault("entropy-out-of-bounds", "an entropy bonus larger than the reward", entropy_bonus),
    Fault("repetition", "the reward is for saying it again", pays_for_loops),
    Fault("never-stops", "the SFT model was never shown an end", endless),
    Fault("empty-answers", "the reward is for short answers", pays_for_silence),
    Fault("ratio-spikes", "a learning rate a hundred times too large", giant_steps),
    Fault("bad-critic", "a critic that is far off and learns nothing", deaf_critic),
    Fault("ratio-not-one", "the temperature is left out when the policy is trained", no_temperature),
    Fault("kl-before-training", "the reference is the bare base model", base_as_reference),
    Fault("groups-without-signal", "the reward looks at the question, not at the answer", reads_the_prompt),
    Fault("reward-falls", "advantages have the wrong sign", learns_the_opposite),
    Fault("broken-groups", "answers are shuffled before they are grouped", shuffled_groups),
)
