"""vLLM's side of the generation race: its build for CPUs, all prompts given at once."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

CACHE_GB = 2
"""For keys and values: all rows of the race, at GPT-2's shape."""
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from bench.peers import side  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402  # pyright: ignore[reportMissingImports]


@functools.cache
def engine(folder: str, longest: int) -> Any:
    """Loads and compiles the model, once."""
    return LLM(model=folder, dtype="float32", max_model_len=longest, disable_log_stats=True)


def generate(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    """Continuous batching is its own."""
    llm = engine(job["policy"], job["max_length"] + job["new_tokens"])
    llm.reset_prefix_cache()  # of the rows that it warmed up on
    prompts = [{"prompt_token_ids": row["counted_ids"]} for row in rows]
    params = SamplingParams(temperature=1.0, max_tokens=job["new_tokens"])
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == [row["budget"] for row in rows], "a response did not end where the model counts to"
    return {"seconds": seconds}


if __name__ == "__main__":
    side.run({"generate_vllm": generate})
