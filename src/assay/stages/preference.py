"""Direct preference optimisation: a policy straight from comparisons (DPO and its family).

    pairs, or single verdicts (KTO), + SFT policy  →  aligned policy

    offline     passes over the data's comparisons; the best weights by validation loss are kept
    `rounds`    each round: the policy answers → the reward model labels → the policy learns  (iterative, online DPO)

Sources: DPO (arXiv 2305.18290); with the policy's own answers, 2402.04792. Update: stages/direct.py.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assay import rng
from assay.data.records import write_whole
from assay.data.render import Renderer
from assay.data.split import part_of
from assay.data.stored import Lazily, digest_of
from assay.data.tokens import render
from assay.errors import DataError
from assay.models.backbone import drop_dropout
from assay.models.roles import Policy, load_policy, load_reward_model
from assay.rewards import RewardFn
from assay.rewards.learned import LearnedReward
from assay.rollout import collect
from assay.rollout.collect import Rollouts
from assay.rollout.engine import Engine
from assay.stages import compared, loop
from assay.stages.config import PreferenceConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.direct import Example, Learner, examples_of, plan
from assay.types import Prompt


def run(config: PreferenceConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    policy = load_policy(
        inputs.base,
        lora=config.lora,
        device=ctx.device,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=ctx.seed,
    )
    drop_dropout(policy.model)  # or the policy would not start as its reference
    policy.model.train(config.gradient_checkpointing)
    renderer = policy.renderer(inputs.template, config.max_length)
    engine = Engine(policy, renderer, max_batch=config.decode_batch or config.batch_size)
    reward = reward_of(config, inputs, ctx)

    def answer(reference: Policy) -> Rollouts:
        return collect.collect(
            engine,
            inputs.data.prompts.test,
            config.sampling,
            seed=rng.derive(ctx.seed, "test"),
            reward=reward,
            reference=reference,
            micro_batch_size=config.micro_batch_size,
        )

    before = answer(policy)  # it still is its own reference
    learner = Learner(policy, config, ctx.device)
    if config.rounds:
        report = learn_in_rounds(learner, engine, reward, inputs, ctx)
    else:
        report = learn(learner, renderer, inputs, ctx)
    policy.save(ctx.folder)
    after = answer(reference_of(policy, ctx.device))
    ctx.samples(report["steps"], compared.side_by_side(before, after, inputs))
    return {**compared.compare(before, after, inputs), **report}


def reward_of(config: PreferenceConfig, inputs: StageInputs, ctx: RunContext) -> RewardFn:
    """The reward model; where there is none, nobody knows what an answer is worth."""
    if inputs.reward is None:
        return lambda prompts, responses, finishes: [math.nan] * len(responses)
    model = load_reward_model(
        inputs.reward, trainable=False, template=inputs.template, max_length=config.max_length, device=ctx.device
    )
    return LearnedReward(model, batch_size=config.batch_size)


def reference_of(policy: Policy, device: str) -> Policy:
    """The policy before it learnt: with LoRA the backbone without the adapter, else the base, loaded once more."""
    if policy.adapter:
        return Policy(policy.backbone, policy.tokenizer, source=policy.source)
    return load_policy(policy.source, trainable=False, device=device)


def learn(learner: Learner, renderer: Renderer, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    """Passes over the data's comparisons; ends with the best weights by validation loss."""
    config, parameters = learner.config, learner.policy.parameters_trained()
    train, held_out = (data_examples(renderer, inputs, split, config, ctx.seed) for split in ("train", "validation"))
    if not train:
        raise DataError("no comparison fits the context", hint=f"raise preference.max_length ({config.max_length})")
    reference_NE, held_out_NE = (reference_logprobs(learner, some, inputs.cache) for some in (train, held_out))
    validate = torch.no_grad()(lambda: loop.on_host(learner.step(held_out, held_out_NE)) if held_out else {})

    steps = plan(train, config, ctx.seed)
    optimizer = loop.Optimizer(parameters, config.optim, len(steps))
    start, best, state = loop.restore(ctx, {"policy": optimizer})
    state = state or {"first": validate()}
    with ctx.progress(len(steps), "preference") as progress:
        for step in range(start, len(steps)):
            rows = steps[step]
            measured = update(learner, optimizer, [train[i] for i in rows], reference_NE[rows], step)
            done = step + 1
            measured |= loop.cursor(rows, done, steps, config.epochs)
            if held_out and (done % config.validate_every == 0 or done == len(steps)):
                held = validate()
                measured |= loop.numbers(held, prefix="eval/")
                best.offer(-held["loss"], done, parameters)
                state["last"] = held if best.iteration == done else state["last"]
            state.setdefault("loss_first", measured["train/loss"])
            ctx.log(done, measured)
            progress.update(done, f"loss {measured['train/loss']:.3f}, accuracy {measured['train/accuracy']:.2f}")
            loop.finish_iteration(ctx, {"policy": optimizer}, done, len(steps), config.checkpoint_every, best, state)

    if held_out:
        best.put_back(parameters)
    return {
        "examples": len(train),
        "steps": len(steps),
        "best_step": best.iteration or len(steps),
        "loss_first": state["loss_first"],
        "loss_last": measured["train/loss"],
        **{f"validation_{name}_before": value for name, value in state["first"].items()},
        **{f"validation_{name}": value for name, value in state.get("last", {}).items()},
    }


