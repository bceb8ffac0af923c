"""Prepares a million preference pairs: rows a second and peak memory of every phase, and how soon a second run starts.

    make bench-data ROWS=1000000          →  docs/results/data_scale.md and .json

The pairs are those of HH-RLHF, over and over, each time with other ids and other openings, so that none is a duplicate.
Every phase is a process of its own; its peak is that of the process, libraries included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import common

from assay.data.config import FileData
from assay.data.files import read_rows
from assay.data.forest import Forest
from assay.data.pack import collate
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared
from assay.data.render import Renderer, encode_all
from assay.data.stored import batched
from assay.data.tokens import TOGETHER, Rendered, render
from assay.models.load import load_tokenizer
from assay.models.scratch import train_tokenizer
from assay.pipeline.environment import PeakMemory
from assay.stages import loop

ROWS = 1_000_000
BATCH = 64
MAX_LENGTH = 512
VOCABULARY = 16_384
SAMPLE = 10_000  # pairs on which the tokenizer's own speed is measured
STEPS = 500  # optimizer steps whose batches are made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of HH-RLHF")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    common.two_cores()
    facts = common.origin("make bench-data")
    folder = common.ROOT / common.fresh_runs_dir("data_scale")
    folder.mkdir(parents=True)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in itertools.islice(repeated(asked.data), asked.rows))
    phases = (prepare, tokenise, make_batches, start_again)
    measured = {phase.__name__: alone(phase, folder) for phase in phases}
    facts |= {"rows": asked.rows, "bytes": (folder / "pairs.jsonl").stat().st_size}
    shutil.rmtree(folder)
    common.write(asked.results / "data_scale.json", json.dumps({"facts": facts, **measured}, indent=1) + "\n")
    common.write(asked.results / "data_scale.md", page(facts, measured))


def repeated(data: Path) -> Iterator[dict[str, Any]]:
    """The pairs of a folder of HH-RLHF without end, no two alike."""
    files = ("harmless-base.jsonl.gz", "helpful.jsonl.gz")
    pairs = [located.row for name in files for located in read_rows(data / name)]
    for number in itertools.count():
        row = pairs[number % len(pairs)]
        opening = f"\n\nHuman: Case {number // len(pairs)}. "
        yield {"id": number, **{side: row[side].replace("\n\nHuman: ", opening, 1) for side in ("chosen", "rejected")}}


def alone(phase: Callable[[Path], dict[str, float]], folder: Path) -> dict[str, float]:
    """What a phase measures in a process of its own, with the process' peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_with_peak, phase, folder).result()


def _with_peak(phase: Callable[[Path], dict[str, float]], folder: Path) -> dict[str, float]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    memory = PeakMemory()
    found = phase(folder)
    return {**found, "peak_mb": max(memory.lap(), memory.most)}


def prepare(folder: Path) -> dict[str, float]:
    """Read, clean, de-duplicate, split, look for leaks; then save."""
    began = time.perf_counter()
    prepared = prepare_files(FileData(path=str(folder / "pairs.jsonl")), 0, folder)
    done = time.perf_counter()
    prepared.save(folder / "data")
    saved = time.perf_counter()
    pairs = prepared.preferences.train[:2000]
    texts = [text for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected)]
    train_tokenizer(texts, VOCABULARY).save_pretrained(folder / "tokenizer")
    return {"rows": len(prepared.preferences), "prepare_s": done - began, "save_s": saved - done}


def tokenise(folder: Path) -> dict[str, float]:
    """Rows of all training pairs; beside it what the tokenizers library does with the same texts and nothing else."""
    renderer, data = opened(folder)
    sample = data.preferences.train[:SAMPLE]
    pieces = [
        renderer.pieces([(pair.prompt, reply) for pair in part for reply in (pair.chosen, pair.rejected)])
        for part in batched(sample, TOGETHER)
    ]
    began = time.perf_counter()
    for texts in pieces:
        encode_all(renderer.tokenizer, texts)
    bare = time.perf_counter()
    render(renderer, sample)
    ours = time.perf_counter()
    rendered = render(renderer, data.preferences.train, folder / "cache")
    done = time.perf_counter()
    return {
        "rows": len(data.preferences.train),
        "tokens": int(rendered.lengths.sum()),
        "tokenise_s": done - ours,
        "library_share": (bare - began) / (ours - bare),
    }


