"""The rows of a batch as trees: a prompt that several rows begin with is there once, and no line is padded in vain.

    row 1   prompt A · answer 1            line 1   prompt A · answer 1 · answer 2
    row 2   prompt A · answer 2      →     line 2   prompt B · answer 3 · pad
    row 3   prompt B · answer 3

Every token attends to its own past only, and stands at the position that it has in its row; so its state, and every
gradient through it, is that of the row alone. Shapes: B rows of T tokens, L lines of W tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from assay.data.pack import to_device
from assay.data.render import Row

STEP = 32
"""Tokens between the sizes of long lines: sizes that come again are memory and prepared products used again."""
BLOCK = 128
"""Tokens of a block, unless a row has more: large products are quick, small ones compute less in vain."""


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of the lines that attend together: to themselves, and to their prompt if that is in an earlier block."""

    own: slice
    prompt: slice | None
    bias: Tensor
    """What is added to the scores of attention, [L, own, prompt + own]: 0, or −∞ where a token does not attend."""


@dataclass(frozen=True, slots=True)
class Forest:
    """Where the tokens of a batch stand in the lines, and where those of the lines stand in the batch."""

    sources_LW: Tensor
    """The place in the flattened batch of each token of the lines; 0 on pads."""
    trees_LW: Tensor
    """Number of a token's tree in its line, from 1; 0 on pads."""
    branches_LW: Tensor
    """Number of its branch in the tree, from 1; 0 in the prompt that the branches share."""
    places_BT: Tensor
    """The place in the flattened lines of each token of the batch; 0 on pads."""

    @classmethod
    def of(cls, rows: Sequence[Row], *, width: int | None, step: int = STEP) -> Forest:
        """Lines of at most `width` tokens, or of the longest row's; a tree that is too wide is cut between branches.

        With `width=None` they are made for attention by blocks: one line of everything, with few pads at its end; or,
        where every tree is small, short lines that attend all at once.
        """
        longest = max(len(row.ids) for row in rows)
        if width is None:
            trees = list(grown(rows, sys.maxsize))
            lines = [list(range(len(trees)))]
            sizes = [size for size, _ in trees]
            if max(sizes) <= BLOCK < sum(sizes):
                lines = min(
                    (fitted(sizes, room) for room in (max(sizes), BLOCK)), key=lambda found: cells(found, sizes)
                )
        else:
            trees = list(grown(rows, max(width, longest)))
            lines = fitted([size for size, _ in trees], max(size for size, _ in trees))
        tokens = max(sum(trees[t][0] for t in line) for line in lines)
        if width is None and tokens > BLOCK:
            tokens = recurring(tokens, step)
        shape = (len(lines), tokens)
        sources, numbers, branches = np.zeros((3, *shape), dtype=np.int64)
        places = np.zeros((len(rows), longest), dtype=np.int64)
        for number, line in enumerate(lines):
            at = 0
            for tree, (size, members) in enumerate((trees[t] for t in line), start=1):
                numbers[number, at : at + size] = tree
                root, prompt = at, rows[members[0]].prompt_length
                sources[number, at : at + prompt] = members[0] * longest + np.arange(prompt)
                at += prompt
                for branch, b in enumerate(members, start=1):
                    own = slice(at, at + len(rows[b].ids) - prompt)
                    sources[number, own] = b * longest + np.arange(prompt, len(rows[b].ids))
                    branches[number, own] = branch
                    places[b, :prompt] = number * shape[1] + np.arange(root, root + prompt)
                    places[b, prompt : len(rows[b].ids)] = number * shape[1] + np.arange(own.start, own.stop)
                    at = own.stop
        return cls(*map(torch.from_numpy, (sources, numbers, branches, places)))

    def to(self, device: torch.device | str) -> Forest:
        """The same on a device."""
        tensors = (self.sources_LW, self.trees_LW, self.branches_LW, self.places_BT)
        return Forest(*(to_device(tensor, device) for tensor in tensors))

    @property
    def mask(self) -> Tensor:
        """Which token (third axis) attends to which (last): the past of its own branch and prompt, [L, 1, W, W].

        Pads are a tree of their own in each line: no token is without any that it attends to.
        """
        return attends(self.trees_LW, self.branches_LW, self.trees_LW, self.branches_LW).tril()[:, None]

    def blocks(self) -> list[Block]:
        """Several lines are one block; one is cut into whole trees, and a wide tree's first and further branches."""
        trees, branches = self.trees_LW, self.branches_LW
        if len(trees) > 1:
            everything = slice(0, trees.shape[1])
            return [Block(everything, None, bias_of(trees, branches, everything, None))]
        return [
            Block(own, prompt, bias_of(trees, branches, own, prompt))
            for own, prompt in spans(trees[0].tolist(), branches[0].tolist())
        ]


