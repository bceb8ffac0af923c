"""Around the updates of a policy that learns from its own samples: what PPO and the group methods share.

for iteration in online.iterations():
    rollouts = online.sample(online.prompts(iteration), "episodes", iteration)
    …the method: advantages, updates…
    online.finish(iteration, rollouts, measured)
return online.report()
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms import masked, policy_loss
from assay.algorithms.advantages import missing_eos_scores
from assay.algorithms.kl import AdaptiveKL, FixedKL, ScheduledKL, k1, sequence_kl
from assay.models.roles import SamplingRoles
from assay.rewards.learned import LearnedReward
from assay.rollout import collect, guard
from assay.rollout.collect import Rollouts
from assay.rollout.engine import Engine
from assay.stages import compared, loop
from assay.stages.config.policy import SamplingStageConfig
from assay.stages.context import Progress, RunContext, StageInputs
from assay.types import Prompt

EXACT = 1e-5
"""Nats within which two log-probabilities of a token are the same number, rounded in another order."""
RAISE, LEAST_KL_COEF = 2.0, 0.05
"""Of β, with every correction: twice what it was, and at least the default."""


@dataclass
class State:
    """What a checkpoint keeps besides weights and optimizer moments."""

    kl_coef: float
    reward_mean: float | None = None
    """Mean and deviation of the SFT policy's own scores: training sees (score - mean) / deviation."""
    reward_std: float = 1.0
    seconds: float = 0.0
    episodes: int = 0
    entropy_before: float = 0.0
    value_loss_first: float = 0.0
    first_ratio_error: float | None = None
    """Before any policy update there is none."""
    sampler_exact: bool = False
    """Whether the sampler's log-probabilities were the trainer's own when last compared."""
    sampler_error: float = 0.0
    sampler_kl: float = 0.0
    kl_z_min: float = 0.0
    samples: int = 0
    """Answers sampled to learn from, those that were set aside and a greedy baseline's included."""
    last: dict[str, float] = field(default_factory=dict)
    """What the last iteration measured."""

    def remember(self, measured: Mapping[str, float], episodes: int) -> None:
        """Take note of one iteration."""
        if self.episodes == 0:
            self.entropy_before = measured["objective/entropy"]
            self.value_loss_first = measured.get("val/loss_first", 0.0)
        self.last = dict(measured)
        self.episodes += episodes
        self.seconds += episodes / measured["train/episodes_per_s"]
        if "policy/ratio_first_error" in measured:
            self.first_ratio_error = max(self.first_ratio_error or 0.0, measured["policy/ratio_first_error"])
        self.sampler_error = max(self.sampler_error, measured.get("val/sampler_error", 0.0))
        self.sampler_kl = max(self.sampler_kl, measured.get("val/sampler_kl", 0.0))
        self.kl_z_min = min(self.kl_z_min, measured["objective/kl_z"])


