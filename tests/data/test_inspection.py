from dataclasses import replace

import numpy as np
import pytest

import gptstar.data.inspection as inspection
from gptstar.data.config import DataConfig
from gptstar.data.inspection import document_lengths, packing_wastes, piece, token_usage, visible
from gptstar.data.packing import BestFit, Concatenated
from gptstar.data.prepare import Prepared, PreparedCorpus, prepare
from gptstar.data.tokenizer import TokenizerConfig
from support import write_corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Documents of all lengths, in several shards."""
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "text", n_file=30)
    for i, path in enumerate(sorted((folder / "text").glob("*.txt"))):
        path.write_text(path.read_text()[: 3 + 40 * i])
    data = DataConfig(
        name="t",
        corpus="text_files",
        paths=[f"{folder}/text/*.txt"],
        cache_dir=str(folder / "cache"),
        validation_fraction=0.3,
        shard_tokens=1000,
    )
    return prepare(data, TokenizerConfig(vocab_size=300))


@pytest.fixture
def corpus(prepared) -> PreparedCorpus:
    assert len(prepared.corpora["t"].train.split.shards) > 2
    return prepared.corpora["t"]


def sizes_of(corpus, eot_id, n_token=None) -> np.ndarray:
    tokens = corpus.train.read(0, n_token or len(corpus.train))
    return np.diff(np.flatnonzero(tokens == eot_id), prepend=-1)


@pytest.mark.parametrize("exact", [None, 64])
def test_lengths_are_those_of_the_documents(prepared, corpus, monkeypatch, exact):
    if exact:
        monkeypatch.setattr(inspection, "EXACT", exact)
    sizes = sizes_of(corpus, prepared.tokenizer.eot_id)
    found = document_lengths(corpus, 100)
    assert found.counts.sum() == len(sizes) and found.tokens.sum() == sizes.sum() == len(corpus.train)
    assert found.longest == sizes.max() and found.mean == sizes.mean()
    assert found.median == min(exact or 10**9, np.sort(sizes)[(len(sizes) - 1) // 2])
    assert found.longer == ((sizes > 100).mean(), sizes[sizes > 100].sum() / sizes.sum())
    last = len(found.counts) - 1
    for i, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
        inside = sizes[(sizes >= low) & ((sizes < high) | (i == last))]
        assert (found.counts[i], found.tokens[i]) == (len(inside), inside.sum())


def test_edges_grow_evenly_and_hold_every_length():
    edges = inspection._edges(1 << 20)
    assert edges[:9].tolist() == [1, 2, 3, 4, 6, 8, 11, 16, 23] and edges[-2] == 1 << 20
    assert inspection._edges(8).tolist() == [1, 2, 3, 4, 6, 8, 11]
    assert inspection._edges(1).tolist() == [1, 2]


def test_all_tokens_are_counted_or_blocks_from_all_over(prepared, corpus, monkeypatch):
    tokens, vocab_size = corpus.train.read(0, len(corpus.train)), prepared.tokenizer.vocab_size
    monkeypatch.setattr(inspection, "BLOCK", 64)
    found = token_usage(corpus, vocab_size, 10**9)
    assert np.array_equal(found.counts, np.bincount(tokens, minlength=vocab_size))
    assert found.counted == found.n_token == len(tokens)
    assert found.share.sum() == pytest.approx(1) and found.unused == (found.counts == 0).mean()
    some = token_usage(corpus, vocab_size, 300)
    n = -(-len(tokens) // 64)
    blocks = [tokens[64 * b : 64 * b + 64] for b in (n * i // 5 for i in range(5))]
    assert np.array_equal(some.counts, np.bincount(np.concatenate(blocks), minlength=vocab_size))
    assert some.counted == 320 and some.n_token == len(tokens)


def test_packings_are_compared_on_the_first_shards(prepared, corpus, monkeypatch):
    eot_id = prepared.tokenizer.eot_id
    found, n_shard = packing_wastes(corpus, 64, prepared.tokenizer)
    assert list(found) == ["concatenate", "concatenate + mask", "best_fit", "best_fit + mask"]
    assert n_shard == len(corpus.train.split.shards)
    for kind, packing in (("concatenate", Concatenated), ("best_fit", BestFit)):
        waste = packing(corpus.train, 64, eot_id, corpus.offsets).waste()
        assert found[kind] == waste and waste.crossing > 0
        assert found[f"{kind} + mask"] == replace(waste, crossing=0)
    monkeypatch.setattr(inspection, "MOST_PLANNED", 2)
    found, n_shard = packing_wastes(corpus, 64, prepared.tokenizer)
    assert n_shard == 2
    assert found["best_fit"].tokens == sum(shard.tokens for shard in corpus.train.split.shards[:2])


def test_of_a_corpus_behind_a_url_only_the_first_shard_is_fetched(prepared, corpus):
    asked = []

    def offsets(shard):
        asked.append(shard.file)
        return corpus.offsets(shard)

    remote = replace(corpus, offsets=offsets, ahead=lambda numbers: None)
    first = corpus.train.split.shards[0]
    assert document_lengths(remote, 100).tokens.sum() == first.tokens
    assert packing_wastes(remote, 64, prepared.tokenizer)[1] == 1
    usage = token_usage(remote, prepared.tokenizer.vocab_size, 10**9)
    assert (usage.counted, usage.n_token) == (first.tokens, len(corpus.train))
    assert set(asked) == {first.file}


def test_what_cannot_be_seen_is_escaped(prepared):
    tokenizer = prepared.tokenizer
    (newline,), euro = tokenizer.encode("\n"), tokenizer.encode("€")
    assert piece(tokenizer, newline) == r"'\n'" and piece(tokenizer, tokenizer.eot_id) == "'<|endoftext|>'"
    assert len(euro) == 3 and piece(tokenizer, euro[0]) == f"{tokenizer.fast.id_to_token(euro[0])!r}"
    assert visible("a\n\tb\x1b[31m\xa0") == "a\n\tb\\x1b[31m\\xa0"
