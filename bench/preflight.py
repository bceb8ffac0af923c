"""What `assay run --dry-run` predicts, beside what the run then takes: peak memory and seconds per step, by stage.

    make preflight          →  docs/results/preflight.md

The rates are measured by the dry run, just before each run: what else the machine does slows both.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common
from transformers import AutoConfig, AutoModelForCausalLM

from assay.models.load import load_tokenizer, saving
from assay.models.locate import locate

WITHIN = 0.2
"""What is asked of a prediction."""

EMBEDDED = """\
model: embedded
data: {world: frontdesk, demonstrations: 2000, preferences: 3000}
stages:
  - sft: {epochs: 1, batch_size: 32, max_length: 128}
  - reward: {batch_size: 32, max_length: 128, validate_every: 1000}
  - ppo:
      episodes: 1024
      inner_epochs: 2
      minibatches: 4
      value_warmup: 0
      kl_stop: null
      max_length: 128
      lora: {r: 16, alpha: 32}
      sampling: {max_new_tokens: 48}
      evaluation_prompts: 50
      evaluate_every: 1000
  - preference: {id: dpo, batch_size: 64, max_length: 128, lora: {r: 16}, sampling: {max_new_tokens: 48}}
"""
GPT2 = """\
data: {world: frontdesk, demonstrations: 192, preferences: 192}
stages:
  - sft: {epochs: 1, batch_size: 32, max_length: 128}
  - reward: {batch_size: 32, max_length: 128, lora: {r: 8}}
  - preference: {id: dpo, batch_size: 32, max_length: 128, lora: {r: 8}, sampling: {max_new_tokens: 8}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["embedded", "gpt2"], default=["embedded", "gpt2"])
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()
    common.two_cores()
    facts = common.origin(shlex.join(["python", "-m", "bench.preflight", *sys.argv[1:]]))
    rows = [row for name in asked.only for row in compared(name)]
    common.write(asked.results / "preflight.md", page(facts, rows))


def compared(name: str) -> list[list[str]]:
    """One recipe, planned and then run: a row for each stage."""
    folder = common.ROOT / common.fresh_runs_dir("preflight") / name
    folder.mkdir(parents=True)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(EMBEDDED if name == "embedded" else f"model: {gpt2_shape(folder / 'model')}\n{GPT2}")
    words = (str(recipe), f"runs_dir={folder}")
    plan = json.loads(subprocess.check_output([*common.command("run", *words), "--dry-run", "--json"], cwd=common.ROOT))
    run = common.run_assay(*words)
    return [row_of(name, stage, run) for stage in plan["stages"]]


def row_of(name: str, planned: Mapping[str, Any], run: common.Run) -> list[str]:
    """Predicted, measured and their ratio, of memory, a step and the whole stage."""
    manifest = run.read(planned["id"], "manifest.json")
    log = (run.artifact(planned["id"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = (
        (planned["memory_mb"], manifest["peak_rss_mb"]),
        (planned["step_s"], step_seconds([json.loads(line) for line in log], planned["steps"])),
        (planned["wall_s"], manifest["wall_s"]),
    )
    return [f"{name}, {planned['id']}", *(cell for pair in pairs for cell in cells(*pair))]


def step_seconds(log: Sequence[Mapping[str, Any]], steps: int) -> float:
    """Mean seconds of an optimizer step, between the first line of the log, which warms up, and the last but one.

    The last evaluates too. A line is a step, or an iteration of several.
    """
    lines = log[:-1]
    return (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1) / (steps / len(log))


def cells(predicted: float, measured: float) -> list[str]:
    return [f"{predicted:.3g}" if predicted < 100 else f"{predicted:,.0f}",
            f"{measured:.3g}" if measured < 100 else f"{measured:,.0f}",
            f"{predicted / measured:.2f}"]  # fmt: skip


def gpt2_shape(folder: Path) -> Path:
    """A folder with a randomly initialised GPT-2 of 124 million parameters that reads the embedded model's tokens."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2"))
    with saving(folder):
        model.save_pretrained(folder)
        load_tokenizer(locate("embedded")).save_pretrained(folder)
    return folder


def page(facts: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> str:
    ratios = [float(row[place]) for row in rows for place in (3, 6)]
    inside = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    header = ["stage", *(f"{what}{kind}" for what in ("memory, MB", "a step, s", "all, s")
                         for kind in (": predicted", ": measured", ": ratio"))]  # fmt: skip
    return (
        f"# What a dry run predicts\n\n{common.origin_text(facts)}\n"
        f"{inside} of {len(ratios)} predictions of memory and of the time of a step are within {100 * WITHIN:.0f} % of "
        f"what was then measured.\n\n{common.table(header, rows)}\n"
        "Rates are measured by the dry run just before the run. A stage's whole time is shown too: with loading, "
        "evaluation and saving, of which only the models' part is predicted. What the heap and compiled products take "
        "beyond tensors (`HEAP_SHARE` and `CODE` in pipeline/footprint.py) was set by runs of these two recipes.\n"
    )


if __name__ == "__main__":
    main()
