"""Datasets of the hub, and folders laid out like one, streamed shard by shard by the datasets library.

What stands for a dataset's content: the library resolves a name on the hub to one commit and then reads files of that
commit only, so that (repository, commit, files) cannot change under a run. `builder.config.data_files[split]` is a list
of hf:// addresses that name the commit, and its `origin_metadata` holds (repository, commit) for each. For other files
it holds an ETag or, in a local folder, only the time of change: those are hashed here instead. `builder.hash` is the
commit for the hub, but in a local folder it follows names and settings alone; a dataset that is loaded from the
library's own cache, without a network, has no other. A streamed dataset has no fingerprint of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.data.fingerprint import fingerprint
from gptstar.data.records import BLOCK_BYTES, Block, Fields
from gptstar.data.sources import root_reason
from gptstar.errors import UserError
from gptstar.hub import offline_without_network

ROWS = 1000  # in a block at most
_ROWS_AT_A_TIME = 50  # some datasets have a book in each row


@dataclass(frozen=True)
class HubPiece:
    """One shard of a streamed dataset, most often one of its files."""

    name: str
    shard: Any  # a datasets.IterableDataset with the wanted columns

    def blocks(self, start: int = 0) -> Iterator[Block]:
        import pyarrow as pa

        from gptstar.data.columns import compact

        row = block = 0
        tables: list[pa.Table] = []

        def take() -> Iterator[Block]:
            nonlocal row, block, tables
            if tables:
                whole = pa.concat_tables(tables)
                if block >= start and len(whole):
                    raw = whole.combine_chunks().to_batches()[0]
                    yield Block(self.name, "columns", row, compact(raw))
                row, block, tables = row + len(whole), block + 1, []

        held = size = 0
        stream = self.shard.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME)
        while True:
            try:
                table = next(stream, None)
            except Exception as error:  # any of the formats' and file systems' own
                row += held
                raise UserError(f"{self.name} cannot be read beyond its record {row}: {root_reason(error)}") from error
            if table is None:
                break
            tables.append(table)
            held, size = held + len(table), size + table.nbytes
            if held >= ROWS or size >= BLOCK_BYTES:
                yield from take()
                held = size = 0
        yield from take()


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset, as it was when it was opened: pieces and fingerprint are of the same commit."""

    dataset: str
    subset: str | None
    split: str
    builder: Any

    @property
    def title(self) -> str:
        """What messages call it."""
        return _title(self.dataset, self.subset, self.split)

    def pieces(self, fields: Fields) -> list[HubPiece]:
        """A piece for each shard. UserError where the split or a column is missing."""
        from gptstar.data.columns import columns_of

        try:
            dataset = self.builder.as_streaming_dataset(split=self.split)
            names = dataset.column_names or list(next(iter(dataset.take(1)), {}))
        except Exception as error:
            raise UserError(
                f"{self.title} cannot be loaded: {root_reason(error)}: check its name, or connect"
            ) from error
        dataset = dataset.select_columns(columns_of(fields, names, self.title))
        count = dataset.num_shards
        name = "/".join(part for part in (self.dataset, self.subset, self.split) if part)
        return [
            HubPiece(f"{name}, shard {i} of {count}", dataset.shard(num_shards=count, index=i, contiguous=True))
            for i in range(count)
        ]

    def fingerprint(self, memory: Path | None = None) -> str:
        """Changes whenever the content does. memory: as for `fingerprint` of files."""
        files = (self.builder.config.data_files or {}).get(self.split)
        if not files:
            return hashlib.sha256(f"{self.title}\0{self.builder.hash}".encode()).hexdigest()
        if not all("hf://" in name for name in files):
            return fingerprint(list(files), memory)
        parts = zip(files, files.origin_metadata, strict=True)
        return hashlib.sha256("".join(f"{name}\0{origin}\n" for name, origin in parts).encode()).hexdigest()


def open_hub(dataset: str, subset: str | None, split: str, revision: str | None = None) -> HubSplit:
    """A dataset by its name on the hub or its folder. UserError where there is none, or no network."""
    if not os.path.exists(dataset):
        offline_without_network()
    import datasets  # 2 s: only where it is needed

    try:
        return HubSplit(dataset, subset, split, datasets.load_dataset_builder(dataset, subset, revision=revision))
    except Exception as error:
        raise UserError(
            f"{_title(dataset, subset, split)} cannot be loaded: {root_reason(error)}: check its name, or connect"
        ) from error


def _title(dataset: str, subset: str | None, split: str) -> str:
    return f"data.dataset={dataset!r} (subset {subset}, split {split!r})"