def attends(query_tree: Tensor, query_branch: Tensor, key_tree: Tensor, key_branch: Tensor) -> Tensor:
    """Whether the keys are of the query's tree, and of its prompt or its own branch: [.., Q], [.., K] → [.., Q, K]."""
    key_branch = key_branch[..., None, :]
    shared = (key_branch == 0) | (key_branch == query_branch[..., :, None])
    return shared & (query_tree[..., :, None] == key_tree[..., None, :])


def bias_of(trees_LW: Tensor, branches_LW: Tensor, own: slice, prompt: slice | None) -> Tensor:
    """The bias of a block; every token of the prompt comes before it."""
    mine = trees_LW[:, own], branches_LW[:, own]
    seen = attends(*mine, *mine).tril()
    if prompt is not None:
        seen = torch.cat([attends(*mine, trees_LW[:, prompt], branches_LW[:, prompt]), seen], 2)
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)


def recurring(size: int, step: int) -> int:
    """The next multiple of `step`, a power of two; of a smaller one where that might be over an eighth more."""
    while step > 1 and step * 8 > size:
        step //= 2
    return -(-size // step) * step


def cells(lines: Sequence[Sequence[int]], sizes: Sequence[int]) -> int:
    """Tokens of the lines with their pads."""
    return len(lines) * max(sum(sizes[thing] for thing in line) for line in lines)


def spans(trees: Sequence[int], branches: Sequence[int]) -> Iterator[tuple[slice, slice | None]]:
    """Blocks of at most `BLOCK` tokens, or of one branch, as (own tokens, tokens of the prompt)."""
    start = at = 0
    for _, members in groupby(zip(trees, branches, strict=True), key=itemgetter(0)):
        sizes = [len(list(branch)) for _, branch in groupby(members, key=itemgetter(1))]
        tree, prompt = at, sizes[0] if branches[at] == 0 else 0
        at += sum(sizes)
        if at - start <= BLOCK:
            continue
        if tree > start:
            yield slice(start, tree), None
        start = tree
        if at - start <= BLOCK:
            continue
        stop = tree + prompt
        for size in sizes[1:] if prompt else sizes:
            if stop + size - start > BLOCK and stop > tree + prompt:
                yield slice(start, stop), slice(tree, tree + prompt) if prompt and start > tree else None
                start = stop
            stop += size
        yield slice(start, at), slice(tree, tree + prompt) if prompt and start > tree else None
        start = at
    if at > start:
        yield slice(start, at), None


def grown(rows: Sequence[Row], width: int) -> Iterator[tuple[int, list[int]]]:
    """Trees as (tokens, rows), rows of one prompt together as far as `width` allows."""
    together: dict[object, list[int]] = {}
    for b, row in enumerate(rows):
        prompt = tuple(row.ids[: row.prompt_length])
        together.setdefault(prompt or b, []).append(b)
    for members in together.values():
        prompt = rows[members[0]].prompt_length
        size, tree = prompt, list[int]()
        for b in members:
            own = len(rows[b].ids) - prompt
            if tree and size + own > width:
                yield size, tree
                size, tree = prompt, []
            size += own
            tree.append(b)
        yield size, tree


def fitted(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the things in each line: longest first, each into the fullest line that has room for it (best fit)."""
    lines: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # with_room[r]: lines with room for r tokens
    for thing in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[thing]
        room = next((r for r in range(size, capacity + 1) if with_room[r]), None)
        if room is None:
            lines.append([thing])
            with_room[capacity - size].append(len(lines) - 1)
        else:
            line = with_room[room].pop()
            lines[line].append(thing)
            with_room[room - size].append(line)
    return lines