def learn_in_rounds(
    learner: Learner, engine: Engine, reward: RewardFn, inputs: StageInputs, ctx: RunContext
) -> dict[str, Any]:
    """The policy's own answers, the best to each prompt against the worst; ends with the last weights."""
    config = learner.config
    each = 1 if config.paired else 2  # examples a prompt
    steps = config.epochs * math.ceil(config.round_prompts * each / config.batch_size)
    optimizer = loop.Optimizer(learner.policy.parameters_trained(), config.optim, config.rounds * steps)
    start, best, state = loop.restore(ctx, {"policy": optimizer})
    reference = reference_of(learner.policy, ctx.device)
    with ctx.progress(config.rounds, "preference") as progress:
        for number in range(start, config.rounds):
            seed = rng.derive(ctx.seed, "round", number)
            prompts = loop.pick(inputs.data.prompts.train, config.round_prompts, number, ctx.seed)
            examples, measured = compare_answers(engine, prompts, reward, inputs, config, seed)
            reference_NE = learner.reference(reference, examples)
            for index, rows in enumerate(plan(examples, config, seed)):
                step = number * steps + index
                measured |= update(learner, optimizer, [examples[i] for i in rows], reference_NE[rows], step)
            state = {"examples": state.get("examples", 0) + len(examples), "last": measured}
            ctx.log(number + 1, measured)
            progress.update(number + 1, f"reward {measured['objective/reward']:+.2f}")
            every = max(1, config.checkpoint_every // steps)
            loop.finish_iteration(ctx, {"policy": optimizer}, number + 1, config.rounds, every, best, state)
    return {"examples": state["examples"], "steps": config.rounds * steps, "loss_last": state["last"].get("train/loss")}


def compare_answers(
    engine: Engine,
    prompts: Sequence[Prompt],
    reward: RewardFn,
    inputs: StageInputs,
    config: PreferenceConfig,
    seed: int,
) -> tuple[Sequence[Example], dict[str, float]]:
    """Several answers to each prompt, the best beside the worst; where all score alike, nothing is learnt."""
    asked = [prompt for prompt in prompts for _ in range(config.answers)]
    given = collect.sample(engine, asked, config.sampling, seed)
    texts = [answer.text for answer in given]
    scores = reward(asked, texts, [answer.finish for answer in given])
    pairs = []
    for start in range(0, len(asked), config.answers):
        worst, *_, best = sorted(range(start, start + config.answers), key=lambda i: (given[i].whole, scores[i]))
        if given[best].whole and scores[best] > scores[worst]:
            pairs.append((given[best].row, given[worst].row))
    measured = {"objective/reward": loop.mean(scores), "objective/compared": len(pairs) / len(prompts)}
    if inputs.truth:
        measured["objective/truth"] = loop.mean(inputs.truth(asked, texts))
    return examples_of(pairs, [], config, seed), measured


def data_examples(
    renderer: Renderer, inputs: StageInputs, split: str, config: PreferenceConfig, seed: int
) -> Sequence[Example]:
    """The examples of one split that leave at least one label of each answer within the context."""
    part = config.part if split == "train" else (1, 1)
    pairs = render(renderer, part_of(getattr(inputs.data.preferences, split), part), inputs.cache)
    both = np.flatnonzero(pairs.counts() == 2)
    verdicts = part_of(getattr(inputs.data.verdicts, split), part)
    judged = render(renderer, verdicts, inputs.cache)
    return examples_of(
        Lazily(both, pairs.of, pairs.tokens()[both]),  # pyright: ignore[reportArgumentType]
        Lazily(np.flatnonzero(judged.lengths), lambda number: (judged.rows[number], verdicts[number].good)),  # pyright: ignore[reportArgumentType]
        config,
        seed,
    )


def reference_logprobs(learner: Learner, examples: Sequence[Example], cache: Path | None) -> Tensor:
    """[N, 2] under the policy, which is called before its first update.

    They are kept under the hash of the model and the rows that they follow from, so that a run with another β or
    another loss over the same rows finds them again, as a resumed one does.
    """
    if cache is None or not learner.config.reference:
        return learner.reference(learner.policy, examples)
    lines = (np.array(_numbers(example), np.int64).tobytes() for example in examples)
    stored = cache / f"{digest_of(itertools.chain([learner.policy.identity.encode()], lines))}.safetensors"
    try:
        return load_file(stored)["logprobs"]
    except (OSError, SafetensorError, KeyError):  # not there, or not whole
        logprobs_NE = learner.reference(learner.policy, examples)
        write_whole(stored, lambda partial: save_file({"logprobs": logprobs_NE}, partial))
        return logprobs_NE


def _numbers(example: Example) -> list[int]:
    """An example's rows in numbers that say where each ends."""
    return [n for row in (example.row, example.other) for n in (row.prompt_length, len(row.ids), *row.ids)]


def update(
    learner: Learner, optimizer: loop.Optimizer, batch: Sequence[Example], reference_BE: Tensor, step: int
) -> dict[str, float]:
    """One optimizer step; its metrics for the log."""
    began = time.perf_counter()
    sums = learner.step(batch, reference_BE)
    measured = loop.read(step, {**sums, **optimizer.update(step)})
    measured["examples_per_s"] = len(batch) / (time.perf_counter() - began)
    return loop.named("train/", measured)
