"""Faults in SFT, reward models and direct preference optimisation, and in the models themselves."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench.doctor_trial import finished_runs
from bench.doctor_trial.broken_code import (
    CutOff,
    LastColumn,
    Unmasked,
    a_little_off,
    in_fp16,
    mean_of_means,
    reentrant,
    with_dropout,
    with_other_ids,
)
from bench.doctor_trial.fault import SEED, Fault, chance, log_of, memory
from safetensors.torch import load_file
from tests.unit.stages.toy import COLOURS, QUESTIONS, toy_data, toy_model
from torch import Tensor
from torch.nn import Parameter

from assay.data.pack import TokenBatch
from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer, Row
from assay.doctor.detector import Evidence
from assay.doctor.log import Log
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import LabelProbe, RewardProbe
from assay.models import reward_model as reward_module
from assay.models.config import LoraConfig
from assay.models.locate import locate
from assay.models.policy import Policy, load_policy
from assay.models.roles import RewardModel, load_reward_model
from assay.pipeline.evaluators import Evaluators
from assay.rollout.engine import Engine
from assay.stages import causal, loop, preference, reward, sft
from assay.stages.config import OptimConfig, PreferenceConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.stages.direct import Learner
from assay.types import Demonstration, Preference, Prompt

LORA = LoraConfig(r=8, alpha=16, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
OFFSET = 65.0
ASKED = tuple(Prompt.ask(f"{ask} {a} {b}?") for ask in ("what is", "name") for a in COLOURS for b in COLOURS)


# What is healthy, before a fault is put into it.


def sft_model() -> Path:
    """The toy's SFT model, trained once in a process for each seed."""
    return trained_sft(SEED.get())


@functools.cache
def trained_sft(seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    base = toy_model(folder / "base")
    config = SFTConfig(epochs=12, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=1e-2))
    sft.run(config, StageInputs(toy_data(), str(base)), memory(folder / "sft"))
    return folder / "sft"


def reward_model() -> Path:
    """The toy's reward model, trained once in a process for each seed."""
    return trained_reward(SEED.get())