class Online:
    """Samples, evaluates, keeps the best policy and the checkpoints; the method itself is the stage's."""

    def __init__(
        self,
        config: SamplingStageConfig,
        inputs: StageInputs,
        ctx: RunContext,
        roles: SamplingRoles,
        optimizers: Mapping[str, loop.Optimizer],
    ) -> None:
        self.config, self.inputs, self.ctx = config, inputs, ctx
        self.roles, self.optimizers = roles, optimizers
        renderer = roles.policy.renderer(inputs.template, config.max_length)
        rows = config.decode_batch or config.batch_size
        self.engine = Engine(roles.policy, renderer, max_batch=rows)
        self.sampler = Engine(roles.policy, renderer, max_batch=rows, weights=config.rollout_weights)
        self.reward = LearnedReward(roles.reward, batch_size=config.batch_size)
        prompts = inputs.data.prompts
        self.validation, self.test = prompts.validation[: config.evaluation_prompts], prompts.test
        self.before = self.sample(self.validation, "validation")  # the policy still is the SFT model
        self.before_test = self.sample(self.test, "test")
        self.start, self.best, saved = loop.restore(ctx, optimizers)
        self.state = State(**saved) if saved else self._fresh_state()
        self.done = self.start
        self.state.kl_coef = raised(self.state.kl_coef, ctx.remedy.here)
        if ctx.remedy.here:
            self.best = loop.Best()  # what was best when the KL cost too little may be what went wrong
        self.penalty = kl_controller(config, self.state.kl_coef, self.start)
        self.began = time.perf_counter()

    def _fresh_state(self) -> State:
        """Before training the policy is its own reference: each sample has been read by sampler and trainer."""
        sampled, mask_BR = self.before, self.before.mask_BR
        error = policy_loss.mismatch(sampled.logprobs_BR, sampled.reference_BR, mask_BR)["error"].item()
        exact = self.config.rollout_weights == "trained" and error <= EXACT
        return State(self.config.kl_coef, sampler_exact=exact, sampler_error=error)

    def sample(self, prompts: Sequence[Prompt], *purpose: str | int) -> Rollouts:
        """One response to each prompt, scored, with the reference's log-probabilities.

        What is evaluated is the policy itself, whatever the episodes are sampled from.
        """
        learnt_from = purpose[0] == "episodes"
        if learnt_from:
            self.state.samples += len(prompts)
        return collect.collect(
            self.sampler if learnt_from else self.engine,
            prompts,
            self.config.sampling,
            seed=rng.derive(self.ctx.seed, *purpose),
            reward=self.reward,
            reference=self.roles.reference,
            micro_batch_size=self.config.micro_batch_size or self.config.batch_size,
        )

    def iterations(self, progress: Progress) -> Iterator[int]:
        """Numbers of the iterations still to do; ends early when `patience` has run out."""
        self.progress = progress
        for iteration in range(self.start, self.config.iterations):
            if self.config.patience and self.best.evaluations_since >= self.config.patience:
                return  # asked here, not after the yield: a run that was killed on its last page must not go on either
            self.began = time.perf_counter()
            yield iteration

    def prompts(self, iteration: int, count: int) -> list[Prompt]:
        """The training prompts of one iteration."""
        return loop.pick(self.inputs.data.prompts.train, count, iteration, self.ctx.seed)

    def observe(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Scores in the unit of reward [B], old log-probabilities and their k1 to the reference [B, R], and metrics."""
        mask_BR = rollouts.mask_BR
        scores_B = self.scores(rollouts)
        old_BR, compared_with_sampler = self.old_logprobs(rollouts)
        kl_BR = k1(old_BR, rollouts.reference_BR)
        kl_B, lengths_B = sequence_kl(kl_BR, mask_BR), mask_BR.sum(1).float()
        # Rounding, if that is more: before the first update the KL is nothing else, and may well be of one sign.
        kl_error = torch.maximum(kl_B.std() / len(kl_B) ** 0.5, EXACT * lengths_B.mean())
        return (
            scores_B,
            old_BR,
            kl_BR,
            {
                "objective/reward": scores_B.mean().item(),
                "objective/reward_std": scores_B.std(correction=0).item(),
                "objective/score": rollouts.scores_B.mean().item(),
                "objective/kl": kl_B.mean().item(),
                "objective/kl_z": (kl_B.mean() / kl_error).item(),
                "objective/kl_coef": self.penalty.coef,
                "objective/entropy": -masked.masked_mean(old_BR, mask_BR).item(),  # E[−log π] is the entropy
                **compared_with_sampler,
                "lengths/response_mean": lengths_B.mean().item(),
                "lengths/truncated": 1 - rollouts.finished_B.float().mean().item(),
                "lengths/empty": rollouts.empty_B.float().mean().item(),
                "lengths/prompts_cut": rollouts.cut_B.float().mean().item(),
                "text/repetition": rollouts.repetition(),
                **(guard.metrics([guard.inspect(c) for c in rollouts.completions]) if self.config.guard else {}),
            },
        )

    @property
    def compares(self) -> bool:
        """Whether the trainer reads this iteration's samples too: until both agree, and again with every evaluation."""
        return not self.state.sampler_exact or (self.done + 1) % self.config.evaluate_every == 0

    def old_logprobs(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """What the ratios of this iteration's updates start from, [B, R], and how far the sampler is from it.

        The sampler's own numbers where they were the trainer's when last compared; else, and with every evaluation,
        the path that is trained reads the samples once more, for a cache adds its own rounding.
        """
        config, policy, mask_BR = self.config, self.roles.policy, rollouts.mask_BR
        if not self.compares:
            return rollouts.logprobs_BR, {}
        with torch.no_grad():
            old_BR = collect.over_rows(
                lambda batch: policy.logprobs(batch, temperature=config.sampling.temperature).logprobs_BR,
                rollouts.rows,
                policy.backbone,
                policy.pad_id,
                config.micro_batch_size,
            )
        mismatch = policy_loss.mismatch(rollouts.logprobs_BR, old_BR, mask_BR)
        self.state.sampler_exact = config.rollout_weights == "trained" and mismatch["error"].item() <= EXACT
        return old_BR, {f"val/sampler_{name}": apart.item() for name, apart in mismatch.items()}

    def scores(self, rollouts: Rollouts) -> Tensor:
        """Scores in the unit of reward, which the SFT policy's own first scores set, [B]."""
        state = self.state
        if state.reward_mean is None:
            state.reward_mean = rollouts.scores_B.mean().item()
            state.reward_std = max(rollouts.scores_B.std(correction=0).item(), 1e-3)
        return self.in_units(rollouts.scores_B, rollouts.finished_B & ~rollouts.empty_B)

    def in_units(self, scores_B: Tensor, answered_B: Tensor) -> Tensor:
        """Scores in the unit of reward, with the rule for responses without an end or without text, [B]."""
        assert self.state.reward_mean is not None
        normalised_B = (scores_B - self.state.reward_mean) / self.state.reward_std
        config = self.config
        return missing_eos_scores(normalised_B, answered_B, rule=config.missing_eos, penalty=config.missing_eos_penalty)

    def greedy_scores(self, prompts: Sequence[Prompt]) -> Tensor:
        """For each prompt the score of the policy's likeliest response, in the unit of reward, [B] (ReMax)."""
        unique = list(dict.fromkeys(prompts))
        self.state.samples += len(unique)
        greedy = self.config.sampling.model_copy(update={"temperature": 0.0})
        answers = collect.sample(self.sampler, unique, greedy, seed=0)
        scores = self.reward(unique, [g.text for g in answers], [g.finish for g in answers])
        answered = [g.finish == "stop" and bool(g.text) for g in answers]
        scores_B = self.in_units(torch.tensor(scores), torch.tensor(answered))
        positions = {prompt: i for i, prompt in enumerate(unique)}
        return scores_B[[positions[prompt] for prompt in prompts]].to(self.ctx.device)

    def finish(self, iteration: int, rollouts: Rollouts, measured: dict[str, float]) -> None:
        """After the updates of one iteration: β, evaluation, log and checkpoint when due. Stops when asked to."""
        config, ctx, episodes = self.config, self.ctx, len(rollouts.rows)
        self.penalty = self.penalty.update(measured["objective/kl"], episodes)
        measured["train/episodes_per_s"] = episodes / (time.perf_counter() - self.began)
        self.state.remember(measured, episodes)
        self.state.kl_coef = self.penalty.coef
        if self.inputs.truth:
            measured["objective/truth"] = loop.mean(self.inputs.truth(rollouts.prompts, rollouts.texts))

        self.done = done = iteration + 1
        if done % config.evaluate_every == 0 or done == config.iterations:
            after = self.sample(self.validation, "validation")
            measured |= loop.numbers(compared.compare(self.before, after, self.inputs), prefix="eval/")
            gain = (measured["eval/reward_after"] - measured["eval/reward_before"]) / self.state.reward_std
            price = raised(config.kl_coef, ctx.remedy.times)
            self.best.offer(gain - price * measured["eval/kl"], done, self.roles.policy.parameters_trained())
        ctx.log(done, measured)
        self.progress.update(done, f"reward {measured['objective/reward']:+.2f}, KL {measured['objective/kl']:.2f}")
        every, total = config.checkpoint_every, config.iterations
        loop.finish_iteration(ctx, self.optimizers, done, total, every, self.best, asdict(self.state))

    def report(self) -> dict[str, Any]:
        """Save the best policy; compare it with the SFT model on the test prompts, and tell how training went."""
        self.best.put_back(self.roles.policy.parameters_trained())
        self.roles.policy.save(self.ctx.folder)
        after = self.sample(self.test, "test")
        self.ctx.samples(self.config.iterations, compared.side_by_side(self.before_test, after, self.inputs))
        return {
            **compared.compare(self.before_test, after, self.inputs),
            "kl_target": self.config.kl_target,
            "kl_z_min": self.state.kl_z_min,
            "entropy_before": self.state.entropy_before,
            "entropy_after": self.state.last["objective/entropy"],
            "first_ratio_error": self.state.first_ratio_error,
            "sampler_error": self.state.sampler_error,
            "sampler_kl": self.state.sampler_kl,
            "importance_cap": self.config.importance_cap,
            "best_iteration": self.best.iteration,
            "reward_mean": self.state.reward_mean,
            "reward_std": self.state.reward_std,
            "episodes": self.state.episodes,
            "samples": self.state.samples,
            "episodes_per_s": self.state.episodes / self.state.seconds,
        }


def raised(kl_coef: float, times: int) -> float:
    """β after so many corrections."""
    for _ in range(times):
        kl_coef = max(LEAST_KL_COEF, RAISE * kl_coef)
    return kl_coef


def kl_controller(config: SamplingStageConfig, coef: float, done: int) -> FixedKL | AdaptiveKL | ScheduledKL:
    """How β moves from here on."""
    if config.kl_target is not None:
        return AdaptiveKL(coef, config.kl_target, config.kl_horizon)
    if config.kl_final is not None:
        return ScheduledKL(coef, config.kl_final, config.iterations - 1 - done)
    return FixedKL(coef)
