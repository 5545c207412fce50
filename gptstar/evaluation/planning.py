"""Which sequences are read together: what they share once, and how much of the rest at a time. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_SHARED = 8  # tokens: a shorter common beginning is not worth a forward pass of its own
MAX_CROP = 16  # groups whose common beginnings differ by at most 1/16 are read in one pass


@dataclass(frozen=True)
class Group:
    """Sequences with a common beginning of `prefix` tokens; 0 for one that is read by itself."""

    prefix: int
    members: list[int]


@dataclass(frozen=True)
class Chunk:
    """What follows the shared beginnings, in one forward pass: (which beginning, which sequence) a row."""

    rows: list[tuple[int, int]]
    width: int  # tokens of the longest row


@dataclass(frozen=True)
class Batch:
    """The first `prefix` tokens of each of `heads` are read in one pass, then the chunks continue them."""

    prefix: int
    heads: list[int]
    chunks: list[Chunk]

    @property
    def cost(self) -> int:
        """Tokens read, padding included."""
        return self.prefix * len(self.heads) + sum(chunk.width * len(chunk.rows) for chunk in self.chunks)


def plan_batches(sequences: Sequence[tuple[int, ...]], budget: int) -> list[Batch]:
    """Batches of at most `budget` tokens a forward pass (or one sequence), longest first.

    The sequences are distinct and not empty. Each is a row of exactly one chunk.
    """
    groups = share_prefixes(sequences)
    alone = [group.members[0] for group in groups if not group.prefix]
    shared = sorted((group for group in groups if group.prefix), key=lambda group: -group.prefix)
    batches = [_batch(sequences, 0, [alone], budget)] if alone else []
    start = 0
    for end in range(1, len(shared) + 1):
        if end < len(shared) and _together(shared[start].prefix, shared[end].prefix, end - start + 1, budget):
            continue
        # All beginnings of a batch are cut to the shortest: what is cut off one is read with each of its rows.
        members = [group.members for group in shared[start:end]]
        batches.append(_batch(sequences, shared[end - 1].prefix, members, budget))
        start = end
    return batches


def _together(longest: int, shortest: int, n_group: int, budget: int) -> bool:
    return n_group * shortest <= budget and longest - shortest <= longest // MAX_CROP


def _batch(sequences: Sequence[tuple[int, ...]], prefix: int, groups: list[list[int]], budget: int) -> Batch:
    rows = [(head, member) for head, members in enumerate(groups) for member in members]
    rows.sort(key=lambda row: -len(sequences[row[1]]))
    widths = [len(sequences[member]) - prefix for _, member in rows]
    chunks: list[Chunk] = []
    start = 0
    for end in range(1, len(rows) + 1):
        width = widths[start]
        # A row that is all beginning needs no pass of its own, nor a place in another's.
        if end == len(rows) or (end - start + 1) * width > budget or (width and not widths[end]):
            chunks.append(Chunk(rows[start:end], width))
            start = end
    return Batch(prefix, [members[0] for members in groups] if prefix else [], chunks)


@dataclass
class _Node:
    """Sequences that begin with the same `depth` tokens, and the cheapest way found to read them."""

    depth: int
    members: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    saved: int = 0  # tokens not read again, by those groups

    def add(self, child: _Node) -> None:
        together = (len(child.members) - 1) * child.depth
        if child.depth >= MIN_SHARED and together > child.saved:
            child.groups, child.saved = [Group(child.depth, child.members)], together
        self.members += child.members
        self.groups += child.groups
        self.saved += child.saved


def share_prefixes(sequences: Sequence[tuple[int, ...]]) -> list[Group]:
    """Puts every distinct sequence into one group so that the fewest tokens are read.

    A group's common beginning is read once, so it saves (members - 1) * prefix tokens. The sequences, sorted, form a
    prefix tree; from its leaves up each node keeps the better of its children's groups and one group of its own. This
    finds the four endings of a HellaSwag context, the two halves of a Winogrande sentence and the examples in front of
    every MMLU question alike.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    stack = [_Node(0)]
    for rank, i in enumerate(order):
        _close(stack, common_prefix(sequences[order[rank - 1]], sequences[i]) if rank else 0)
        stack.append(_Node(len(sequences[i]), [i], [Group(0, [i])]))
    _close(stack, 0)
    return stack[0].groups


def _close(stack: list[_Node], depth: int) -> None:
    """Finishes the nodes deeper than `depth`."""
    while stack[-1].depth > depth:
        done = stack.pop()
        if stack[-1].depth < depth:
            stack.append(_Node(depth))
        stack[-1].add(done)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
