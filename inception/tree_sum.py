"""The order in which a step's micro-batches are summed: one binary tree, whoever holds them. Pure.

Float addition is commutative but not associative, so a sum has the same bits everywhere only if its
parentheses are fixed. Node (k, r) stands for the micro-batches j = r mod 2**k; its halves are
(k + 1, r) and (k + 1, r + 2**k); node (0, 0) is the sum of all M. Of W = 2**k ranks, rank r holds
the micro-batches j = r mod W, which are exactly node (k, r): one partial sum per rank. Any other
distribution is exact too, but may leave a rank with several partial sums.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

Node = tuple[int, int]  # (k, r)
ROOT: Node = (0, 0)

T = TypeVar("T")


@dataclass(frozen=True)
class TreeSum:
    """owners: the rank of each of the M micro-batches, at least one, by index."""

    owners: tuple[int, ...]
    world_size: int

    @classmethod
    def of(cls, num_micro_batches: int, world_size: int) -> "TreeSum":
        """Rank r holds the micro-batches j = r mod world_size, as the canonical order has it."""
        return cls(tuple(j % world_size for j in range(num_micro_batches)), world_size)

    @cached_property
    def parts(self) -> tuple[tuple[Node, ...], ...]:
        """The partial sums of each rank: the largest nodes of which it holds every micro-batch."""
        parts: list[list[Node]] = [[] for _ in range(self.world_size)]
        for node, rank in self._owned(ROOT):
            parts[rank].append(node)
        return tuple(tuple(nodes) for nodes in parts)

    def order(self, rank: int) -> list[int]:
        """A rank's micro-batches, each half of a node right after the other: then at most
        log2(M) + 1 values per part wait for their other half."""
        return [j for node in self.parts[rank] for j in self._leaves(node)]

    def leaf(self, index: int) -> Node:
        """The node of one micro-batch."""
        k = 0
        while index >= 1 << k or index + (1 << k) < len(self.owners):
            k += 1
        return k, index

    def join(self, parts: Mapping[Node, T], add: Callable[[T, T], T], node: Node = ROOT) -> T:
        """The sum of a node from parts that cover it."""
        if node in parts:
            return parts[node]
        left, right = self._halves(node)
        return add(self.join(parts, add, left), self.join(parts, add, right))

    def joins(self, index: int, rank: int) -> tuple[list[Node], Node]:
        """The sums to which a rank adds its micro-batch `index`, in turn, if micro-batches come in
        `order`: those of left halves whose right half is complete with it. -> them, and the node
        that it becomes."""
        (k, r), left_halves = self.leaf(index), []
        while (k, r) not in self.parts[rank] and r >> (k - 1):
            k, r = k - 1, r % (1 << (k - 1))
            left_halves.append((k + 1, r))
        return left_halves, (k, r)

    def max_sums(self, rank: int) -> int:
        """How many sums a rank holds at once, at most, if micro-batches come in `order`."""
        held: set[Node] = set()
        most = 0
        for index in self.order(rank):
            left_halves, node = self.joins(index, rank)
            most = max(most, len(held) + 1)
            held = held - set(left_halves) | {node}
        return most

    def _halves(self, node: Node) -> tuple[Node, ...]:
        """Empty for a single micro-batch."""
        k, r = node
        return () if r + (1 << k) >= len(self.owners) else ((k + 1, r), (k + 1, r + (1 << k)))

    def _owned(self, node: Node) -> Iterator[tuple[Node, int]]:
        """The largest nodes of which one rank holds every micro-batch, each with that rank."""
        k, r = node
        rank, *others = set(self.owners[r :: 1 << k])
        if not others:
            yield node, rank
            return
        for half in self._halves(node):
            yield from self._owned(half)

    def _leaves(self, node: Node) -> Iterator[int]:
        halves = self._halves(node)
        if not halves:
            yield node[1]
        for half in halves:
            yield from self._leaves(half)
