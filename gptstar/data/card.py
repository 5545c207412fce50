"""The card of a prepared corpus: data.json, and DATA.md for a person. It does not depend on when or how it was made."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gptstar.data.shards import Split, TokenStream
from gptstar.data.tokenizer import Tokenizer

N_EXAMPLE, EXAMPLE_TOKENS = 3, 80
PIECES_SHOWN = 20


def checksum(splits: dict[str, Split]) -> str:
    """One sha256 over those of all shards, in order."""
    total = hashlib.sha256()
    for name, split in splits.items():
        for shard in split.shards:
            total.update(f"{name} {shard.sha256} {shard.offsets_sha256}\n".encode())
    return total.hexdigest()


def write_card(
    folder: Path,
    name: str,
    licence: str | None,
    pieces: list[dict],
    read: dict[str, int],
    splits: dict[str, Split],
    removed: Counter[str],
    contaminated: Counter[str],
    settings: dict[str, Any],
    tokenizer: Tokenizer,
) -> None:
    """Writes both into `folder`, where the shards are already.

    read: documents and bytes before anything was removed; settings: what decided about the documents.
    """
    values = {
        "name": name,
        "licence": licence,
        "read": read,
        "splits": {
            key: {"documents": split.documents, "bytes": split.bytes, "tokens": split.tokens}
            for key, split in splits.items()
        },
        "removed": dict(sorted(removed.items())),
        "contaminated_but_kept": dict(sorted(contaminated.items())),
        "checksum": checksum(splits),
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint()},
        "settings": settings,
        "pieces": pieces,
        "examples": _examples(folder, splits["train"], tokenizer),
    }
    (folder / "data.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "DATA.md").write_text(_markdown(values), encoding="utf-8")


def _examples(folder: Path, split: Split, tokenizer: Tokenizer) -> list[str]:
    """The beginnings of some documents, from all over the first shard."""
    if not split.shards:
        return []
    offsets = np.load(folder / split.shards[0].offsets_file)
    stream = TokenStream(folder, split, tokenizer.vocab_size)
    found = []
    for row in np.unique(np.arange(N_EXAMPLE) * len(offsets) // N_EXAMPLE):
        start = int(offsets[row])
        tokens = stream.read(start, min(EXAMPLE_TOKENS, len(stream) - start)).tolist()
        end = tokens.index(tokenizer.eot_id) if tokenizer.eot_id in tokens else len(tokens)
        found.append(tokenizer.decode(tokens[:end]))
    return found


def _markdown(card: dict[str, Any]) -> str:
    lines = [f"# {card['name']}", "", f"Licence: {card['licence'] or 'not stated'}", ""]
    lines += ["| split | documents | bytes | tokens | bytes a token |", "|---|---:|---:|---:|---:|"]
    for name, split in card["splits"].items():
        ratio = f"{split['bytes'] / split['tokens']:.2f}" if split["tokens"] else "-"
        lines.append(f"| {name} | {split['documents']:,} | {split['bytes']:,} | {split['tokens']:,} | {ratio} |")
    read, n_removed = card["read"], sum(card["removed"].values())
    lines += ["", f"Read: {read['documents']:,} documents, {read['bytes']:,} bytes. Removed: {n_removed:,} documents"]
    if n_removed:
        lines[-1] += " (removed.jsonl lists them)."
        lines += ["", "| reason | documents | share of those read |", "|---|---:|---:|"]
        lines += [f"| {why} | {n:,} | {n / read['documents']:.2%} |" for why, n in card["removed"].items()]
    else:
        lines[-1] += "."
    if card["contaminated_but_kept"]:
        found = ", ".join(f"{task} {n:,}" for task, n in card["contaminated_but_kept"].items())
        lines += ["", f"Kept although they share text with evaluation sets (contaminated.jsonl): {found}."]
    lines += ["", f"Checksum (sha256 over all shards): `{card['checksum']}`", "", "## Settings", ""]
    lines += [f"- {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in card["settings"].items()]
    lines += ["", "## Pieces", ""]
    lines += [f"- {piece['name']}" + (" (held out)" if piece["held_out"] else "") for piece in card["pieces"]][
        :PIECES_SHOWN
    ]
    if len(card["pieces"]) > PIECES_SHOWN:
        lines.append(f"- and {len(card['pieces']) - PIECES_SHOWN:,} more: data.json lists them")
    lines += ["", "## Examples", ""]
    for example in card["examples"]:
        lines += [*(f"    {line}" for line in example.splitlines()), "", "---", ""]
    return "\n".join(lines).rstrip("-\n ") + "\n"
