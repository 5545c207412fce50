"""Which sequences are read together: what they share once, and how much of the rest at a time. No tensors here.

Costs are counted in tokens that a forward pass reads, padding included; a pass itself costs as much as some tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

MIN_SHARED = 8  # tokens: a shorter common beginning is not worth a forward pass of its own


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


def plan_batches(sequences: Sequence[tuple[int, ...]], budget: int, pass_cost: int = 0) -> list[Batch]:
    """Batches of at most `budget` tokens a forward pass (or one sequence), longest first.

    The sequences are distinct and not empty. Each is a row of exactly one chunk. pass_cost: in tokens.
    """
    groups = share_prefixes(sequences)
    alone = [group.members[0] for group in groups if not group.prefix]
    shared = sorted((group for group in groups if group.prefix), key=lambda group: -group.prefix)
    batches = [_batch(sequences, 0, [alone], budget, pass_cost)] if alone else []
    for start, end in _cut_beginnings(shared, budget, pass_cost):
        members = [group.members for group in shared[start:end]]
        batches.append(_batch(sequences, shared[end - 1].prefix, members, budget, pass_cost))
    return batches


def _cut_beginnings(groups: list[Group], budget: int, pass_cost: int) -> list[tuple[int, int]]:
    """Which groups, sorted by falling prefix, have their beginnings read in one pass.

    All beginnings of a pass are cut to the shortest: what is cut off one is read again with each of its rows.
    """
    again = [0, *accumulate(len(group.members) - 1 for group in groups)]
    cut_off = [0, *accumulate((len(group.members) - 1) * group.prefix for group in groups)]

    def cost(start: int, end: int) -> float:
        shortest = groups[end - 1].prefix
        extra = cut_off[end] - cut_off[start] - (again[end] - again[start]) * shortest
        return extra + 2 * pass_cost * -(-(end - start) * shortest // budget)  # each pass has rows that follow

    pieces = []
    for start, end in _cut([group.prefix for group in groups], cost):
        step = max(1, budget // groups[end - 1].prefix)
        pieces += [(first, min(first + step, end)) for first in range(start, end, step)]
    return pieces


def _batch(
    sequences: Sequence[tuple[int, ...]], prefix: int, groups: list[list[int]], budget: int, pass_cost: int
) -> Batch:
    rows = [(head, member) for head, members in enumerate(groups) for member in members]
    rows.sort(key=lambda row: -len(sequences[row[1]]))
    widths = [len(sequences[member]) - prefix for _, member in rows]

    def cost(start: int, end: int) -> float:
        padded = (end - start) * widths[start]
        return padded + pass_cost * -(-padded // budget)

    n_row = sum(width > 0 for width in widths)
    chunks = []
    for start, end in _cut(widths[:n_row], cost):
        step = max(1, budget // widths[start])
        chunks += [Chunk(rows[at : min(at + step, end)], widths[at]) for at in range(start, end, step)]
    if n_row < len(rows):  # rows that are all beginning: they need no pass
        chunks.append(Chunk(rows[n_row:], 0))
    return Batch(prefix, [members[0] for members in groups] if prefix else [], chunks)


def _cut(sizes: list[int], cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """The cheapest way to cut a sorted list into pieces [start, end), between unequal sizes only."""
    ends = [0, *accumulate(len(list(equal)) for _, equal in groupby(sizes))]
    best: list[tuple[float, int]] = [(0.0, 0)]  # up to each end: cost, and which end the last piece starts from
    for number, end in enumerate(ends[1:], 1):
        best.append(min((best[earlier][0] + cost(ends[earlier], end), earlier) for earlier in range(number)))
    pieces = []
    number = len(ends) - 1
    while number:
        earlier = best[number][1]
        pieces.append((ends[earlier], ends[number]))
        number = earlier
    return pieces[::-1]


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
