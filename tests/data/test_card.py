import json
from collections import Counter

import numpy as np
import pytest
from preparing import made_up

from gptstar.data.card import EXAMPLE_TOKENS, checksum, write_card
from gptstar.data.shards import ShardWriter, Split


@pytest.fixture
def splits(tmp_path, tokenizer) -> dict[str, Split]:
    made = {}
    for name, texts in (("train", [*made_up(9), "", "the last"]), ("validation", made_up(2, seed=1))):
        writer = ShardWriter(tmp_path, name, tokenizer.vocab_size, 300)
        for text in texts:
            tokens = np.array([*tokenizer.encode(text), tokenizer.eot_id], np.uint16)
            writer.add(tokens, np.array([len(tokens)]), np.array([len(text.encode())]))
        made[name] = writer.close()
    return made


def write(folder, splits, tokenizer, removed=None, contaminated=None, n_piece=2, licence=None):
    pieces = [{"name": f"piece {i}", "fingerprint": "x", "held_out": i == 0} for i in range(n_piece)]
    removed, contaminated = Counter(removed or {}), Counter(contaminated or {})
    read = {"documents": 13 + sum(removed.values()), "bytes": 9999}
    write_card(folder, "c", licence, pieces, read, splits, removed, contaminated, {"clean": "none"}, tokenizer)
    return json.loads((folder / "data.json").read_text()), (folder / "DATA.md").read_text()


def test_the_card_says_what_is_there(tmp_path, splits, tokenizer):
    card, text = write(tmp_path, splits, tokenizer, {"too short": 7, "empty": 0}, {"piqa": 3}, licence="CC0")
    for name, split in splits.items():
        counts = {"documents": split.documents, "bytes": split.bytes, "tokens": split.tokens}
        assert card["splits"][name] == counts
        ratio = split.bytes / split.tokens
        assert f"| {name} | {split.documents} | {split.bytes:,} | {split.tokens:,} | {ratio:.2f} |" in text
    assert "Licence: CC0" in text and "| too short | 7 | 35.00% |" in text and "piqa 3." in text
    assert card["checksum"] == checksum(splits) and card["checksum"] in text
    assert card["tokenizer"]["fingerprint"] == tokenizer.fingerprint()
    assert '- clean: "none"' in text and "- piece 0 (held out)\n- piece 1\n" in text


def test_examples_are_beginnings_of_documents(tmp_path, splits, tokenizer):
    card, text = write(tmp_path, splits, tokenizer)
    texts = made_up(9)
    assert len(card["examples"]) == 3 and card["examples"][0] and texts[0].startswith(card["examples"][0])
    for example in card["examples"]:
        assert any(t.startswith(example) for t in texts) and len(tokenizer.encode(example)) <= EXAMPLE_TOKENS
        assert all(f"    {line}" in text for line in example.splitlines())


def test_nothing_removed_and_nothing_there_read_well_too(tmp_path, tokenizer):
    card, text = write(tmp_path, {"train": Split(), "validation": Split()}, tokenizer, n_piece=30)
    assert card["examples"] == [] and "Removed: 0 documents.\n" in text and "Licence: not stated" in text
    assert "| train | 0 | 0 | 0 | - |" in text and "- and 10 more: data.json lists them" in text
    assert text.count("- piece") == 20


def test_the_checksum_follows_every_shard(splits):
    before = checksum(splits)
    splits["validation"].shards[0].offsets_sha256 = "0" * 64
    assert checksum(splits) != before


def test_the_card_does_not_depend_on_when_it_was_written(tmp_path, splits, tokenizer):
    first = write(tmp_path, splits, tokenizer)
    assert write(tmp_path, splits, tokenizer) == first
