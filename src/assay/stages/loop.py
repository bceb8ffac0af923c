"""What every training loop shares: plans of batches, the optimizer, checkpoints. To be called, not inherited."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from assay import rng
from assay.data.pack import batches
from assay.errors import DataError, Interrupted, NotFiniteError
from assay.stages.config import OptimConfig

if TYPE_CHECKING:
    from assay.stages.context import RunContext

T = TypeVar("T")

PROBED = 4096
"""Numbers of each tensor that are looked at to see how far a step has gone."""


def plan(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row indices of every optimizer step of the whole run; a function of the seed, so a resumed run knows it too."""
    return [
        batch
        for epoch in range(epochs)
        for batch in batches(lengths, batch_size, rng.python_rng(seed, "batches", epoch))
    ]


def cursor(batch: Sequence[int], done: int, plan: Sequence[Sequence[int]], epochs: int) -> dict[str, float]:
    """Where in the data a step stands, for the log: passes so far, and a number that tells its batch from any other."""
    return {
        "train/epoch": epochs * done / len(plan),
        "train/batch": float(rng.derive(0, *sorted(batch)) >> 11),  # 52 bits, which a float holds
    }


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warmup, then the schedule down to zero."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return config.learning_rate * decay[config.schedule]


class Optimizer:
    """AdamW over named parameters with clipping and a schedule that is a pure function of the step."""

    def __init__(self, parameters: Mapping[str, Parameter], config: OptimConfig, steps: int) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.steps = steps
        self.factor = 1.0
        """Of the learning rate: below 1 once a run was corrected."""
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        self._adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def update(self, step: int) -> dict[str, Tensor | float]:
        """One step with the gradients at hand; returns the gradient norm before clipping, the rate, and the step's RMS.

        Where the gradient is not finite, weights and moments stay as they are, and `read` raises: the device sees to
        it, so that nobody waits for the norm before the update.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self._adam.found_inf = norm.isfinite().logical_not().float()  # pyright: ignore[reportAttributeAccessIssue]
        rate = self.factor * learning_rate(self.config, step, self.steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        before = self._probe()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        moved = (self._probe() - before).square().mean().sqrt()
        return {"grad_norm": norm, "learning_rate": rate, "update_rms": moved}

    def _probe(self) -> Tensor:
        """The first numbers of every tensor, copied: few enough to cost nothing, and of all layers."""
        return torch.cat([p.detach().flatten()[:PROBED] for p in self.parameters.values()])

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Weights and moments by name, for a checkpoint."""
        flat: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            flat[f"{prefix}{name}"] = parameter.detach()
            for key, value in self._adam.state.get(parameter, {}).items():
                flat[f"{prefix}{name}|{key}"] = value
        return flat

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Inverse of `tensors`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"{prefix}{name}"])
            moments = {
                key: tensors[f"{prefix}{name}|{key}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{prefix}{name}|{key}" in tensors
            }
            if moments:
                self._adam.state[parameter] = moments


def read(step: int, measured: Mapping[str, Tensor | float]) -> dict[str, float]:
    """What was measured of an optimizer step, as numbers: the only time that the step waits for the device.

    Raises `NotFiniteError` when a gradient was not finite; `update` has moved no weight by it.
    """
    found = on_host(measured)
    if not all(math.isfinite(value) for name, value in found.items() if name.endswith("grad_norm")):
        raise NotFiniteError(
            f"the gradient of step {step} is not finite",
            hint="lower optim.learning_rate, or look for rows with extreme lengths in this batch",
        )
    return found


def on_host(measured: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Numbers, and tensors of one number each, as numbers: the device is waited for once."""
    tensors = [value for value in measured.values() if isinstance(value, Tensor)]
    found = iter(torch.stack(tensors).tolist() if tensors else [])
    return {name: next(found) if isinstance(value, Tensor) else value for name, value in measured.items()}


def resume(ctx: RunContext, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Load the last checkpoint, if there is one: the step to go on with, and the stage's own state."""
    saved = _restored(ctx)
    optimizer.factor = ctx.remedy.rate
    if saved is None:
        return 0, {}
    step, tensors, state = saved
    optimizer.load(tensors)
    return step, state


def _restored(ctx: RunContext) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The last checkpoint. What was computed before it is asked for is computed again at every start."""
    if ctx.interrupted():
        raise Interrupted("stopped before the stage learnt anything new; a checkpoint of an earlier start stays")
    return ctx.restore()


def finish_step(
    ctx: RunContext, optimizer: Optimizer, done: int, total: int, every: int, state: Mapping[str, Any]
) -> None:
    """Checkpoint when due; checkpoint and stop in trouble, or when the user asked to. `resume` is its inverse."""
    _finish(ctx, done, total, every, lambda: ctx.checkpoint(done, optimizer.tensors(), state))


def finish_iteration(
    ctx: RunContext,
    optimizers: Mapping[str, Optimizer],
    done: int,
    total: int,
    every: int,
    best: Best,
    state: Mapping[str, Any],
) -> None:
    """The same for a stage that keeps its best weights. `restore` is its inverse."""
    _finish(ctx, done, total, every, lambda: save(ctx, done, optimizers, best, state))


def _finish(ctx: RunContext, done: int, total: int, every: int, checkpoint: Callable[[], None]) -> None:
    if done == total:  # what comes next is the model itself
        return
    trouble, interrupted = ctx.trouble(), ctx.interrupted()
    if trouble or interrupted or done % every == 0:
        checkpoint()
    if trouble:
        raise trouble
    if interrupted:
        raise Interrupted(f"stopped after {done} of {total}; the checkpoint is saved")


@dataclass
class Best:
    """The best weights that any evaluation has seen so far."""

    objective: float | None = None
    iteration: int = 0
    evaluations_since: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, objective: float, iteration: int, parameters: Mapping[str, Parameter]) -> None:
        """Take note of an evaluation; a copy of the weights is kept if it is the best so far."""
        if self.objective is not None and objective <= self.objective:
            self.evaluations_since += 1
            return
        self.objective, self.iteration, self.evaluations_since = objective, iteration, 0
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def put_back(self, parameters: Mapping[str, Parameter]) -> None:
        """Make these weights the current ones."""
        for name, parameter in parameters.items():
            parameter.copy_(self.weights[name])


def save(ctx: RunContext, done: int, optimizers: Mapping[str, Optimizer], best: Best, state: Mapping[str, Any]) -> None:
    """Everything the next iteration of a stage that samples depends on; no rollout lives between iterations."""
    tensors = {f"best/{name}": tensor for name, tensor in best.weights.items()}
    for role, optimizer in optimizers.items():
        tensors |= optimizer.tensors(f"{role}/")
    seen = {"objective": best.objective, "iteration": best.iteration, "evaluations_since": best.evaluations_since}
    ctx.checkpoint(done, tensors, {"best": seen, "state": dict(state)})


def restore(ctx: RunContext, optimizers: Mapping[str, Optimizer]) -> tuple[int, Best, dict[str, Any]]:
    """Inverse of `save`: the iteration to go on with, the best so far, the stage's own state; fresh ones at a start."""
    saved = _restored(ctx)
    for optimizer in optimizers.values():
        optimizer.factor = ctx.remedy.rate
    if saved is None:
        return 0, Best(), {}
    done, tensors, state = saved
    for role, optimizer in optimizers.items():
        optimizer.load(tensors, f"{role}/")
    weights = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
    return done, Best(**state["best"], weights=weights), state["state"]


def pick(prompts: Sequence[T], count: int, iteration: int, seed: int) -> list[T]:
    """The prompts, or demonstrations, of one iteration: shuffled passes over all of them, cut into batches."""
    if not prompts:
        raise DataError("there are no training prompts", hint="give data.prompts a path, or lower the split shares")
    places = (divmod(position, len(prompts)) for position in range(iteration * count, (iteration + 1) * count))
    return [prompts[order(len(prompts), epoch, seed)[offset]] for epoch, offset in places]


@functools.lru_cache(maxsize=4)  # distillation asks for prompts and demonstrations, at the end of a pass for two each
def order(count: int, epoch: int, seed: int) -> Sequence[int]:
    """The numbers from 0 to `count`, shuffled for one pass."""
    shuffled = array("q", range(count))  # a list of a million numbers would be 40 MB
    rng.python_rng(seed, "prompts", epoch).shuffle(shuffled)
    return shuffled


def numbers(report: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """The plain numbers of a report, renamed for the metrics log where a prefix is given."""
    return {f"{prefix}{key}": value for key, value in report.items() if isinstance(value, int | float)}


def named(prefix: str, measured: Mapping[str, T]) -> dict[str, T]:
    """The same under longer names."""
    return {f"{prefix}{name}": value for name, value in measured.items()}


def add_to(sums: dict[str, Tensor], shares: Mapping[str, Tensor]) -> None:
    """Add one micro-batch's shares."""
    for key, share in shares.items():
        sums[key] = sums[key] + share if key in sums else share


def mean(values: Sequence[float]) -> float:
    """The plain mean of at least one number."""
    return sum(values) / len(values)


def seed_dropout(seed: int, step: int) -> None:
    """Dropout noise as a function of the step, so that a resumed run draws the same."""
    torch.manual_seed(rng.derive(seed, "dropout", step))