def make_batches(folder: Path) -> dict[str, float]:
    """The plan of one pass, and the batches of its first steps, prompts shared."""
    renderer, data = opened(folder)
    rendered = render(renderer, data.preferences.train, folder / "cache")
    began = time.perf_counter()
    steps = loop.plan(rendered.tokens().tolist(), BATCH, 1, 0)
    planned = time.perf_counter()
    tokens = places = 0
    for step in steps[:STEPS]:
        rows = [row for number in step for row in rendered.of(number)]
        collate(rows, renderer.pad_id)
        forest = Forest.of(rows, width=MAX_LENGTH)
        tokens += int((forest.trees_LW > 0).sum())
        places += forest.trees_LW.numel()
    made = time.perf_counter()
    return {"rows": BATCH * min(STEPS, len(steps)), "plan_s": planned - began, "batch_s": made - planned} | {
        "filled": tokens / places
    }


def start_again(folder: Path) -> dict[str, float]:
    """From prepared data to the first batch, as a second run does it."""
    began = time.perf_counter()
    renderer, data = opened(folder)
    rendered: Rendered = render(renderer, data.preferences.train, folder / "cache")
    step = loop.plan(rendered.tokens().tolist(), BATCH, 1, 0)[0]
    collate([row for number in step for row in rendered.of(number)], renderer.pad_id)
    return {"rows": len(data.preferences.train), "start_s": time.perf_counter() - began}


def opened(folder: Path) -> tuple[Renderer, Prepared]:
    """The tokenizer's renderer, and the prepared data."""
    renderer = Renderer(load_tokenizer(folder / "tokenizer"), template="plain", max_length=MAX_LENGTH)
    return renderer, Prepared.load(folder / "data")


def page(facts: dict[str, Any], measured: dict[str, dict[str, float]]) -> str:
    """The result as Markdown."""
    first, tokens, batches, again = (measured[name] for name in ("prepare", "tokenise", "make_batches", "start_again"))

    def line(what: str, rows: float, seconds: float, peak: float) -> list[str]:
        return [what, f"{rows:,.0f}", f"{seconds:,.1f}", f"{rows / seconds:,.0f}", f"{peak:,.0f}"]

    header = ["phase", "pairs", "seconds", "pairs a second", "peak memory, MB"]
    rows = [
        line("read, clean, de-duplicate, split, look for leaks", facts["rows"], first["prepare_s"], first["peak_mb"]),
        line("save", first["rows"], first["save_s"], first["peak_mb"]),
        line("tokenise", tokens["rows"], tokens["tokenise_s"], tokens["peak_mb"]),
        line("make batches, prompts shared", batches["rows"], batches["batch_s"], batches["peak_mb"]),
        line("a second start, to the first batch", again["rows"], again["start_s"], again["peak_mb"]),
    ]
    speed = tokens["tokens"] / tokens["tokenise_s"]
    return (
        f"# {facts['rows']:,} preference pairs\n\n{common.origin_text(facts)}\n"
        f"HH-RLHF, repeated with other ids and openings: {facts['bytes'] / 1e9:.2f} GB of JSON lines; a byte-level BPE "
        f"of {VOCABULARY:,} tokens, at most {MAX_LENGTH} tokens a row.\n\n{common.table(header, rows)}\n"
        f"Tokenising gives {speed:,.0f} tokens a second, rows on disk included: {tokens['library_share']:.0%} of the "
        "speed at which the tokenizers library encodes the same texts, each once, on the same cores. The plan of one "
        f"pass takes {batches['plan_s']:.1f} s; {batches['filled']:.1%} of the places in the batches hold a token. "
        "A second start opens the rows that the first one left, which are found by their content.\n"
    )


if __name__ == "__main__":
    main()
