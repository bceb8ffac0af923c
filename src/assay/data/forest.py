"""The rows of a batch as trees: a prompt that several rows begin with is there once, and no line is padded in vain.

    row 1   prompt A · answer 1            line 1   prompt A · answer 1 · answer 2
    row 2   prompt A · answer 2      →     line 2   prompt B · answer 3 · pad
    row 3   prompt B · answer 3

Every token attends to its own past only, and stands at the position that it has in its row; so its state, and every
gradient through it, is that of the row alone. Shapes: B rows of T tokens, L lines of W tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assay.data.render import Row


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
    def of(cls, rows: Sequence[Row], *, width: int) -> Forest:
        """Lines of at most `width` tokens, or of the longest row's; a tree that is too wide is cut between branches."""
        longest = max(len(row.ids) for row in rows)
        trees = list(grown(rows, max(width, longest)))
        lines = fitted([size for size, _ in trees], max(size for size, _ in trees))
        shape = (len(lines), max(sum(trees[t][0] for t in line) for line in lines))
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
        """The same on another device."""
        tensors = (self.sources_LW, self.trees_LW, self.branches_LW, self.places_BT)
        return Forest(*(tensor.to(device) for tensor in tensors))

    @property
    def mask(self) -> Tensor:
        """Which token (third axis) attends to which (last): the past of its own branch and prompt, [L, 1, W, W].

        Pads are a tree of their own in each line: no token is without any that it attends to.
        """
        same_tree = self.trees_LW[:, :, None] == self.trees_LW[:, None, :]
        theirs = self.branches_LW[:, None, :]
        return (same_tree & ((theirs == 0) | (theirs == self.branches_LW[:, :, None]))).tril()[:, None]


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
