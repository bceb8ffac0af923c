"""The page of the races. A run is both sides of one race in one round; a ratio is taken within a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import common
from bench.race.races import RACES, Race
from bench.race.work import LONGER, MAX_LENGTH, NEW_TOKENS, TITLES

Run = Mapping[str, Any]


def read(results: Path) -> dict[str, Any]:
    """What the races have found so far: facts of origin, `runs`, and `where` the time goes."""
    file = results / "bench.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(results: Path, found: Mapping[str, Any]) -> None:
    common.write(results / "bench.json", json.dumps(found, indent=1) + "\n")
    common.write(results / "bench.md", page(found))


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


def floor(run: Run) -> float:
    """Seconds if every useful operation ran at the peak, steps read at the memory's rate, and nothing else took time.

    A step's operations and its reading may go on together; prompts, updates and steps may not.
    """
    decoding = run["decoding"]
    steps = max(decoding["flops"] / run["peak_flops"], decoding["bytes"] / run["bandwidth"])
    return (run["flops"] - decoding["flops"]) / run["peak_flops"] + steps


def at_the_floor(run: Run) -> float:
    """The ratio that the floor allows."""
    return run["peer"]["seconds"] / floor(run)


def spread(runs: Sequence[Run], value: Callable[[Run], float], style: str = ".2f") -> str:
    """Median (lowest–highest)."""
    values = sorted(map(value, runs))
    middle = format(median(values), style)
    return middle if len(values) == 1 else f"{middle} ({values[0]:{style}}–{values[-1]:{style}})"


def shortfall(race: Race, shape: str, runs: Sequence[Run]) -> str:
    """Of a race that missed a bound: what it takes, what no program could do without, and what is left for all else."""
    ours, least = median(run["ours"]["seconds"] for run in runs), median(map(floor, runs))
    wanted = list[float]()
    if shape in race.required:
        wanted.append(median(run["peer"]["seconds"] for run in runs) / race.required[shape])
    if shape in race.share:
        wanted.append(median(run["flops"] / run["peak_flops"] for run in runs) / race.share[shape])
    if ours <= min(wanted, default=ours):
        return ""
    return (
        f"- {race.title}: {ours:.1f} s, of which {least:.1f} s are the floor (operations over peak, bytes over "
        f"bandwidth); what is required leaves {min(wanted) - least:.1f} s for all else, and it takes "
        f"{ours - least:.1f} s.\n"
    )


def verdict(value: float, bound: float | None, *, at_most: bool = False, style: str = "g") -> str:
    """What was required, and whether it was reached."""
    if bound is None:
        return "–"
    reached = value <= bound if at_most else value >= bound
    return f"{'≤' if at_most else '≥'} {bound:{style}}: {'yes' if reached else '**no**'}"


def row(race: Race, shape: str, runs: Sequence[Run]) -> list[str]:
    """One race with one shape."""
    share = [spread(runs, lambda run, side=side: share_of_peak(run, side), ".0%") for side in ("ours", "peer")]
    return [
        race.title,
        race.peer,
        *(f"{median(rate(run, side) for run in runs):,.0f}" for side in ("ours", "peer")),
        spread(runs, speed_ratio),
        verdict(median(map(speed_ratio, runs)), race.required.get(shape)),
        f"{median(map(at_the_floor, runs)):.1f}",
        " / ".join(share),
        verdict(median(share_of_peak(run, "ours") for run in runs), race.share.get(shape), style=".0%"),
        " / ".join(f"{median(run[side]['memory_mb'] for run in runs):,.0f}" for side in ("ours", "peer")),
        spread(runs, memory_ratio),
        verdict(median(map(memory_ratio, runs)), race.memory.get(shape), at_most=True),
        f"{len(runs)}",
        runs[-1]["commit"].replace("-dirty", ", changed"),
    ]


HEADER = [
    "", "peer", "Assay, tokens/s", "peer, tokens/s", "rate, ratio", "required", "at the floor", "share of peak",
    "required", "memory, MB", "memory, ratio", "required", "rounds", "commit",
]  # fmt: skip


def page(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    peak = spread(found["runs"], lambda run: run["peak_flops"] / 1e9, ".0f")
    read = spread(found["runs"], lambda run: run["bandwidth"] / 1e9, ".0f")
    # What the machine can do is the most that any race began with: a single measurement may fall into a busy moment.
    best = {name: max(run[name] for run in found["runs"]) for name in ("peak_flops", "bandwidth")}
    runs: Sequence[Run] = [{**run, **best} for run in found["runs"]]
    tables = []
    for shape, title in TITLES.items():
        raced = [(race, [run for run in runs if (run["shape"], run["race"]) == (shape, race.name)]) for race in RACES]
        rows = [row(race, shape, of_race) for race, of_race in raced if of_race]
        if rows:
            short = "".join(shortfall(race, shape, of_race) for race, of_race in raced if of_race)
            missed = f"Bounds that were missed; where the time goes is shown below.\n\n{short}\n" if short else ""
            tables.append(f"## {title}\n\n{common.table(HEADER, rows)}\n{missed}")
    notes = {
        race.name: {
            TITLES[run["shape"]]: run["peer"]["note"]
            for run in runs
            if run["race"] == race.name and "note" in run["peer"]
        }
        for race in RACES
    }
    chosen = [
        [race.title, race.work(), race.peer, "; ".join([race.settings, *map(": ".join, notes[race.name].items())])]
        for race in RACES
        if any(run["race"] == race.name for run in runs)
    ]
    settings = common.table(["race", "work", "peer", "its settings"], chosen)
    return (
        f"# Side by side with the peers\n\n{common.origin_text(found)}"
        f"Before each race: fp32 matrix product {peak} GFLOP/s, sum of a large tensor {read} GB/s; the highest count "
        f"as what the machine can do.\n\n{''.join(tables)}{where_the_time_goes(found.get('where'))}"
        f"## The work, and the peers' settings\n\nSteps × rows of a step; the small Llama takes "
        f"{LONGER['llama']} times the steps. Texts have {MAX_LENGTH} tokens at most, sampled responses {NEW_TOKENS}, "
        f"and every optimizer's rate is tiny, so that both sides go on doing the same work.\n\n{settings}\n{NOTES}"
    )


def where_the_time_goes(found: Mapping[str, Any] | None) -> str:
    """What bench.race.where has seen, if it has been asked."""
    if found is None:
        return ""
    table = common.table(found["header"], found["rows"])
    return f"## Where Assay's time goes\n\n{common.origin_text(found)}\n{table}\n{found['notes']}\n"


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
  a turn; the table shows the median of the rounds (lowest–highest), and the commit that a row was measured at.
- Both read the same real dialogues (HH-RLHF, those that fit 512 tokens uncut) as the same token ids, with the same
  randomly initialised weights and a tokenizer trained on the same texts. Batches, epochs, adapters (r = 8, PEFT's usual
  layers) and optimizer are the same.
- fp32 on both sides, also where the CPU has units for bf16, which Assay would use by itself for models this large.
- The clock runs over optimizer steps. Loading, tokenising and saving are outside on both sides, and so is a first step
  on a few rows. DPO's pass over the reference is inside.
- Useful tokens: a prompt once and its responses, or the tokens that were sampled. Neither pads nor repeats count. The
  share of the peak counts products of useful tokens with weight matrices only, those with the last block's MLP for
  every token, though Assay leaves them out where no state is read. "At the floor" is the ratio if all those products
  ran at the peak, steps of one token a row read weights, keys and values at the memory's rate, and nothing else took
  time: no program could do better in fp32 without skipping some.
- Sampled responses have given lengths: the model was built so that it counts down to its own end token. In the
  generation race they are spread over 8 to 64 tokens, in GRPO and PPO all have 64. The head is therefore not tied to
  the embedding there, on both sides.
- GRPO has a KL penalty on both sides, so both read a reference. torch.compile is off on both sides. Where Assay's
  sampler agrees with its trainer to 1e-5 nats, old log-probabilities are the sampler's; TRL computes none when one
  batch of samples is one optimizer step.
- In the generation race the peer's memory is that of its largest batch, its time that of its best.
- The share of the peak varies between rounds by more than the ratio does. On a virtual machine new memory costs a
  process up to eight times as much where the host has to find it first, as it has to after a peer that held and freed
  gigabytes: docs/LOG.md, "A second for the first step".
- Memory is the most that was resident, beyond what the process had after it had imported its libraries.
- vLLM samples and does not train: it is raced at generation alone, all prompts given at once, in a process that has
  compiled the model before the clock starts. It does not know GPT-Neo.

Two more numbers have pages of their own: [the time to quality](quality.md) and [the embedded run](embedded.md).
"""
