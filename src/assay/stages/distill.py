"""Distillation: a student learns the next-token distributions of a teacher.

    teacher + base model + prompts (and demonstrations)  →  student

    each step:  the student samples some texts, the others are demonstrations or the teacher's samples
                → at every token of all of them, the divergence of the two distributions

On its own samples a student meets the mistakes that it makes and that nobody demonstrates. Source: GKD (arXiv
2306.13649), alg. 1; MiniLLM (2306.08543). Formulas: algorithms/distill_loss.py. Tensors are [B, R]: B texts, R tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay import rng
from assay.algorithms.distill_loss import Divergence, forward_kl, jensen_shannon, reverse_kl, token_divergence
from assay.algorithms.masked import masked_mean
from assay.data.pack import TokenBatch, collate
from assay.data.render import Row
from assay.data.tokens import render
from assay.errors import DataError, ModelError
from assay.models.load import load_tokenizer
from assay.models.locate import locate
from assay.models.roles import Policy, load_policy
from assay.rollout import collect
from assay.rollout.collect import Rollouts
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.stages import compared, loop
from assay.stages.config import DistillConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Prompt


def run(config: DistillConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    student, teacher = load_pair(config, inputs, ctx)
    divergence = divergence_of(config)
    renderer = student.renderer(inputs.template, config.max_length)
    at_once = config.decode_batch or config.batch_size
    engines = {policy: Engine(policy, renderer, max_batch=at_once) for policy in (student, teacher)}

    def sample(policy: Policy, prompts: Sequence[Prompt], *purpose: str | int) -> list[Generation]:
        return collect.sample(engines[policy], prompts, config.sampling, rng.derive(ctx.seed, *purpose))

    def sampled(policy: Policy, count: int, who: str, step: int) -> list[Row]:
        prompts = loop.pick(inputs.data.prompts.train, count, step, ctx.seed) if count else []
        return [generation.row for generation in sample(policy, prompts, who, step)]

    demonstrated = render(renderer, inputs.data.demonstrations.train, inputs.cache).whole()
    own, others = config.own, config.batch_size - config.own
    if others and config.off_policy == "demonstrations" and not demonstrated:
        raise DataError(
            "distill has no demonstrations to learn from", hint="set distill.off_policy=teacher, or distill.on_policy=1"
        )

    def texts(step: int) -> list[Row]:
        """What an optimizer step learns from."""
        if config.off_policy == "teacher":
            return sampled(student, own, "student", step) + sampled(teacher, others, "teacher", step)
        shown = loop.pick(demonstrated, others, step, ctx.seed) if others else []
        return sampled(student, own, "student", step) + shown

    test = inputs.data.prompts.test
    size = config.micro_batch_size
    before = sample(student, test, "test")
    kl_before = teacher_kl(student, teacher, before, size)
    steps = max(1, config.sequences // config.batch_size)
    optimizer = loop.Optimizer(student.parameters_trained(), config.optim, steps)
    start, state = loop.resume(ctx, optimizer)
    with ctx.progress(steps, "distill") as progress:
        for step in range(start, steps):
            began = time.perf_counter()
            rows = texts(step)
            loop.seed_dropout(ctx.seed, step)
            student.train()
            nats = imitate_teacher(student, teacher, rows, divergence, config, ctx.device)
            measured = loop.read(step, {"loss": nats, **optimizer.update(step)})
            done, loss = step + 1, measured["loss"]
            speed = sum(len(row.ids) for row in rows) / (time.perf_counter() - began)
            ctx.log(done, {**loop.named("train/", measured), "train/tokens_per_s": speed})
            progress.update(done, f"divergence {loss:.3f}")
            state = {"loss_first": state.get("loss_first", loss), "loss_last": loss}
            loop.finish_step(ctx, optimizer, done, steps, config.checkpoint_every, state)

    student.save(ctx.folder)
    after = sample(student, test, "test")
    ctx.samples(steps, compared.side_by_side(unscored(before), unscored(after), inputs))
    report = {"teacher_kl_before": kl_before, "teacher_kl_after": teacher_kl(student, teacher, after, size)}
    report["prompts_cut"] = sum(g.cut for g in after)
    if inputs.evaluate_policy:
        report |= inputs.evaluate_policy([g.completion for g in before], [g.completion for g in after])
    return {**report, **state, "steps": steps, "sequences": steps * config.batch_size}


def load_pair(config: DistillConfig, inputs: StageInputs, ctx: RunContext) -> tuple[Policy, Policy]:
    """Student and frozen teacher. ModelError, before any weight is loaded, where their tokens do not mean the same."""
    if inputs.teacher is None:
        raise DataError("distill has no teacher", hint="put a policy stage before it, or set distill.teacher")
    if inputs.teacher == inputs.base:
        raise ModelError("teacher and student of distill are the same model", hint="set distill.base to another one")
    vocabularies = [load_tokenizer(locate(path)).get_vocab() for path in (inputs.base, inputs.teacher)]
    if vocabularies[0] != vocabularies[1]:
        sizes = " and ".join(f"{len(vocabulary):,}" for vocabulary in vocabularies)
        raise ModelError(
            f"student and teacher of distill have different vocabularies ({sizes} tokens): "
            "there is no divergence between their tokens",
            hint="take a student with the teacher's tokenizer, or learn from the teacher's texts with sft",
        )
    student = load_policy(
        inputs.base,
        lora=config.lora,
        device=ctx.device,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=ctx.seed,
    )
    return student, load_policy(inputs.teacher, trainable=False, device=ctx.device)


def divergence_of(config: DistillConfig) -> Divergence:
    """What is minimised at each token."""
    return {"forward": forward_kl, "reverse": reverse_kl, "jsd": partial(jensen_shannon, beta=config.beta)}[
        config.divergence
    ]


def imitate_teacher(
    student: Policy, teacher: Policy, rows: Sequence[Row], divergence: Divergence, config: DistillConfig, device: str
) -> Tensor:
    """Gradient of the mean divergence per response token of one optimizer step's rows; returns it in nats."""
    total = sum(len(row.ids) - row.prompt_length for row in rows)
    loss = torch.zeros((), device=device)
    for part in student.backbone.parts([(row,) for row in rows], config.micro_batch_size):
        batch = collate([rows[i] for i in part], student.pad_id).to(device)
        values_BR, mask_BR = divergence_BR(student, teacher, batch, divergence, config.temperature)
        share = masked_mean(values_BR, mask_BR, total=total)
        share.backward()
        loss += share.detach()
    return loss


