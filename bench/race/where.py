"""Where Assay's time goes in the races: the share of each kind of operation, as torch's profiler sees it.

    make bench-where          →  a section of docs/results/bench.md

The steps of every race that is asked for, after one to warm up, in the same settings as `make bench`.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.race import ours, page, work
from bench.race.__main__ import SHARED, peak_flops
from bench.race.context import CLOCK
from bench.race.races import RACES, Race
from bench.race.sides import THREADS
from torch.profiler import ProfilerActivity, profile

from assay.models import precision

KINDS = {
    "products": r"aten::(mm|addmm|addmm_|linear|_int_mm)$|mkldnn::_linear_pointwise$",
    "attention": r"attention|Attention|aten::(bmm|baddbmm|_softmax|_softmax_backward_data)$",
    "moving": r"aten::(copy_|cat|index|index_select|index_put_|_index_put_impl_|fill_|zero_|gather|slice|clone)$",
    "softmax of the head": r"aten::(_log_softmax|logsumexp|exp_|exp|cumsum)$",
    "optimizer": r"adam|Adam|_foreach|linalg_vector_norm",
}
"""Kind → what the names of its operations match; the first that does counts. All else is elementwise."""
REST = ("elementwise", "outside of operations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"), help="the folder of HH-RLHF files")
    parser.add_argument("--only", nargs="+", choices=[race.name for race in RACES], default=[r.name for r in RACES])
    parser.add_argument("--shapes", nargs="+", choices=list(work.SHAPES), default=["gpt2", "llama"])
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    common.two_cores()
    torch.set_num_threads(THREADS)
    precision.bf16_speedup_on_cpu = lambda: 1.0
    facts = common.origin(shlex.join(["python", "-m", "bench.race.where", *sys.argv[1:]]))
    found = page.read(asked.results)
    if not found:
        raise SystemExit(f"error: {asked.results} holds no races\nhint: make bench comes first")
    rows = []
    for shape in asked.shapes:
        folder = work.prepare(shape, asked.data)
        for race in RACES:
            if race.name in asked.only:
                seconds, least, shares = kinds(race, folder)
                told = [f"{seconds:.1f}", f"{least / seconds:.0%}", *(f"{share:.0%}" for share in shares.values())]
                rows.append([work.TITLES[shape], race.title, *told])
                print(*rows[-1], file=sys.stderr)
    header = ["", "", "seconds", "useful products, at the peak", *KINDS, *REST]
    page.write(asked.results, {**found, "where": {**facts, "header": header, "rows": rows, "notes": NOTES}})


def kinds(race: Race, folder: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds on our side's clock under the profiler, those that useful products would take at the peak, and the share
    of every kind of operation.
    """
    found = [json.loads(row) for row in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = found[: race.steps * race.prompts]
    with tempfile.TemporaryDirectory() as scratch:
        policy = folder / ("counting" if race.samples else "policy")
        job = {**SHARED, **race.job(), "policy": str(policy), "reward": str(folder / "reward"), "scratch": scratch}
        ours.RUNS[race.name](job, rows[: race.prompts])
        gc.collect()
        seconds, shares = profiled(lambda: ours.RUNS[race.name](job, rows))
    weights = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    return seconds, race.useful_flops(rows, weights) / peak_flops(), shares


def profiled(work: Callable[[], Any]) -> tuple[float, dict[str, float]]:
    """Seconds on a Stopwatch's clock during this work, and the share of every kind of operation in them."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    events = seen.events() or []
    clocks = [event.time_range for event in events if event.name == CLOCK]
    spent = dict.fromkeys([*KINDS, "elementwise"], 0.0)
    for event in events:
        if event.name != CLOCK and any(clock.start <= event.time_range.start < clock.end for clock in clocks):
            spent[kind_of(event.name)] += event.self_cpu_time_total / 1e6
    seconds = sum(clock.elapsed_us() for clock in clocks) / 1e6
    return seconds, shares_of(spent, seconds)


def kind_of(operation: str) -> str:
    return next((kind for kind, names in KINDS.items() if re.search(names, operation)), "elementwise")


def shares_of(spent: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Of the wall clock; what no operation accounts for is Python."""
    shares = {kind: some / seconds for kind, some in spent.items()}
    return shares | {"outside": max(0.0, 1 - sum(shares.values()))}


NOTES = """\
The profiler itself costs some percent. Products are those with weights; attention is its own products and softmax. The
useful products' share is what they would take at the measured peak: where it is near the products' own, these run at
the peak, and what is missing to a bound is all else. It can be above it, for the last block's MLP is left out where no
state is read, and counted as useful all the same.
"""

if __name__ == "__main__":
    main()
