"""How the time of one policy step grows with each of its sizes, all others at rest.

    make bench-scaling          →  docs/results/scaling.md and .json

A step is an iteration of the group stage: sample, score, update. The exponent is the slope of log time over log size.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench import common
from bench.race import work
from bench.race.__main__ import THREADS
from bench.race.context import Stopwatch

from assay.data.prepared import Prepared, Splits
from assay.models.config import LoraConfig
from assay.models.load import saving
from assay.models.scratch import train_tokenizer
from assay.rollout.config import SamplingParams
from assay.stages import group
from assay.stages.config import GroupConfig
from assay.stages.context import StageInputs
from assay.types import Prompt

ITERATIONS = 4  # the first warms up
WORD = " a"  # one token, as often as it is said


@dataclass(frozen=True)
class Sizes:
    """Tokens, rows and weights of one step."""

    prompt: int = 64
    response: int = 32
    batch: int = 16
    group: int = 4
    vocabulary: int = 8192
    width: int = 256


AXES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "prompt": ("prompt length, tokens", (32, 64, 128, 256, 512)),
    "response": ("response length, tokens", (16, 32, 64, 128)),
    "batch": ("batch, responses", (8, 16, 32, 64)),
    "group": ("group size, responses to a prompt", (2, 4, 8, 16)),
    "vocabulary": ("vocabulary, tokens", (2048, 8192, 32768, 131072)),
    "width": ("width of the model", (128, 256, 512, 1024)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES), metavar="AXIS")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()
    common.two_cores()
    torch.set_num_threads(THREADS)
    facts = common.origin(shlex.join(["python", "-m", "bench.scaling", *sys.argv[1:]]))
    seconds: dict[str, dict[int, float]] = {}
    for axis in asked.only:
        _, sizes = AXES[axis]
        seconds[axis] = {size: step_seconds(replace(Sizes(), **{axis: size})) for size in sizes}
    common.write(asked.results / "scaling.json", json.dumps({**facts, "seconds": seconds}, indent=1) + "\n")
    common.write(asked.results / "scaling.md", page(facts, seconds))


def step_seconds(sizes: Sizes) -> float:
    """Median time of one iteration with a small Llama of these sizes."""
    prompts = [
        Prompt.ask(f"{number}{WORD * sizes.prompt}") for number in range(ITERATIONS * sizes.batch // sizes.group)
    ]
    config = GroupConfig(
        lora=LoraConfig(),
        group_size=sizes.group,
        batch_size=sizes.batch,
        minibatches=1,
        episodes=ITERATIONS * sizes.batch,
        max_length=sizes.prompt + sizes.response + 16,
        sampling=SamplingParams(max_new_tokens=sizes.response),
        evaluate_every=ITERATIONS,
        evaluation_prompts=1,
        checkpoint_every=ITERATIONS,
    )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_models(sizes, folder, max_length=config.max_length)
        data = Prepared(prompts=Splits(prompts, prompts[:1], prompts[:1]))
        ctx = Stopwatch(folder / "group")
        group.run(config, StageInputs(data, str(folder / "policy"), reward=str(folder / "reward")), ctx)
    return median(sizes.batch / metrics["train/episodes_per_s"] for metrics in ctx.logged[1:])


def save_models(sizes: Sizes, folder: Path, *, max_length: int) -> None:
    """Policy and reward model with random weights."""
    tokenizer = train_tokenizer([WORD], 300)
    shape = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "intermediate_size": 8 * sizes.width // 3,
        "max_position_embeddings": max_length,
    }
    with saving(folder / "policy"):
        work.new_model("llama", tokenizer, **shape).save_pretrained(folder / "policy")
        tokenizer.save_pretrained(folder / "policy")
    work.train_reward(folder / "policy", folder / "reward")


def exponent(seconds: Mapping[int, float]) -> float:
    """k of the least-squares fit time = c·size^k."""
    sizes, times = np.log(list(seconds.keys())), np.log(list(seconds.values()))
    return float(np.polyfit(sizes, times, 1)[0])


def last_exponent(seconds: Mapping[int, float]) -> float:
    """k between the two largest sizes, where what is fixed weighs least."""
    (small, before), (large, after) = sorted(seconds.items())[-2:]
    return math.log(after / before) / math.log(large / small)


def page(facts: Mapping[str, Any], seconds: Mapping[str, Mapping[int, float]]) -> str:
    """The result as Markdown."""
    rows: list[Sequence[str]] = [
        [
            AXES[axis][0],
            ", ".join(f"{size:,}: {time:.2f} s" for size, time in sorted(measured.items())),
            f"{exponent(measured):.2f}",
            f"{last_exponent(measured):.2f}",
        ]
        for axis, measured in seconds.items()
    ]
    base = ", ".join(f"{name} {size:,}" for name, size in asdict(Sizes()).items())
    return (
        f"# How the time of a step grows\n\n{common.origin_text(facts)}\n"
        f"One iteration of the group stage (GRPO, LoRA) with a Llama of four layers; at rest: {base}.\n\n"
        f"{common.table(['size', 'time of a step', 'exponent', 'at the largest'], rows)}\n"
        "Below 1: something fixed is shared out. With a larger group the batch stays as it is, and has fewer prompts.\n"
    )


if __name__ == "__main__":
    main()
