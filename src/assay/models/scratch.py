"""Small models from nothing: a tokenizer trained on the text at hand, and a randomly initialised transformer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from assay import rng

PAD, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` entries, with role markers, an end and a pad token.

    Source: Sennrich et al. 2016 (arXiv 1508.07909); byte alphabet as in GPT-2, so every text can be encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, extra_special_tokens=list(ROLES)
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def new_model(
    architecture: str, *, layers: int, width: int, heads: int, max_length: int, tokenizer: Any, seed: int
) -> PreTrainedModel:
    """A randomly initialised causal language model of a standard architecture, input and output embeddings tied."""
    shape = new_shape(
        architecture, layers=layers, width=width, heads=heads, max_length=max_length, vocabulary=len(tokenizer)
    )
    shape.pad_token_id, shape.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "weights"))
        return AutoModelForCausalLM.from_config(shape)


def new_shape(architecture: str, *, layers: int, width: int, heads: int, max_length: int, vocabulary: int) -> Any:
    """The transformers configuration of such a model."""
    shared = {"vocab_size": vocabulary, "bos_token_id": None, "tie_word_embeddings": True}
    modern = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_length,
    }
    shapes: dict[str, dict[str, Any]] = {
        "llama": modern | {"intermediate_size": 8 * width // 3 // 8 * 8},
        "gpt_neox": modern | {"intermediate_size": 4 * width},
        "gpt2": {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": max_length}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }
    return AutoConfig.for_model(architecture, **shared, **shapes[architecture])
