"""The page of the races. A run is both sides of one race in one round; a ratio is taken within a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from bench import common
from bench.race.races import RACES, Race
from bench.race.work import TITLES

Run = Mapping[str, Any]


def speed_ratio(run: Run) -> float:
    """Our rate over the peer's: the work is the same, so it is their time over ours."""
    return run["peer"]["seconds"] / run["ours"]["seconds"]


def memory_ratio(run: Run) -> float:
    return run["ours"]["memory_mb"] / run["peer"]["memory_mb"]


def rate(run: Run, side: str) -> float:
    """Useful tokens a second."""
    return run["tokens"] / run[side]["seconds"]


def share_of_peak(run: Run, side: str) -> float:
    """Of the matrix-product peak."""
    return run["flops"] / run[side]["seconds"] / run["peak_flops"]


def at_the_floor(run: Run) -> float:
    """The ratio if every useful operation ran at the peak, and nothing else took time."""
    return run["peer"]["seconds"] * run["peak_flops"] / run["flops"]


def spread(runs: Sequence[Run], value: Callable[[Run], float], style: str = ".2f") -> str:
    """Median (lowest–highest)."""
    values = sorted(map(value, runs))
    middle = format(median(values), style)
    return middle if len(values) == 1 else f"{middle} ({values[0]:{style}}–{values[-1]:{style}})"


def verdict(value: float, bound: float | None, *, at_most: bool = False) -> str:
    """What was required, and whether it was reached."""
    if bound is None:
        return "–"
    reached = value <= bound if at_most else value >= bound
    return f"{'≤' if at_most else '≥'} {bound:g}: {'yes' if reached else '**no**'}"


def row(race: Race, shape: str, runs: Sequence[Run]) -> list[str]:
    """One race with one shape."""
    share = [f"{median(share_of_peak(run, side) for run in runs):.0%}" for side in ("ours", "peer")]
    return [
        race.title,
        race.peer,
        *(f"{median(rate(run, side) for run in runs):,.0f}" for side in ("ours", "peer")),
        spread(runs, speed_ratio),
        verdict(median(map(speed_ratio, runs)), race.required.get(shape)),
        f"{median(map(at_the_floor, runs)):.1f}",
        " / ".join(share),
        " / ".join(f"{median(run[side]['memory_mb'] for run in runs):,.0f}" for side in ("ours", "peer")),
        spread(runs, memory_ratio),
        verdict(median(map(memory_ratio, runs)), race.memory.get(shape), at_most=True),
    ]


HEADER = [
    "", "peer", "Assay, tokens/s", "peer, tokens/s", "rate, ratio", "required", "at the floor", "share of peak",
    "memory, MB", "memory, ratio", "required",
]  # fmt: skip


def page(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    peak = spread(found["runs"], lambda run: run["peak_flops"] / 1e9, ".0f")
    # The machine's peak is the highest that any race began with: a single measurement may fall into a busy moment.
    highest = max(run["peak_flops"] for run in found["runs"])
    runs: Sequence[Run] = [{**run, "peak_flops": highest} for run in found["runs"]]
    tables = []
    for shape, title in TITLES.items():
        raced = [(race, [run for run in runs if (run["shape"], run["race"]) == (shape, race.name)]) for race in RACES]
        rows = [row(race, shape, of_race) for race, of_race in raced if of_race]
        if rows:
            rounds = sorted({len(of_race) for _, of_race in raced if of_race})
            said = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]}–{rounds[-1]}"
            tables.append(f"## {title}\n\nRounds: {said}.\n\n{common.table(HEADER, rows)}\n")
    there = {run["race"]: run["peer"].get("note") for run in runs}
    chosen = [
        [race.title, race.peer, "; last: ".join(filter(None, (race.settings, there[race.name])))]
        for race in RACES
        if race.name in there
    ]
    settings = common.table(["race", "peer", "its settings"], chosen)
    return (
        f"# Side by side with the peers\n\n{common.origin_text(found)}"
        f"fp32 matrix product before each race: {peak} GFLOP/s; the highest counts as the peak.\n\n{''.join(tables)}"
        f"## The peers' settings\n\n{settings}\n{NOTES}"
    )


def line(run: Run) -> str:
    """A run while it is going on."""
    memory = " / ".join(f"{run[side]['memory_mb']:,.0f}" for side in ("ours", "peer"))
    return (
        f"{run['shape']:8} {run['race']:12} {speed_ratio(run):5.2f} ×  "
        f"{run['ours']['seconds']:.1f} / {run['peer']['seconds']:.1f} s  {memory} MB"
    )


NOTES = """\
## How it is measured

- The sides take turns, each in a process of its own with two threads: ours, peer, ours, peer. A ratio is taken within
  a turn; the table shows the median of the rounds (lowest–highest).
- Both read the same real dialogues (HH-RLHF, those that fit 512 tokens uncut) as the same token ids, with the same
  randomly initialised weights and a tokenizer trained on the same texts. Batches, epochs, adapters (r = 8, PEFT's usual
  layers) and optimizer are the same.
- fp32 on both sides, also where the CPU has units for bf16, which Assay would use by itself for models this large.
- The clock runs over optimizer steps. Loading, tokenising and saving are outside on both sides, and so is a first step
  on a few rows. DPO's pass over the reference is inside.
- Useful tokens: a prompt once and its responses, or the tokens that were sampled. Neither pads nor repeats count. The
  share of the peak counts products of useful tokens with weight matrices only, those with the last block's MLP for
  every token, though Assay leaves them out where no state is read. "At the floor" is the ratio if all those
  products ran at the peak and nothing else took time: no program could do better in fp32 without skipping some. Where
  single tokens are sampled, the floor is higher still, for each step reads all weights and caches from memory.
- Sampled responses have given lengths: the model was built so that it counts down to its own end token. In the
  generation race they are spread over 8 to 64 tokens, in GRPO and PPO all have 64. The head is therefore not tied to
  the embedding there, on both sides.
- GRPO has a KL penalty on both sides, so both read a reference. torch.compile is off on both sides. Where Assay's
  sampler agrees with its trainer to 1e-5 nats, old log-probabilities are the sampler's; TRL computes none when one
  batch of samples is one optimizer step.
- In the generation race the peer's memory is that of its largest batch, its time that of its best.
- Memory is the most that was resident, beyond what the process had after it had imported its libraries.

vLLM is not in the table: the wheels on the package index are CUDA builds, and a CPU build has to be compiled.
"""
