"""One fixed summation tree over the micro-batches of a step, whoever computes them.

Floating-point addition is not associative, so a sum has the same bits on any world only if the same pairs are added.
The pairs are those of the binary tree over range(leaves): node (level, number) covers the leaves
[number * 2**level, (number + 1) * 2**level), and where `leaves` is no power of two, a node whose right child holds no
leaf is its left child. Merging neighbours as soon as they are siblings is a binary counter: a rank that computes the
leaves [a, b) one after another adds as often as plain accumulation does and holds at most 2 log2(leaves) partial sums.
Pure; the values may be anything that can be added.

Source: pairwise summation; Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Node(NamedTuple):
    """A node of the tree: `level` counts from the leaves, `number` from the left."""

    level: int
    number: int


def highest(node: Node, leaves: int) -> Node:
    """Return the highest node that covers the same leaves: the nodes above it have nothing on their right."""
    level, number = node
    root = (leaves - 1).bit_length()
    while level < root and number % 2 == 0 and (number + 1) << level >= leaves:
        level, number = level + 1, number // 2
    return Node(level, number)


class TreeSum(Generic[T]):
    """A sum that is built from the left, node by node; `parts` are the partial sums that still lack a sibling."""

    def __init__(self, leaves: int, add: Callable[[T, T], T]) -> None:
        """Sum over range(leaves); `add(left, right)` may overwrite and return `left`."""
        self._leaves, self._add = leaves, add
        self.parts: list[tuple[Node, T]] = []

    def push(self, node: Node, value: T) -> None:
        """Take in the sum of a node; nodes come in order of their leaves."""
        node = highest(node, self._leaves)
        while self.parts and node.number % 2 and self.parts[-1][0] == (node.level, node.number - 1):
            value = self._add(self.parts.pop()[1], value)
            node = highest(Node(node.level + 1, node.number // 2), self._leaves)
        self.parts.append((node, value))

    def total(self) -> T:
        """Return the sum over all leaves, once every node is in."""
        assert len(self.parts) == 1, f"leaves are missing: {[node for node, _ in self.parts]}"
        return self.parts[0][1]


def partials(leaves: int, mine: range) -> tuple[Node, ...]:
    """Return the nodes whose sums a rank that computes the leaves `mine` is left with, from the left."""
    total: TreeSum[None] = TreeSum(leaves, lambda left, right: None)
    for leaf in mine:
        total.push(Node(0, leaf), None)
    return tuple(node for node, _ in total.parts)