def divergence_BR(
    student: Policy, teacher: Policy, batch: TokenBatch, divergence: Divergence, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Divergence of the two distributions of every response token, and which tokens count."""
    labels = batch.labels
    hidden_ND = student.backbone.states(batch, labels.before_N, student.adapter)
    with torch.no_grad():
        teacher_hidden_NE = teacher.backbone.states(batch, labels.before_N, teacher.adapter)
    values_N = token_divergence(
        divergence, hidden_ND, student.head, teacher_hidden_NE, teacher.head, temperature=temperature
    )
    return labels.spread(values_N), labels.mask_BR


@torch.no_grad()
def teacher_kl(student: Policy, teacher: Policy, answers: Sequence[Generation], size: int | None) -> float:
    """KL(student ‖ teacher) in nats per answer: the exact KL of every token, summed over the student's own answers."""
    student.eval()
    values_BR = collect.over_rows(
        lambda batch: divergence_BR(student, teacher, batch, reverse_kl)[0],
        [answer.row for answer in answers],
        student.backbone,
        student.pad_id,
        size,
    )
    return values_BR.sum(1).mean().item()


def unscored(answers: Sequence[Generation]) -> Rollouts:
    """Answers that no reward model has seen."""
    return Rollouts.of(answers, [0.0] * len(answers))
