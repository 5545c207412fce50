"""Which windows of which corpus come at each position of the training order: a pure function of (seed, position).

A mixture speaks in relative epochs. One pass over it takes e_c n_c windows of source c, which has n_c of them; where
that is a fraction, passes take turns in rounding it. Within a source the windows come in an order of their own, a
permutation an epoch, whatever the mixture around it does: half an epoch a pass means that the next pass brings the
other half, and that no window comes twice before all have come once.

Sources are interleaved by a splitting tree. A node is a stretch of a pass and knows how many windows each source gives
to it; its left half gets half of each count, and of the odd windows half go left, drawn by a hash. So a position is
found in O(log windows) with no table, every prefix of a pass holds each source in proportion (to within the tree's
depth), and what came before a position is the sum of the branches left of it.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from gptstar.data.batches import permute
from gptstar.data.words import mix


@dataclass(frozen=True, eq=False)
class Source:
    """A corpus in a mixture.

    groups  windows in each of its shards, int64
    epochs  how often a pass over the mixture goes through it; a float means the decimal number it prints as
    key     identifies its content, and the way it is cut into windows
    """

    name: str
    groups: np.ndarray
    epochs: float | Fraction = 1
    key: str = ""

    @cached_property
    def n_window(self) -> int:
        """All windows."""
        return int(np.sum(self.groups, dtype=np.int64))

    @cached_property
    def per_pass(self) -> Fraction:
        """Windows a pass."""
        return exact(self.epochs) * self.n_window

    def same_windows(self, other: Source) -> bool:
        """Whether window n is the same in both."""
        return self.key == other.key and np.array_equal(self.groups, other.groups)


class Mixture:
    """The order of training from position `begin` on, where `taken` windows of each source had been used.

    locality: how many shards of a source are in use at a time; 0: all of them. The first pass completes the one that
    each source was in. Raises ValueError for a source that has no windows or gives less than one a pass.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        taken: Mapping[str, int] | None = None,
        begin: int = 0,
        locality: int = 0,
    ) -> None:
        _check(sources)
        self.sources, self.seed, self.begin, self.locality = tuple(sources), int(seed), int(begin), locality
        self._given = dict(taken or {})
        self._taken = [self._given.get(s.name, 0) for s in sources]
        # The largest k with floor(k e n) <= taken: that many passes are behind.
        self._behind = [-(-(n + 1) // s.per_pass) - 1 for s, n in zip(sources, self._taken, strict=True)]
        self._orders = [_Order(s.groups, _hash(self.seed, s.name), locality) for s in sources]

    @property
    def n_pass(self) -> int:
        """Windows of the first pass."""
        return self._length(1)

    def windows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position first .. first + count and the window's number in it, two int64 (count,)."""
        which, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            n_pass, offset = self._pass(first + done)
            length = self._length(n_pass + 1) - self._length(n_pass)
            n = min(count - done, length - offset)
            before, which[done : done + n] = self._walk(n_pass, offset, offset + n)
            for c, start in enumerate(self._before(n_pass)):
                of_c = done + np.flatnonzero(which[done : done + n] == c)
                numbers[of_c] = self._orders[c].windows(start + int(before[c]), len(of_c))
            done += n
        return which, numbers

    def taken(self, position: int) -> dict[str, int]:
        """How many windows of each source come before `position`, from the beginning of training."""
        n_pass, offset = self._pass(position)
        before, _ = self._walk(n_pass, offset, offset + 1)
        starts = self._before(n_pass)
        return self._given | {s.name: starts[c] + int(before[c]) for c, s in enumerate(self.sources)}

    def passes(self, position: int) -> float:
        """Passes over this mixture from `begin` to `position`."""
        n_pass, offset = self._pass(position)
        return n_pass + offset / (self._length(n_pass + 1) - self._length(n_pass))

    def shards_ahead(self, position: int) -> dict[str, tuple[list[int], list[int]]]:
        """The shards that each source reads from at `position`, and those that it reads from after these."""
        taken = self.taken(position)
        return {s.name: order.shards(taken[s.name]) for s, order in zip(self.sources, self._orders, strict=True)}

    def _before(self, n_pass: int) -> list[int]:
        """Windows that each source has given when `n_pass` passes are done, from the beginning of training."""
        if n_pass == 0:
            return self._taken
        return [math.floor((k + n_pass) * s.per_pass) for s, k in zip(self.sources, self._behind, strict=True)]

    def _length(self, n_pass: int) -> int:
        """Positions of so many passes."""
        return sum(self._before(n_pass)) - sum(self._taken)

    def _pass(self, position: int) -> tuple[int, int]:
        """The pass that a position lies in, and its place there."""
        place = position - self.begin
        if place < 0:
            raise IndexError(f"position {position} comes before {self.begin}, where this mixture begins")
        # Passes are of equal length but for roundings, and of at least one window a source: this is one off at most.
        guess = max(0, 1 + math.floor((place - self._length(1)) / sum(s.per_pass for s in self.sources)))
        n_pass = max(n for n in range(max(0, guess - 1), guess + 3) if self._length(n) <= place)
        return n_pass, place - self._length(n_pass)

    def _walk(self, n_pass: int, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of each source in a pass before its place `first`, and the sources of the places first .. stop.

        Goes down level by level with the nodes (N of them, C sources) that reach into first .. stop.
        """
        here, end = self._before(n_pass), self._before(n_pass + 1)
        count_NC = np.array([[b - a for a, b in zip(here, end, strict=True)]], np.int64)
        key_C = np.array([_hash(self.seed, self.begin, n_pass, s.name) for s in self.sources], np.uint64)
        start_N, before_C = np.zeros(1, np.int64), np.zeros(len(self.sources), np.int64)
        for level in range(int(count_NC.sum() - 1).bit_length()):
            node_N1 = (start_N << 6 | level).astype(np.uint64)[:, None]
            left_NC = _left(count_NC, mix(mix(node_N1) ^ key_C))
            start_N = np.stack([start_N, start_N + left_NC.sum(1)], 1).ravel()
            count_NC = np.stack([left_NC, count_NC - left_NC], 1).reshape(-1, len(self.sources))
            stop_N = start_N + count_NC.sum(1)
            before_C += count_NC[stop_N <= first].sum(0)
            inside_N = (stop_N > first) & (start_N < stop) & (stop_N > start_N)
            start_N, count_NC = start_N[inside_N], count_NC[inside_N]
        return before_C, count_NC.argmax(1)


class History:
    """The mixtures of a run, each from the position where it took over.

    A run that goes on with other sources or epochs calls `changed`; what came before stays what it was.
    """

    def __init__(self, mixtures: Iterable[Mixture]) -> None:
        self.mixtures = tuple(mixtures)

    @classmethod
    def from_dict(cls, values: dict) -> History:
        """Reads what `as_dict` wrote."""
        return cls(
            Mixture(
                [
                    Source(name, np.array(s["groups"], np.int64), Fraction(s["epochs"]), s["key"])
                    for name, s in part["sources"].items()
                ],
                values["seed"],
                part["taken"],
                part["begin"],
                values["locality"],
            )
            for part in values["mixtures"]
        )

    def as_dict(self) -> dict:
        """All there is to know, for a JSON file."""
        mixtures = [
            {
                "begin": m.begin,
                "taken": m.taken(m.begin),
                "sources": {
                    s.name: {"key": s.key, "epochs": str(exact(s.epochs)), "groups": np.asarray(s.groups).tolist()}
                    for s in m.sources
                },
            }
            for m in self.mixtures
        ]
        return {"seed": self.mixtures[0].seed, "locality": self.mixtures[0].locality, "mixtures": mixtures}

    def at(self, position: int) -> Mixture:
        """The mixture that gives the window at `position`."""
        return self.mixtures[bisect_right([m.begin for m in self.mixtures[1:]], position)]

    def taken(self, position: int) -> dict[str, int]:
        """How many windows of each source come before `position`, also of sources that were left out since."""
        return self.at(position).taken(position)

    def windows(self, first: int, count: int) -> tuple[list[Source], np.ndarray, np.ndarray]:
        """The sources, and which of them and which of its windows each position first .. first + count takes.

        Raises IndexError for positions on both sides of a change, which happens between steps.
        """
        mixture = self.at(first)
        if count and self.at(first + count - 1) is not mixture:
            raise IndexError(f"positions {first} .. {first + count - 1}: the mixture changes in between")
        return list(mixture.sources), *mixture.windows(first, count)

    def changed(self, sources: Sequence[Source], position: int) -> History:
        """The history that goes on with `sources` from `position`, itself where they are the same; what was planned
        for later is dropped.

        Sources may be added, left out (and brought back) and given other epochs. Raises ValueError for one that has
        been read from and has changed.
        """
        begun = [m for m in self.mixtures if m.begin <= position]
        before = [m for m in begun if m.begin < position]
        for mixtures in (begun, before):
            if mixtures and _same(mixtures[-1].sources, sources):
                return self if len(mixtures) == len(self.mixtures) else History(mixtures)
        now, taken = begun[-1], self.taken(position)
        for source in sources:
            known = next((s for m in reversed(begun) for s in m.sources if s.name == source.name), None)
            if known is None or not taken.get(source.name) or known.same_windows(source):
                continue
            what = "its content" if known.key != source.key else "the number of its windows"
            raise ValueError(
                f"corpus {source.name!r} cannot be gone on with: {what} has changed since {taken[source.name]} of its "
                "windows were used: bring it back as it was, or give it another name to begin it anew"
            )
        return History([*before, Mixture(sources, now.seed, taken, position, now.locality)])


class _Order:
    """The order of one source's windows: a permutation an epoch.

    locality > 0: the shards are permuted, and within every so many of them the windows.
    """

    def __init__(self, groups: np.ndarray, seed: int, locality: int) -> None:
        self.groups, self.seed, self.locality = np.asarray(groups, np.int64), seed, locality
        self.firsts = np.cumsum(self.groups) - self.groups
        self.used = np.flatnonzero(self.groups)
        self.n_window = int(self.groups.sum())
        self._plans: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def windows(self, first: int, count: int) -> np.ndarray:
        """The windows that are taken first .. first + count, counted through all epochs."""
        epoch, index = np.divmod(first + np.arange(count, dtype=np.int64), self.n_window)
        draw = self._local if self.locality else self._global
        out = np.empty(count, np.int64)
        for e in np.unique(epoch):
            out[epoch == e] = draw(index[epoch == e], int(e))
        return out

    def shards(self, taken: int) -> tuple[list[int], list[int]]:
        """The shards in use when `taken` windows were, and the next ones."""
        if not self.locality:
            return self.used.tolist(), []
        epoch, index = divmod(taken, self.n_window)
        shards, _, parts = self._plan(epoch)
        at = int(np.searchsorted(parts, index, side="right"))
        rest = shards[at * self.locality :]
        now, after = rest[: self.locality], rest[self.locality : 2 * self.locality]
        if len(after) == 0:
            after = self._plan(epoch + 1)[0][: self.locality]
        return now.tolist(), after.tolist()

    def _global(self, index: np.ndarray, epoch: int) -> np.ndarray:
        return permute(index, self.n_window, self.seed, epoch)

    def _local(self, index: np.ndarray, epoch: int) -> np.ndarray:
        shards, ends, parts = self._plan(epoch)
        part = np.searchsorted(parts, index, side="right")
        place = np.empty_like(index)
        for p in np.unique(part):
            begin = int(parts[p - 1]) if p else 0
            inside = part == p
            place[inside] = begin + permute(index[inside] - begin, int(parts[p]) - begin, self.seed + 1 + int(p), epoch)
        at = np.searchsorted(ends, place, side="right")
        shard = shards[at]
        return self.firsts[shard] + place - (ends[at] - self.groups[shard])

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards in this epoch's order, where each ends, and where each part of `locality` shards ends."""
        if epoch not in self._plans:
            shards = self.used[permute(np.arange(len(self.used)), len(self.used), self.seed, epoch)]
            ends = np.cumsum(self.groups[shards])
            last = np.minimum(np.arange(self.locality, len(ends) + self.locality, self.locality), len(ends)) - 1
            self._plans = {e: p for e, p in self._plans.items() if abs(e - epoch) < 2}  # neighbours are used together
            self._plans[epoch] = shards, ends, ends[last]
        return self._plans[epoch]


def epochs_from_weights(
    n_windows: Mapping[str, int], weights: Mapping[str, float], most: Mapping[str, float] | None = None
) -> dict[str, Fraction]:
    """Relative epochs that give each source its share of the mix, proportional to its weight.

    most: epochs that a pass may take of a source at most (1 where not named). The pass is as long as these allow, so
    one source is used up to its limit. Raises ValueError for weights or limits that cannot be.
    """
    most = most or {}
    for key, names in (("weight", weights), ("limit of epochs", most)):
        for name, value in names.items():
            if name not in n_windows:
                raise ValueError(f"a {key} is given for {name!r}: choose one of {', '.join(n_windows)}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {key} of {name!r} is {value}: it must be above 0 (leave the corpus out instead)")
    for name, n in n_windows.items():
        if name not in weights:
            raise ValueError(f"corpus {name!r} has no weight: give every corpus one")
        if n < 1:
            raise ValueError(f"corpus {name!r} is shorter than one window: leave it out or lower the sequence length")
    total = sum(map(exact, weights.values()))
    share = {name: exact(weights[name]) / total for name in n_windows}
    length = min(exact(most.get(name, 1)) * n / share[name] for name, n in n_windows.items())
    return {name: share[name] * length / n for name, n in n_windows.items()}


def exact(number: float | Fraction) -> Fraction:
    """A float is the decimal number it prints as: 0.1 is a tenth."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def _left(count_NC: np.ndarray, hash_NC: np.ndarray) -> np.ndarray:
    """What the left halves of N nodes get: half of each count, and of the odd ones those with the smaller hashes."""
    odd_NC = (count_NC & 1).astype(bool)
    draw_NC = np.where(odd_NC, hash_NC >> np.uint64(1), np.uint64(2**64 - 1))
    rank_NC = draw_NC.argsort(1, kind="stable").argsort(1)
    return (count_NC >> 1) + (rank_NC < odd_NC.sum(1, keepdims=True) // 2)


def _hash(*parts: object) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _same(ours: Sequence[Source], theirs: Sequence[Source]) -> bool:
    def alike(a: Source, b: Source) -> bool:
        return a.name == b.name and a.same_windows(b) and a.per_pass == b.per_pass

    return len(ours) == len(theirs) and all(map(alike, ours, theirs))


def _check(sources: Sequence[Source]) -> None:
    names = [s.name for s in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a mixture needs corpora with names of their own, not {names}")
    for source in sources:
        if not source.n_window:
            raise ValueError(
                f"corpus {source.name!r} is shorter than one window: leave it out or lower the sequence length"
            )
        if not (math.isfinite(source.epochs) and source.epochs > 0):
            raise ValueError(f"corpus {source.name!r} has epochs={source.epochs}: it must be above 0")
        if source.per_pass < 1:
            raise ValueError(
                f"corpus {source.name!r} of {source.n_window} windows gives less than one of them to a pass at "
                f"epochs={float(source.epochs):.3g}: raise them, or its weight, or leave the corpus out"
            )
