"""Best-of-n: sample several answers to each prompt, and keep the one that the reward model likes best.

    prompts + SFT policy + reward model  →  what the best of n is worth, and its KL, for n = 1, 2, 4 … (rounds: 0)
                                         →  policy fine-tuned on its own best answers (rounds ≥ 1)

    each round:  sample `answers` a prompt from the newest policy → keep the best → imitate it

Sources: best-of-n, WebGPT (arXiv 2112.09332), sec. 3.2; rounds, RAFT (2304.06767), alg. 1.
Formulas: algorithms/bestof.py. Tensors are [P, K]: P prompts, K answers to each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms import bestof
from assay.errors import DataError, TrainingError
from assay.models.roles import SamplingRoles, sampling_roles
from assay.rewards.learned import LearnedReward
from assay.rollout import collect
from assay.rollout.collect import Rollouts
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.stages import compared, loop
from assay.stages.causal import imitate
from assay.stages.config import BestOfConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Prompt

FRONTIER = ("reward", "truth", "kl", "kl_bound", "win_rate", "harmful_refusal_after", "over_refusal_after")
"""What the metrics keep of every n, with its interval where it has one."""


@dataclass(frozen=True, slots=True)
class Answers:
    """K scored answers to each of P prompts."""

    generations: list[list[Generation]]
    scores_PK: Tensor

    @property
    def order_PK(self) -> Tensor:
        """What "best" means: the score, but an answer that is empty or cut off only where there is no other.

        A reward model has seen neither, and an answer without its end would teach the policy not to stop.
        """
        return self.scores_PK.where(self.whole_PK, -torch.inf)

    @property
    def whole_PK(self) -> Tensor:
        """True where the answer has text and ended by itself."""
        return torch.tensor([[g.whole for g in row] for row in self.generations])

    @property
    def logprobs_PK(self) -> Tensor:
        """log π of each whole answer, nats."""
        return torch.tensor([[sum(g.logprobs) for g in row] for row in self.generations], dtype=torch.float64)

    def best(self, n: int) -> Rollouts:
        """The best of the first n answers to each prompt."""
        index_P = self.order_PK[:, :n].argmax(1)
        kept = [row[k] for row, k in zip(self.generations, index_P.tolist(), strict=True)]
        return Rollouts.of(kept, self.scores_PK.gather(1, index_P[:, None]).squeeze(1).tolist())


Sample = Callable[..., Answers]
"""(prompts, answers to each, what for) → answers of the policy as it is now."""


def run(config: BestOfConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    if inputs.reward is None:
        raise DataError("bestof has no reward model", hint="put a reward stage before it, or set bestof.reward")
    roles = sampling_roles(
        inputs.base,
        inputs.reward,
        config.lora,
        trainable=config.rounds > 0,
        template=inputs.template,
        max_length=config.max_length,
        device=ctx.device,
        seed=ctx.seed,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    renderer = roles.policy.renderer(inputs.template, config.max_length)
    engine = Engine(roles.policy, renderer, max_batch=config.decode_batch)
    reward = LearnedReward(roles.reward, batch_size=config.decode_batch)

    def sample(prompts: Sequence[Prompt], count: int, *purpose: str | int) -> Answers:
        asked = [prompt for prompt in prompts for _ in range(count)]
        drawn = collect.sample(engine, asked, config.sampling, rng.derive(ctx.seed, *purpose))
        scores = reward(asked, [g.text for g in drawn], [g.finish for g in drawn])
        rows = [drawn[start : start + count] for start in range(0, len(drawn), count)]
        return Answers(rows, torch.tensor(scores).view(-1, count))

    if config.rounds == 0:
        return measure(sample, config, inputs, ctx)
    collected = partial(
        collect.collect,
        engine,
        params=config.sampling,
        reward=reward,
        reference=roles.reference,
        micro_batch_size=config.micro_batch_size,
    )
    return fine_tune(roles, sample, collected, config, inputs, ctx)


def measure(sample: Sample, config: BestOfConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    """Best-of-n as a policy, for growing n, against single answers that were drawn apart from it."""
    test = inputs.data.prompts.test
    single = sample(test, 1, "single").best(1)
    answers = sample(test, config.answers, "answers")
    truths_PK = true_worth(answers, inputs)
    metrics: dict[str, Any] = {}
    for n in powers_of_two(config.answers):
        best = answers.best(n)
        report = {
            **compared.compare(single, best, inputs),
            **inputs.mean("kl", bestof.sampled_kl(answers.order_PK, answers.logprobs_PK, n).tolist()),
            "kl_bound": bestof.kl_bound(n),
            **inputs.mean("reward", bestof.expected_best_of_n(answers.order_PK, answers.scores_PK, n).tolist()),
        }
        if truths_PK is not None:
            report |= inputs.mean("truth", bestof.expected_best_of_n(answers.order_PK, truths_PK, n).tolist())
        ctx.log(n, loop.numbers(report, prefix="eval/"))
        names = [f"{name}{end}" for name in FRONTIER for end in ("", "_low", "_high")]
        metrics |= {f"best_of_{n}/{name}": report[name] for name in names if name in report}
    ctx.samples(config.answers, compared.side_by_side(single, best, inputs))
    return {**report, **metrics, "n": config.answers, "episodes": len(test) * (config.answers + 1)}


def fine_tune(
    roles: SamplingRoles,
    sample: Sample,
    collected: Callable[..., Rollouts],
    config: BestOfConfig,
    inputs: StageInputs,
    ctx: RunContext,
) -> dict[str, Any]:
    """Rounds of imitating the best of one's own answers."""
    policy, prompts = roles.policy, inputs.data.prompts
    test, validation = prompts.test, prompts.validation[: config.evaluation_prompts]
    seeds = {name: rng.derive(ctx.seed, name) for name in ("validation", "test")}
    before = collected(validation, seed=seeds["validation"])  # the policy still is the SFT model
    before_test = collected(test, seed=seeds["test"])

    updates = config.epochs * math.ceil(config.prompts / config.batch_size)
    optimizer = loop.Optimizer(policy.parameters_trained(), config.optim, config.rounds * updates)
    start, state = loop.resume(ctx, optimizer)
    measured: dict[str, float] = {}
    with ctx.progress(config.rounds, "bestof") as progress:
        for done in range(start + 1, config.rounds + 1):
            asked = loop.pick(prompts.train, config.prompts, done - 1, ctx.seed)
            answers = sample(asked, config.answers, "answers", done)
            best = answers.best(config.answers)
            rows = [row for row, whole in zip(best.rows, answers.whole_PK.any(1), strict=True) if whole]
            if not rows:
                raise TrainingError(
                    f"no answer of round {done} ended within {config.sampling.max_new_tokens} tokens",
                    hint="raise sampling.max_new_tokens, or start from a model that was fine-tuned on answers",
                )
            losses = []
            plan = loop.plan(
                [len(row.ids) for row in rows], config.batch_size, config.epochs, rng.derive(ctx.seed, done)
            )
            for step, batch in enumerate(plan, start=(done - 1) * updates):
                loss = imitate(policy, [rows[i] for i in batch], config.micro_batch_size, ctx.device)
                moved = loop.read(step, {"loss": loss, **optimizer.update(step)})
                losses.append(moved["loss"])
            measured = {
                **loop.named("train/", moved),
                "train/loss": loop.mean(losses),
                "objective/score": answers.scores_PK.mean().item(),
                "objective/best_score": best.scores_B.mean().item(),
                "objective/kept": len(rows) / len(asked),
            }
            truths_PK = true_worth(answers, inputs)
            if truths_PK is not None:
                measured["objective/truth"] = truths_PK.mean().item()
            after = collected(validation, seed=seeds["validation"])
            measured |= loop.numbers(compared.compare(before, after, inputs), prefix="eval/")
            ctx.log(done, measured)
            progress.update(done, f"reward {measured['objective/score']:+.2f}, KL {measured['eval/kl']:.2f}")
            state = {"loss_first": state.get("loss_first", losses[0]), "loss_last": losses[-1]}
            loop.finish_step(ctx, optimizer, done, config.rounds, config.checkpoint_every, state)

    policy.save(ctx.folder)
    after_test = collected(test, seed=seeds["test"])
    ctx.samples(config.rounds, compared.side_by_side(before_test, after_test, inputs))
    episodes = config.rounds * config.prompts * config.answers
    return {**compared.compare(before_test, after_test, inputs), **state, "n": config.answers, "episodes": episodes}


def true_worth(answers: Answers, inputs: StageInputs) -> Tensor | None:
    """What the answers are really worth, where that is known, [P, K]."""
    if inputs.truth is None:
        return None
    flat = [g for row in answers.generations for g in row]
    return torch.tensor(inputs.truth([g.prompt for g in flat], [g.text for g in flat])).view_as(answers.scores_PK)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4 … up to and including `largest`, a power of two or not."""
    return [*(2**k for k in range((largest - 1).bit_length())), largest]
