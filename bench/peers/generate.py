"""transformers' side of the generation race: `generate`, a batch at a time, at several batch sizes."""

from __future__ import annotations

import time
from typing import Any

import torch
from bench.peers import side
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

BATCH_SIZES = (8, 16, 32, 64)


def generate(job: side.Job, rows: side.Rows) -> dict[str, Any]:
    """The best batch size counts. A batch runs until its longest response has ended: that is how `generate` works."""
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32).eval()
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=job["new_tokens"],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    rows = sorted(rows, key=lambda row: len(row["counted_ids"]))  # little of the prompts is padded
    seconds: dict[int, float] = {}
    for size in job["batch_sizes"] or BATCH_SIZES:
        began = time.perf_counter()
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            inputs = tokenizer.pad({"input_ids": [row["counted_ids"] for row in batch]}, return_tensors="pt")
            width = inputs["input_ids"].shape[1]
            responses = model.generate(**inputs, generation_config=config)[:, width:]  # pyright: ignore
            lengths = (responses != tokenizer.pad_token_id).sum(1).tolist()
            assert lengths == [row["budget"] for row in batch], "a response did not end where the model counts to"
        seconds[size] = time.perf_counter() - began
    best = min(seconds, key=seconds.__getitem__)
    return {"seconds": seconds[best], "note": f"batches of {best}", "batch": best}


if __name__ == "__main__":
    side.run({"generate": generate})
