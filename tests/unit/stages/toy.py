"""A toy task for the stages: one-word answers, a base model of a few thousand weights, and a context in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.data.prepared import Prepared, Splits
from assay.errors import Interrupted, TrainingError
from assay.models.scratch import new_model, train_tokenizer
from assay.stages.context import Remedy
from assay.types import Demonstration, Preference, Prompt

COLOURS = ("red", "green", "blue", "amber")
QUESTIONS = tuple(
    Prompt.ask(f"{ask} {thing}?") for ask in ("what is", "name") for thing in ("the sea", "grass", "fire")
)


def toy_model(folder: Path, *, layers: int = 2, width: int = 64, seed: int = 0) -> Path:
    """A randomly initialised model with a tokenizer that knows the toy's words."""
    tokenizer = train_tokenizer([*COLOURS * 50, *(q.text for q in QUESTIONS)], 330)  # every colour is one token
    model = new_model("llama", layers=layers, width=width, heads=4, max_length=32, tokenizer=tokenizer, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_data() -> Prepared:
    """Everyone demonstrates every colour, and everyone prefers blue, then green."""
    rank = {"blue": 2, "green": 1, "red": 0, "amber": 0}
    demonstrations = [Demonstration(q, colour) for q in QUESTIONS for colour in COLOURS]
    # Words that always come in the same place would get the same embedding, and then no adapter could tell them apart.
    demonstrations += [Demonstration(Prompt.ask(f"say {colour}"), colour) for colour in COLOURS] * 3
    pairs = [Preference(q, a, b) for q in QUESTIONS for a in COLOURS for b in COLOURS if rank[a] > rank[b]]
    pairs += [Preference(q, "blue", f"{thing} blue") for q in QUESTIONS for thing in ("red", "grass", "blue", "amber")]
    prompts = list(QUESTIONS)
    return Prepared(
        demonstrations=Splits(demonstrations * 4, demonstrations, demonstrations),
        preferences=Splits(pairs * 2, pairs, pairs),
        prompts=Splits(prompts, prompts, prompts),
    )


@dataclass
class Memory:
    """A RunContext in memory; stops after `stop_at` steps if told to."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    stop_at: int | None = None
    remedy: Remedy = field(default_factory=Remedy)
    logged: dict[int, dict[str, float]] = field(default_factory=dict)
    texts: list[Mapping[str, Any]] = field(default_factory=list)
    saved: tuple[int, dict[str, Tensor], dict[str, Any]] | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged[step] = dict(metrics)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.texts = list(rows)

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Memory]:
        yield self

    def update(self, done: int, note: str = "") -> None:
        pass

    def checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.saved = step, {name: tensor.detach().clone() for name, tensor in tensors.items()}, dict(state)

    def restore(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        return self.saved

    def trouble(self) -> TrainingError | None:
        return None

    def interrupted(self) -> bool:
        return self.stop_at is not None and len(self.logged) == self.stop_at


def run_in_two_parts(run: Any, config: Any, inputs: Any, ctx: Memory, stop_at: int) -> dict[str, Any]:
    """Interrupt a stage after `stop_at` steps, and start it again."""
    ctx.stop_at = stop_at
    try:
        run(config, inputs, ctx)
    except Interrupted:
        ctx.stop_at = None
        return run(config, inputs, ctx)
    raise AssertionError(f"the stage was over before step {stop_at}")


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
