"""Attention over blocks of trees is attention under the trees' mask: values, gradients, grouped queries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny
from tests.unit.algorithms.batches import quick
from torch import Tensor

from assay.data import forest as forests
from assay.data.forest import Forest
from assay.data.pack import collate
from assay.data.render import Row
from assay.models.backbone import Backbone, drop_dropout
from assay.models.policy import load_policy
from assay.models.tree_attention import attention_forward, stretches_of
from assay.rollout.cache import seen_columns


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    """Rows of few prompts; a prompt may be empty, an answer may be longer than a block."""
    prompts = draw(st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=4))
    lengths = st.integers(1, 9) | st.integers(10, 30)
    answers = draw(st.lists(st.tuples(st.sampled_from(prompts), lengths), min_size=1, max_size=9))
    return [Row([*prompt, *([7] * length)], len(prompt)) for prompt, length in answers]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The definition, [L, heads, W, D] → [L, W, heads, D]; every query head with the key head of its group."""
    groups = query.shape[1] // key.shape[1]
    found = []
    for h in range(query.shape[1]):
        scores = scale * query[:, h] @ key[:, h // groups].transpose(1, 2)
        seen = scores.masked_fill(~mask[:, 0], -math.inf)
        found.append(torch.softmax(seen, -1) @ value[:, h // groups])
    return torch.stack(found, 2)


@quick
@given(rows=batches(), size=st.integers(1, 40), groups=st.sampled_from([1, 3]))
def test_attention_by_blocks_is_attention_under_the_mask(rows: list[Row], size: int, groups: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forests, "BLOCK", size)
        forest = Forest.of(rows, width=None)
        blocks = forest.blocks()
    lines, width = forest.sources_LW.shape
    assert [place for block in blocks for place in range(width)[block.own]] == list(range(width))
    noise = torch.Generator().manual_seed(width)
    shapes = [(lines, 2 * groups, width, 4), (lines, 2, width, 4), (lines, 2, width, 4)]
    q, k, v = (torch.randn(shape, generator=noise, dtype=torch.double, requires_grad=True) for shape in shapes)
    for block in blocks:
        object.__setattr__(block, "bias", block.bias.double())
    module: Any = None
    found, _ = attention_forward(module, q, k, v, None, scaling=0.7, blocks=blocks)
    expected = dense(q, k, v, forest.mask, 0.7)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape, generator=noise, dtype=torch.double)
    gradients = [torch.autograd.grad(out, (q, k, v), upstream) for out in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@quick
@given(rows=batches(), size=st.integers(1, 40))
def test_a_block_is_as_large_as_it_may_be_and_no_larger_than_it_must(rows: list[Row], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forests, "BLOCK", size)
        forest = Forest.of(rows, width=None)
        blocks = forest.blocks()
    longest = max(len(row.ids) for row in rows)
    sizes = [block.own.stop - block.own.start for block in blocks]
    assert max(sizes) <= max(size, longest, forests.STEP)  # pads are one branch
    if len(forest.trees_LW) == 1:
        tokens = int((forest.trees_LW > 0).sum())
        assert forest.trees_LW.numel() == (tokens if tokens <= size else forests.recurring(tokens, forests.STEP))
    assert all(block.prompt is None or block.prompt.stop <= block.own.start for block in blocks)


@quick
@given(spans=st.lists(st.integers(1, 20), min_size=1, max_size=11), spare=st.integers(0, 3))
def test_rows_of_unequal_length_are_read_from_where_they_begin_and_come_out_the_same(
    spans: list[int], spare: int
) -> None:
    width = max(spans) + spare
    stretches = stretches_of(spans, width)
    assert [row for rows, _ in stretches for row in range(len(spans))[rows]] == list(range(len(spans)))
    assert all(start == width - max(spans[rows]) for rows, start in stretches)
    noise = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(len(spans), 2, tokens, 4, generator=noise) for tokens in (1, width, width))
    mask = seen_columns(spans, width, width, "cpu")[:, None, None, :]
    module: Any = None
    told, _ = attention_forward(module, q, k, v, mask, scaling=0.5, is_causal=False, stretches=stretches)
    plain, _ = attention_forward(module, q, k, v, mask, scaling=0.5, is_causal=False)
    torch.testing.assert_close(told, plain)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "qwen3"])
def test_models_hand_over_what_it_needs_and_are_saved_as_they_came(name: str, tmp_path: Path) -> None:
    policy = load_policy(tiny.folder(name))
    assert policy.backbone.by_blocks
    policy.save(tmp_path)
    assert "assay_trees" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name


def test_where_attention_drops_something_in_training_it_is_left_to_the_model() -> None:
    backbone: Backbone = load_policy(tiny.folder("gpt2")).backbone
    backbone.model.config.attn_pdrop = 0.1
    batch = collate([Row([1, 2, 3], 1), Row([1, 4], 1)], 0)
    backbone.model.train()
    assert not backbone.by_blocks
    trained = backbone.forest(batch)
    backbone.model.eval()
    evaluated = backbone.forest(batch)
    assert trained is not None
    assert evaluated is not None
    torch.testing.assert_close(backbone.lines(batch, trained), backbone.lines(batch, evaluated))


def test_dropout_that_is_off_for_good_leaves_attention_to_the_blocks_though_the_configuration_names_a_rate() -> None:
    backbone: Backbone = load_policy(tiny.folder("gpt2")).backbone
    assert backbone.model.config.attn_pdrop > 0
    batch = collate([Row([1, 2, 3], 1), Row([1, 4], 1)], 0)
    alone = backbone.hidden(batch)[batch.attention_mask]
    drop_dropout(backbone.model)
    backbone.model.train()
    assert backbone.by_blocks
    torch.testing.assert_close(backbone.states(batch, batch.attention_mask.flatten().nonzero().flatten()), alone)
