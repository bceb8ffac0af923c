"""Learning to continue text: the loop of pretraining and supervised fine-tuning, and its single step.

The loss counts label tokens only and is divided by the token count of the whole optimizer step.
Formula: algorithms/logprobs.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from assay.algorithms.logprobs import completion_loss
from assay.data.pack import collate
from assay.data.render import Row
from assay.data.stored import IN_MEMORY, batched, lengths_of
from assay.models.roles import Policy
from assay.stages import loop
from assay.stages.config import PretrainConfig, SFTConfig
from assay.stages.context import RunContext


def train_causal(
    policy: Policy,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    config: SFTConfig | PretrainConfig,
    ctx: RunContext,
) -> dict[str, float]:
    """Minimise the negative log-likelihood of the rows' labels."""
    plan = loop.plan(lengths_of(rows, lambda row: len(row.ids)), config.batch_size, config.epochs, ctx.seed)
    optimizer = loop.Optimizer(policy.parameters_trained(), config.optim, len(plan))
    start, state = loop.resume(ctx, optimizer)
    first_loss = state.get("first_loss", math.nan)
    loss_value = math.nan

    with ctx.progress(len(plan), config.kind) as progress:
        for step in range(start, len(plan)):
            began = time.perf_counter()
            loop.seed_dropout(ctx.seed, step)
            chosen = plan[step]
            batch = [rows[i] for i in chosen]
            policy.train()
            loss = imitate(policy, batch, config.micro_batch_size, ctx.device)
            measured = loop.read(step, {"loss": loss, **optimizer.update(step)})

            done, loss_value = step + 1, measured["loss"]
            first_loss = loss_value if step == 0 else first_loss
            tokens = sum(len(row.ids) for row in batch)
            metrics = {
                "train/loss": loss_value,
                "train/grad_norm": measured["grad_norm"],
                "train/learning_rate": measured["learning_rate"],
                "train/tokens_per_s": tokens / (time.perf_counter() - began),
                **loop.cursor(chosen, done, plan, config.epochs),
            }
            if held_out and (done % config.validate_every == 0 or done == len(plan)):
                metrics["eval/loss"] = mean_loss(policy, held_out, config.batch_size, ctx.device)
            ctx.log(done, metrics)
            progress.update(done, f"loss {loss_value:.3f}")
            loop.finish_step(ctx, optimizer, done, len(plan), config.checkpoint_every, {"first_loss": first_loss})

    result = {"loss_first": first_loss, "loss_last": loss_value, "steps": len(plan)}
    if held_out:
        loss = mean_loss(policy, held_out, config.batch_size, ctx.device)
        result |= {"validation_loss": loss, "perplexity": math.exp(min(loss, 50.0))}
    return result


def imitate(policy: Policy, rows: Sequence[Row], micro_batch_size: int | None, device: str) -> Tensor:
    """Gradient of the negative log-likelihood of one optimizer step's rows; returns it in nats per label token."""
    total = sum(len(row.ids) - row.prompt_length for row in rows)
    loss = torch.zeros((), device=device)
    for part in policy.backbone.parts([(row,) for row in rows], micro_batch_size):
        scored = policy.logprobs(collate([rows[i] for i in part], policy.pad_id).to(device), alike=True)
        share = completion_loss(scored.logprobs_BR, scored.mask_BR, total=total)
        share.backward()
        loss += share.detach()
    return loss


@torch.no_grad()
def mean_loss(policy: Policy, rows: Sequence[Row], batch_size: int, device: str) -> float:
    """Negative log-likelihood per label token, in nats."""
    policy.eval()
    total = sum(len(row.ids) - row.prompt_length for row in rows)
    loss = 0.0
    for some in batched(rows, IN_MEMORY):
        for part in policy.backbone.parts([(row,) for row in some], batch_size):
            scored = policy.logprobs(collate([some[i] for i in part], policy.pad_id).to(device))
            loss += completion_loss(scored.logprobs_BR, scored.mask_BR, total=total).item()
    return loss
