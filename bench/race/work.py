"""What both sides of a race work on: models of standard shapes with random weights, and real dialogues as token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.race.context import Stopwatch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from assay import rng
from assay.data.config import FileData
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer
from assay.models.config import LoraConfig
from assay.models.load import saving
from assay.models.roles import load_policy
from assay.models.scratch import train_tokenizer
from assay.rollout.config import SamplingParams
from assay.stages import reward
from assay.stages.config import RewardConfig
from assay.stages.context import StageInputs
from assay.types import Preference, Prompt

FOLDER = common.ROOT / ".bench"
ROWS, MAX_LENGTH, NEW_TOKENS, LORA_RANK = 256, 512, 64, 8
SHORTEST = 8  # tokens of the shortest response in the generation race

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 50257, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "attention_types": [[["global", "local"], 6]],
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}
LONGER = {"llama": 4}
"""Times the steps of a race, for a model that would be through with them in a second."""
TITLES = {"gpt2": "GPT-2, 124M", "gpt_neo": "GPT-Neo, 125M", "llama": "Llama, 4 layers of 256"}

SAMPLING = SamplingParams(max_new_tokens=NEW_TOKENS)
A_PAIR = Preference(Prompt.ask("ready?"), "yes", "no")


def made(stamp: Path, key: str, make: Callable[[], None]) -> None:
    """Make something unless `stamp` says that it was made from this key."""
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != key:
        make()
        stamp.write_text(key, encoding="utf-8")


def prepare(shape: str, data: Path) -> Path:
    """A folder with the models and rows of one shape.

    policy/    random weights, embeddings tied as the architecture has them
    counting/  the same, but it ends its responses where it is told to (`count_down`)
    reward/    a reward model on counting/, with an adapter that this project has trained for a step
    rows.jsonl    dialogues: text, ids of prompt and responses, and how long the response to it shall be
    shape.json    weights in matrices of the trunk, and in the head; numbers in a token's keys and values
    """
    folder = FOLDER / "work" / shape
    made(
        folder / "stamp",
        f"{Path(__file__).read_text(encoding='utf-8')}{data.resolve()}",
        lambda: make(shape, data, folder),
    )
    return folder


def make(shape: str, data: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(prepare_files(FileData(path=str(data), include="*.jsonl.gz"), seed=0).preferences.train)
    texts = ((*(turn.content for turn in pair.prompt.messages), pair.chosen, pair.rejected) for pair in pairs)
    tokenizer = train_tokenizer(chain.from_iterable(texts), SHAPES[shape]["vocab_size"])
    for name, tied in (("policy", True), ("counting", False)):
        model = new_model(shape, tokenizer, tie_word_embeddings=tied)
        if not tied:
            count_down(model, tokenizer)
        with saving(folder / name):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    train_reward(folder / "counting", folder / "reward")

    renderer = load_policy(folder / "policy", trainable=False).renderer("chat", MAX_LENGTH)
    rng.python_rng(0, "race", "pairs").shuffle(pairs)
    unique = {pair.prompt: pair for pair in pairs}.values()
    rows = [row for pair in unique if (row := row_of(pair, renderer))][:ROWS]
    token_of = {count: token for token, count in counts(tokenizer).items()}
    step = (NEW_TOKENS - SHORTEST) / (ROWS // 4 - 1)  # each quarter of the rows holds every length
    for number, row in enumerate(rows):
        row["budget"] = SHORTEST + round(number * 37 % (ROWS // 4) * step)
        row["counted_ids"] = [*row["prompt_ids"][:-1], token_of[row["budget"]]]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "shape.json").write_text(json.dumps(matrices(new_model(shape, tokenizer))), encoding="utf-8")


def new_model(shape: str, tokenizer: Any, **changes: Any) -> PreTrainedModel:
    """Random weights; the vocabulary may be wider than the tokenizer's."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**{**SHAPES[shape], **ids, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@torch.no_grad()
def count_down(model: PreTrainedModel, tokenizer: Any, strength: float = 16.0) -> None:
    """Make a response end after as many tokens as the last token of its prompt says.

    Every token of the vocabulary has a count. One of count n is followed by some token of count n − 1, one of count 1
    by the end. Both sides thus sample responses of given lengths with nothing but the model's own probabilities. With
    this strength another count has a chance below 1e-6; GPT-Neo, whose blocks are loud, miscounts with a quarter of it.
    """
    embedding, head = (layer.get_parameter("weight") for layer in embeddings(model))
    embedding[:, : NEW_TOKENS + 2] = 0
    head[:, : NEW_TOKENS + 2] = 0
    for token, count in counts(tokenizer).items():
        embedding[token, count] = strength
        head[token, count + 1] = strength


def counts(tokenizer: Any) -> dict[int, int]:
    """Token → count: the end has 0, the mark that a reply begins `NEW_TOKENS`, ordinary tokens what lies between."""
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    named = {tokenizer.eos_token_id: 0, tokenizer.convert_tokens_to_ids("<|assistant|>"): NEW_TOKENS}
    return {token: 1 + token % (NEW_TOKENS - 1) for token in sorted(ordinary)} | named


def train_reward(base: Path, folder: Path) -> None:
    """One step of this project's own reward stage: TRL gets the merged model, Assay may use the adapter."""
    data = Prepared(preferences=Splits([A_PAIR], [A_PAIR], [A_PAIR]))
    config = RewardConfig(lora=LoraConfig(r=LORA_RANK, alpha=2 * LORA_RANK), max_length=MAX_LENGTH)
    reward.run(config, StageInputs(data, str(base)), Stopwatch(folder))


def row_of(pair: Preference, renderer: Renderer) -> dict[str, Any] | None:
    """One dialogue as both sides read it; None where anything would have to be cut."""
    asked = renderer.prompt(pair.prompt)
    chosen, rejected = renderer.response(pair.chosen), renderer.response(pair.rejected)
    if len(asked) + max(len(chosen), len(rejected), NEW_TOKENS) >= MAX_LENGTH:
        return None
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt.messages],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "prompt_ids": asked,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
    }


def embeddings(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """From tokens, and to them."""
    head = model.get_output_embeddings()
    assert head is not None
    return model.get_input_embeddings(), head


def matrices(model: PreTrainedModel) -> dict[str, int]:
    """Weights that a token is multiplied with, in the trunk's matrices and in the head, and numbers kept of it."""
    trunk: nn.Module = model.base_model
    tables = [module.weight for module in trunk.modules() if isinstance(module, nn.Embedding)]
    wide = sum(p.numel() for p in trunk.parameters() if p.ndim == 2)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return {
        "cached": 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads),
        "trunk": wide - sum(table.numel() for table in tables),
        "head": embeddings(model)[1].get_parameter("weight").numel(),
    }