@functools.cache
def trained_reward(seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    reward.run(reward_config(), StageInputs(toy_data(), str(sft_model())), memory(folder))
    return folder


def worth(prompts: Sequence[Prompt], responses: Sequence[str], finishes: Sequence[str]) -> list[float]:
    """What the judge makes of answers: blue is the best, then green."""
    return [{"blue": 2.0, "green": 1.0}.get(response, 0.0) for response in responses]


def inputs_of(data: Prepared, base: Path) -> StageInputs:
    """As the pipeline gives them: with evaluators."""
    said = Evaluators(data, seed=SEED.get(), train=data.preferences.train, judge=worth)
    return StageInputs(
        data,
        str(base),
        evaluate_preferences=said.preferences,
        evaluate_policy=said.policy,
        mean=said.mean,
        share=said.share,
    )


def reward_config(**changes: Any) -> RewardConfig:
    plain = {"epochs": 6, "batch_size": 10, "max_length": 32, "optim": {"learning_rate": 3e-3}, "validate_every": 5}
    return RewardConfig.model_validate({**plain, **changes})


def reward_log(folder: Path, data: Prepared | None = None, **changes: Any) -> Log:
    data, config, ctx = data or toy_data(), reward_config(**changes), memory(folder / "reward")
    return log_of("reward", config, ctx, reward.run(config, inputs_of(data, sft_model()), ctx))


def sft_log(folder: Path, data: Prepared | None = None, **changes: Any) -> Log:
    plain = {"epochs": 4, "batch_size": 16, "max_length": 32, "optim": {"learning_rate": 3e-3}, "validate_every": 4}
    config, ctx = SFTConfig.model_validate({**plain, **changes}), memory(folder / "sft")
    base = toy_model(folder / "base")
    return log_of("sft", config, ctx, sft.run(config, inputs_of(data or toy_data(), base), ctx))


def direct_log(folder: Path, data: Prepared | None = None, base: Path | None = None, **changes: Any) -> Log:
    """Of the toy, asked more questions in the end."""
    data = data or toy_data()
    data = replace(data, prompts=replace(data.prompts, test=ASKED))
    return preference_log(folder, data, base or sft_model(), **changes)


def preference_log(folder: Path, data: Prepared, base: Path, **changes: Any) -> Log:
    plain = {
        "epochs": 2,
        "batch_size": 16,
        "max_length": 32,
        "optim": {"learning_rate": 3e-4, "schedule": "constant"},
        "sampling": {"max_new_tokens": 12},
        "validate_every": 3,
    }
    config, ctx = PreferenceConfig.model_validate({**plain, **changes}), memory(folder / "preference")
    return log_of("preference", config, ctx, preference.run(config, inputs_of(data, base), ctx))


def reward_probe(**changes: Any) -> RewardProbe:
    model = load_reward_model(reward_model(), max_length=32)
    return replace(RewardProbe(model, toy_data().preferences.test[::3]), **changes)


def policy_probe(policy: Policy | None = None, **changes: Any) -> PolicyProbe:
    policy = policy or load_policy(sft_model(), lora=LORA)
    renderer = Renderer(policy.tokenizer, max_length=32)
    answers = [" ".join(COLOURS[: 1 + i % 4]) for i in range(len(QUESTIONS))]
    rows = [row for row in renderer.rows(list(zip(QUESTIONS, answers, strict=True))) if row]
    frozen = load_policy(sft_model(), trainable=False)
    plain: dict[str, Any] = {"reference": frozen, "sft": frozen, "engine": Engine(policy, renderer, max_batch=16)}
    return PolicyProbe(policy, rows, **{**plain, "prompts": QUESTIONS, **changes})


def step_probe() -> StepProbe:
    """The SFT step on answers of one to four words."""
    probe = policy_probe(load_policy(sft_model()))
    return StepProbe(
        lambda size: causal.imitate(probe.policy, probe.rows, size, "cpu"), probe.policy.parameters_trained()
    )


def label_probe() -> LabelProbe:
    """All that is learnt is about the first three questions; the others, held out, begin with another word."""
    pairs = [Preference(q, a, b) for q in QUESTIONS for i, a in enumerate(COLOURS) for b in COLOURS[:i]]
    train, held = ([pair for pair in pairs if pair.prompt in QUESTIONS[start : start + 3]] for start in (0, 3))
    return LabelProbe(load_reward_model(sft_model(), head_seed=SEED.get(), max_length=32), train, held)


def prompt_batch(side: str) -> PromptBatch:
    policy = load_policy(sft_model(), trainable=False)
    policy.tokenizer.padding_side = side
    asked = [prompt.text for prompt in (*QUESTIONS, *ASKED[:4])]
    batch = policy.tokenizer(asked, padding=True, return_tensors="pt")
    return PromptBatch(batch["input_ids"], batch["attention_mask"], policy)


def healthy(folder: Path) -> list[Evidence]:
    """A run of each kind and a probe of each, without any fault."""
    logs: list[Evidence] = [sft_log(folder), reward_log(folder), direct_log(folder)]
    return [*logs, reward_probe(), policy_probe(), step_probe(), label_probe(), prompt_batch("left")]


# Faults in what is logged.


@contextmanager
def stale(role: type) -> Iterator[None]:
    """The optimizer has copies of the weights, as where it was made before the model was wrapped or moved."""
    own: Callable[[Any], dict[str, Parameter]] = role.parameters_trained
    copies: dict[int, dict[str, Parameter]] = {}

    def copied(self: Any) -> dict[str, Parameter]:
        return copies.setdefault(id(self), {name: Parameter(p.detach().clone()) for name, p in own(self).items()})

    with patch.object(role, "parameters_trained", copied):
        yield


@contextmanager
def scored_as(change: Callable[[Tensor, Sequence[str]], Tensor]) -> Iterator[None]:
    """Responses are scored in another way than in training."""
    own = RewardModel.member_scores

    def changed(self: RewardModel, prompts: Any, responses: Sequence[str], *more: Any, **named: Any) -> Tensor:
        return change(own(self, prompts, responses, *more, **named), responses)

    with patch.object(RewardModel, "member_scores", changed):
        yield


uncalibrated = patch.object(reward_module, "preference_gain", lambda chosen, rejected: 1.0)
"""As foreign reward models are."""


def by_length(scores_NMO: Tensor, responses: Sequence[str]) -> Tensor:
    return scores_NMO + 5 * torch.tensor([float(len(text)) for text in responses])[:, None, None]


def in_the_prompt(self: RewardModel, batch: TokenBatch) -> Tensor:
    """Scores read at the last token of the prompt."""
    return self._scores_at(batch, batch.loss_mask.long().argmax(1)[:, None] - 1, self.adapter, slice(None))


def at_chance(folder: Path) -> list[Evidence]:
    with stale(RewardModel):
        return [reward_log(folder)]


def in_bf16(folder: Path) -> list[Evidence]:
    """Scores as a head in bf16 gives them."""
    data = toy_data()
    data = replace(data, preferences=replace(data.preferences, test=[*data.preferences.test] * 4))
    with scored_as(lambda scores_NMO, _: (scores_NMO + OFFSET).bfloat16().float()), uncalibrated:
        return [reward_log(folder, data, epochs=1, optim={"learning_rate": 1e-3}, centring=0.0)]


def far_from_zero(folder: Path) -> list[Evidence]:
    with scored_as(lambda scores_NMO, _: scores_NMO + OFFSET):
        return [reward_log(folder)]


def pays_for_length(folder: Path) -> list[Evidence]:
    with scored_as(by_length), uncalibrated:
        return [reward_log(folder)]


def reads_the_prompt(folder: Path) -> list[Evidence]:
    with patch.object(RewardModel, "scores", in_the_prompt):
        return [reward_log(folder)]


def few_pairs(folder: Path) -> list[Evidence]:
    """Half of the comparisons are toss-ups, and 50 others are drawn for every validation."""
    noise = chance()
    tossed = [noise.sample(("red", "amber"), 2) for _ in range(30)]
    equal = [Preference(q, one, other) for q in QUESTIONS for one, other in tossed]
    clear = toy_data().preferences
    data = replace(toy_data(), preferences=Splits([*equal, *clear.train], *[[*equal, *clear.test]] * 2))
    config, ctx = reward_config(epochs=2, validate_every=2), memory(folder / "reward")
    given = inputs_of(data, sft_model())

    def drawn(pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
        some = noise.sample(range(len(pairs)), 50)
        assert given.evaluate_preferences is not None
        return given.evaluate_preferences(
            [pairs[i] for i in some], [chosen[i] for i in some], [rejected[i] for i in some]
        )

    return [log_of("reward", config, ctx, reward.run(config, replace(given, evaluate_preferences=drawn), ctx))]


def steps_too_long(folder: Path) -> list[Evidence]:
    return [sft_log(folder, optim={"learning_rate": 3.0, "schedule": "constant", "warmup": 0.0})]


def recites(folder: Path) -> list[Evidence]:
    """One answer to each question, sixty times over."""
    noise = chance()
    few = [Demonstration(q, noise.choice(COLOURS)) for q in (*QUESTIONS, *ASKED)]
    held = [Demonstration(q, colour) for q in ASKED for colour in COLOURS]
    data = replace(toy_data(), demonstrations=Splits(few, held, held))
    return [sft_log(folder, data, epochs=60, validate_every=6)]


def follows_itself(folder: Path) -> list[Evidence]:
    """Policy and reference share their weights."""
    own = Learner.step

    def aliased(self: Learner, batch: Any, reference_BE: Tensor) -> dict[str, Tensor]:
        return own(self, batch, self.reference(self.policy, batch))

    with patch.object(Learner, "step", aliased):
        return [direct_log(folder)]


def never_moves(folder: Path) -> list[Evidence]:
    with stale(Policy):
        return [direct_log(folder)]


def too_fast(folder: Path) -> list[Evidence]:
    return [direct_log(folder, epochs=4, optim={"learning_rate": 3e-2, "schedule": "constant"})]


def trivial_pairs(folder: Path) -> list[Evidence]:
    pairs = [Preference(q, "blue", f"{thing} grass fire") for q in QUESTIONS for thing in COLOURS]
    data = replace(toy_data(), preferences=Splits(pairs * 40, pairs, pairs))
    return [direct_log(folder, data, epochs=1, optim={"learning_rate": 2e-4, "schedule": "constant"})]


def longer_is_better(folder: Path) -> list[Evidence]:
    pairs = [Preference(q, f"{a} {b} {a} {b} {a} {b}", a) for q in QUESTIONS for a in COLOURS for b in COLOURS]
    data = replace(toy_data(), preferences=Splits(pairs * 2, pairs, pairs))
    return [direct_log(folder, data, optim={"learning_rate": 1e-3, "schedule": "constant"})]


def learns_backwards(folder: Path) -> list[Evidence]:
    """The loss has the wrong sign."""
    own = Learner.pairs

    def negated(self: Learner, *given: Any, **named: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, logprobs_B, metrics = own(self, *given, **named)
        return -loss, logprobs_B, metrics

    with patch.object(Learner, "pairs", negated):
        return [direct_log(folder, epochs=4)]


# Faults in models.


def evaluates_on_train(folder: Path) -> list[Evidence]:
    with finished_runs.learnt_before(folder) as run:
        return finished_runs.looked_at(run)


def scored_in_training_mode(folder: Path) -> list[Evidence]:
    probe = reward_probe()
    with_dropout(probe.model.backbone.model)
    return [probe]


def head_has_died(folder: Path) -> list[Evidence]:
    probe = reward_probe()
    with torch.no_grad():
        probe.model.head.weight.zero_()
    return [probe]


def reads_a_pad(folder: Path) -> list[Evidence]:
    probe = reward_probe()
    probe.model.__class__ = LastColumn
    return [probe]


def without_head(folder: Path) -> list[Evidence]:
    probe = reward_probe(saved=folder)
    probe.model.save(folder)
    finished_runs.rewrite(folder, lambda tensors: tensors.pop("score.weight"))
    return [probe]


def trunk_lost(folder: Path) -> list[Evidence]:
    """The folder holds the trained head, and the trunk as it was before."""
    probe = reward_probe(saved=folder)
    probe.model.save(folder)
    before = load_file(sft_model() / "model.safetensors")
    finished_runs.rewrite(folder, lambda own: own.update({name: before[name] for name in own.keys() & before.keys()}))
    return [probe]


def head_drawn_anew(folder: Path) -> list[Evidence]:
    with finished_runs.head_drawn_anew(folder) as run:
        return finished_runs.looked_at(run)


def cannot_learn(folder: Path) -> list[Evidence]:
    probe = reward_probe(model=load_reward_model(sft_model(), head_seed=SEED.get(), max_length=32))
    probe.model.__class__ = CutOff
    return [probe]


def overflows(folder: Path) -> list[Evidence]:
    probe = policy_probe()
    in_fp16(probe.policy.model)
    return [probe]


def scores_overflow(folder: Path) -> list[Evidence]:
    probe = reward_probe()
    in_fp16(probe.model.backbone.model)
    return [probe]


def goes_on(folder: Path) -> list[Evidence]:
    """Weights overflow, and steps whose gradient is not finite are left out without a word."""
    with patch("assay.stages.loop.read", lambda step, measured: loop.on_host(measured)):
        return [sft_log(folder, optim={"learning_rate": 1e30})]


def masks_dropped(folder: Path) -> list[Evidence]:
    probe = policy_probe()
    probe.policy.backbone.__class__ = Unmasked
    return [probe]


def padded_on_the_right(folder: Path) -> list[Evidence]:
    return [prompt_batch("right")]


def checkpointed_again(folder: Path) -> list[Evidence]:
    probe = policy_probe()
    reentrant(probe.policy.model)
    return [probe]


def adapter_off(folder: Path) -> list[Evidence]:
    """SFT with an adapter; the reference is the backbone without it."""
    base = toy_model(folder / "base")
    config = SFTConfig(epochs=4, batch_size=16, max_length=32, lora=LORA, optim=OptimConfig(learning_rate=1e-2))
    sft.run(config, StageInputs(toy_data(), str(base)), memory(folder / "sft"))
    policy = load_policy(base, trainable=False)
    policy.backbone.adapters.load("policy", folder / "sft" / "adapter")
    policy.adapter = "policy"
    bare = Policy(policy.backbone, policy.tokenizer, source=policy.source)
    return [policy_probe(policy, reference=bare, sft=load_policy(folder / "sft", trainable=False))]


def learns_with_dropout(folder: Path) -> list[Evidence]:
    probe = policy_probe()
    with_dropout(probe.policy.model)
    return [probe]


def samples_from_another(folder: Path) -> list[Evidence]:
    """The sampler's weights are a little off."""
    probe, other = policy_probe(), a_little_off(str(sft_model()))
    return [replace(probe, engine=Engine(other, Renderer(other.tokenizer, max_length=32), max_batch=16))]


def untrained_token(folder: Path) -> list[Evidence]:
    """A marker is added to the vocabulary, its row left at zero, and every prompt begins with it."""
    policy = load_policy(sft_model())
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    policy.model.resize_token_embeddings(len(policy.tokenizer), mean_resizing=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().get_parameter("weight")[-1] = 0.0
    probe = policy_probe(policy, reference=None, sft=None)
    marker = len(policy.tokenizer) - 1
    return [replace(probe, rows=[Row([marker, *row.ids], row.prompt_length + 1) for row in probe.rows])]


def another_tokenizer(folder: Path) -> list[Evidence]:
    """The embedded model's words under other ids: rows and tokenizer know the new ones, the model the old."""
    policy = load_policy(locate("embedded"), trainable=False)
    policy.tokenizer = with_other_ids(policy.tokenizer)
    renderer = Renderer(policy.tokenizer, max_length=48)
    asked = [(question, " ".join(COLOURS)) for question in QUESTIONS]
    return [PolicyProbe(policy, [row for row in renderer.rows(asked) if row])]


def splits_unevenly(folder: Path) -> list[Evidence]:
    """Every micro-batch is averaged over its own tokens, and the averages are averaged."""
    probe = step_probe()

    def wrong(size: int | None) -> None:
        with mean_of_means(len(QUESTIONS)):
            probe.gradient(size)

    return [replace(probe, gradient=wrong)]


FAULTS: tuple[Fault, ...] = (
    Fault("reward-at-chance", "the optimizer has copies of the weights", at_chance),
    Fault("reward-at-chance", "no gradient goes through the scores", cannot_learn, finished_runs.no_gradient),
    Fault("accuracy-against-margin", "scores near 65, rounded to bf16", in_bf16),
    Fault("fluctuating-accuracy", "50 other pairs for every validation", few_pairs),
    Fault(
        "fluctuating-accuracy",
        "scores in training mode, with dropout",
        scored_in_training_mode,
        finished_runs.scored_with_dropout,
    ),
    Fault("padding-changes-score", "the score is read at the last column", reads_a_pad, finished_runs.reads_a_pad),
    Fault(
        "too-good-to-be-true",
        "the held-out pairs are those that are learnt",
        evaluates_on_train,
        finished_runs.learnt_before,
    ),
    Fault("head-lost", "the folder has no head", without_head, finished_runs.head_lost),
    Fault("head-lost", "the folder has the trunk as it was before the training", trunk_lost),
    Fault("head-lost", "the head in the folder was drawn anew", head_drawn_anew, finished_runs.head_drawn_anew),
    Fault("constant-scores", "the score is read at the end of the prompt", reads_the_prompt),
    Fault("constant-scores", "the head's weights are 0", head_has_died, finished_runs.dead_head),
    Fault("score-drift", "65 is added to every score", far_from_zero),
    Fault("not-finite", "fp16 with activations of 1e5", overflows, finished_runs.policy_overflows),
    Fault(
        "not-finite", "a reward model in fp16 with activations of 1e5", scores_overflow, finished_runs.reward_overflows
    ),
    Fault("not-finite", "a trainer that goes on after an overflow", goes_on),
    Fault("length-bias", "five points for every character", pays_for_length),
    Fault("overfitting", "one answer a question, sixty epochs", recites),
    Fault("loss-blow-up", "a thousand times the learning rate, without warmup", steps_too_long),
    Fault("stuck-at-ln2", "policy and reference share their weights", follows_itself),
    Fault("stuck-at-ln2", "the optimizer has copies of the weights", never_moves),
    Fault("swapped-labels", "the loss of DPO has the wrong sign", learns_backwards),
    Fault("chosen-falls", "a hundred times the learning rate", too_fast),
    Fault("saturated-early", "the rejected answer is always nonsense", trivial_pairs),
    Fault("length-growth", "the chosen answer is always the longer", longer_is_better),
    Fault(
        "mask-ignored",
        "neither mask nor positions of padded rows reach the model",
        masks_dropped,
        finished_runs.mask_ignored,
    ),
    Fault("right-padded-prompts", "the tokenizer pads on the right", padded_on_the_right, finished_runs.right_padded),
    Fault(
        "frozen-adapter-blocks",
        "re-entrant checkpointing of frozen inputs",
        checkpointed_again,
        finished_runs.frozen_blocks,
    ),
    Fault("wrong-reference", "the SFT adapter is off in the reference", adapter_off, finished_runs.wrong_reference),
    Fault("kl-before-training", "dropout of 0.1 in the policy", learns_with_dropout, finished_runs.learnt_with_dropout),
    Fault(
        "sampler-differs",
        "the sampler's weights are off by half of their spread",
        samples_from_another,
        finished_runs.sampler_differs,
    ),
    Fault("tokenizer-mismatch", "a new token whose row is zero", untrained_token, finished_runs.untrained_token),
    Fault("tokenizer-mismatch", "the same words under other ids", another_tokenizer, finished_runs.other_ids),
    Fault(
        "accumulation-bias", "the mean of the micro-batches' means", splits_unevenly, finished_runs.accumulation_bias
    ),
)
