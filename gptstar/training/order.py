"""What each step trains on: the corpora's windows, in an order that is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from gptstar.data.config import DataConfig
from gptstar.data.mixture import History, Mixture, Source, epochs_from_weights
from gptstar.data.packing import Batch, BestFit, Concatenated, Packing, shorten
from gptstar.data.prepare import Prepared, PreparedCorpus
from gptstar.errors import UserError
from gptstar.sizes import say_bytes
from gptstar.training.config import TrainerConfig, batch_sizes, sequence_lengths


class Order:
    """The batches of a run, by step.

    rank, n_rank: which share of each is read here. begun: what `as_dict` gave of the run that is gone on with.
    """

    def __init__(
        self,
        corpora: Prepared,
        data: DataConfig,
        options: TrainerConfig,
        length: int,
        rank: int = 0,
        n_rank: int = 1,
        begun: dict | None = None,
    ) -> None:
        self.length, self.rank, self.n_rank, self.masked = length, rank, n_rank, data.document_mask
        self.sizes = batch_sizes(options)
        self.lengths = sequence_lengths(options, length)
        self.packings = {
            name: pack(data.packing, corpus, length, corpora.tokenizer.eot_id, Path(data.cache_dir).expanduser())
            for name, corpus in corpora.corpora.items()
        }
        self.corpora = corpora.corpora
        for name, corpus in self.corpora.items():
            if corpus.ahead is not None:
                check_cache(name, corpus, data)
        sources = self._sources(data)
        try:
            if begun is None:
                self.history = History([Mixture(sources, options.seed, locality=data.shuffle_shards)])
            else:
                self.history = History.from_dict(begun["history"]).changed(sources, begun["position"])
        except ValueError as error:
            raise UserError(f"data={data.name}: {error}") from error

    def read(self, step: int) -> Batch:
        """This rank's share of the sequences of a step (from 0), their documents numbered where a mask parts them."""
        size = self.sizes.size(step) // self.n_rank
        first = self.sizes.position(step) + self.rank * size
        sources, which, windows = self.history.windows(first, size)
        parts = []
        for i in np.unique(which).tolist():
            rows = np.flatnonzero(which == i)
            parts.append((rows, self.packings[sources[i].name].read(windows[rows], self.masked)))
        self._read_ahead(first + size)
        return shorten(_merged(parts), self.lengths.length(step))

    def taken(self, step: int) -> dict[str, int]:
        """How many sequences of each corpus, of full length, come before a step."""
        return self.history.taken(self.sizes.position(step))

    def epochs(self, step: int) -> dict[str, float]:
        """How often each corpus has been gone through before a step."""
        return {name: n / self.packings[name].n_window for name, n in self.taken(step).items() if name in self.packings}

    def passes(self, step: int) -> float:
        """Passes over the mixture, since it is what it is, before a step."""
        position = self.sizes.position(step)
        return self.history.at(position).passes(position)

    def tokens(self, step: int) -> int:
        """Positions that are read in a step, on all ranks, padding included."""
        return self.sizes.size(step) * self.length

    def introduction(self, n_step: int) -> str:
        """What a run of so many steps reads, in a few lines."""
        lines, taken = [], self.taken(n_step)
        for name, corpus in self.corpora.items():
            made = "cached" if corpus.cached else "prepared"
            lines.append(
                f"{name}: {len(corpus.train):,} training and {len(corpus.validation):,} held-out tokens ({made} in "
                f"{corpus.folder}), {taken[name] / self.packings[name].n_window:.2f} epochs"
            )
            if corpus.ahead is None:  # otherwise it would be fetched whole
                lines.append(f"  {self.packings[name].waste()}")
        return "\n".join(lines)

    def as_dict(self, step: int) -> dict:
        """For a checkpoint."""
        return {"history": self.history.as_dict(), "position": self.sizes.position(step)}

    def _sources(self, data: DataConfig) -> list[Source]:
        weights = {name: config.weight for name, config in data.parts.items() if config.weight is not None}
        most = {name: config.epochs for name, config in data.parts.items()}
        counts = {name: packing.n_window for name, packing in self.packings.items()}
        epochs: Mapping[str, float | Fraction] = epochs_from_weights(counts, weights, most) if weights else most
        return [
            Source(name, packing.windows_per_shard, epochs[name], f"{self.corpora[name].key} {data.packing}")
            for name, packing in self.packings.items()
        ]

    def _read_ahead(self, position: int) -> None:
        """Tells corpora behind a URL which shards come next."""
        wanted = {name: corpus.ahead for name, corpus in self.corpora.items() if corpus.ahead is not None}
        if wanted:
            for name, (now, after) in self.history.at(position).shards_ahead(position).items():
                if name in wanted:
                    wanted[name]([*now, *after])


def check_cache(name: str, corpus: PreparedCorpus, data: DataConfig) -> None:
    """Raises UserError where the shards of a remote corpus that are in use together do not fit the cache."""
    split = corpus.train.split
    token_bytes = corpus.train.token_bytes
    n_together = min(len(split.shards), data.shuffle_shards + 1 if data.shuffle_shards else len(split.shards))
    n_byte = (n_together + 1) * max(shard.tokens for shard in split.shards) * token_bytes  # and a held-out one
    if corpus.n_byte is not None and n_byte > corpus.n_byte:
        raise UserError(
            f"{name}: {n_together} shards are read together (data.shuffle_shards={data.shuffle_shards}), which take "
            f"{say_bytes(n_byte)}, and data.cache_gib={data.cache_gib} leaves it {say_bytes(corpus.n_byte)}: "
            "raise it, or set data.shuffle_shards lower (0 is all of them)"
        )


def pack(kind: str, corpus: PreparedCorpus, length: int, eot_id: int, cache: Path) -> Packing:
    """A corpus's training split as windows, in the way data.packing names."""
    if kind == "best_fit":
        return BestFit(corpus.train, length, eot_id, corpus.offsets, cache / "plans")
    return Concatenated(corpus.train, length, eot_id, corpus.offsets)


def _merged(parts: list[tuple[np.ndarray, Batch]]) -> Batch:
    """Rows of several batches in their places."""
    if len(parts) == 1:
        return parts[0][1]
    places = torch.from_numpy(np.concatenate([rows for rows, _ in parts])).argsort()
    pieces = zip(*(batch.tensors for _, batch in parts), strict=True)
    return Batch(*(torch.cat(piece)[places] for piece in pieces))
