import json
from dataclasses import replace

import numpy as np
import pytest
from preparing import made_up

from gptstar.data.contamination import Contamination
from gptstar.data.duplicates import NearConfig, exact_key
from gptstar.data.filters import FilterConfig
from gptstar.data.records import Block, Fields
from gptstar.data.tokenizer import Tokenizer
from gptstar.data.worker import Chunk, Preparer, Recipe, cleaner, hash_share, reasons
from gptstar.errors import UserError


@pytest.fixture
def recipe(tokenizer) -> Recipe:
    return Recipe(tokenizer.fast.to_str(), tokenizer.eot_token, Fields(), None)


def block(texts, first: int = 0) -> Block:
    return Block("a.jsonl", "jsonl", first, b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts))


def texts_of(chunk: Chunk, tokenizer: Tokenizer) -> list[str]:
    tokens = np.frombuffer(chunk.tokens, "<u2")
    parts = np.split(tokens, np.cumsum(chunk.documents["tokens"].astype(int)))
    assert not len(parts[-1]) and all(part[-1] == tokenizer.eot_id for part in parts[:-1])
    assert (tokens == tokenizer.eot_id).sum() == len(chunk.documents)
    return [tokenizer.decode(part[:-1].tolist()) for part in parts[:-1]]


def test_documents_are_tokens_in_order_each_with_its_end(recipe, tokenizer):
    texts = ["one text", "zwei ü", "three\nlines", "<|endoftext|> is only text"]
    chunk = Preparer(recipe).process(block(texts, 10))
    assert texts_of(chunk, tokenizer) == texts
    assert chunk.documents["record"].tolist() == [10, 11, 12, 13]
    assert chunk.documents["bytes"].tolist() == [len(t.encode()) for t in texts]
    assert (chunk.n_read, chunk.n_byte) == (4, sum(len(t.encode()) for t in texts))
    assert not chunk.documents["held_out"].any() and not len(chunk.keys) and not len(chunk.signatures)


def test_every_record_read_is_kept_or_listed_with_its_reason(recipe, tokenizer):
    raw = block(["fine text", "", "x", "\ud800 half a pair"]).raw + b'{"text": 1}\n'
    wanted = replace(recipe, bad_records="skip", filters=FilterConfig(min_chars=3))
    chunk = Preparer(wanted).process(Block("a.jsonl", "jsonl", 0, raw))
    assert [(e["record"], e["reason"]) for e in chunk.removed] == [(1, "empty"), (2, "too short"), (4, "unreadable")]
    assert "holds int, not text" in chunk.removed[2]["detail"] and chunk.removed[0]["piece"] == "a.jsonl"
    assert chunk.n_read == 5 == len(chunk.documents) + sum(reasons(chunk).values())
    assert texts_of(chunk, tokenizer) == ["fine text", "\ufffd half a pair"]


def test_the_first_unreadable_record_stops_it_and_says_what_else_could_be_done(recipe):
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 .*not valid JSON.*data\.bad_records=skip leaves such"):
        Preparer(recipe).process(Block("a.jsonl", "jsonl", 0, b'{"text": "a"}\n{\n'))


def test_cleaning_comes_before_filters_and_may_leave_nothing(recipe, tokenizer):
    wanted = replace(recipe, clean="ftfy", filters=FilterConfig(max_chars=4))
    chunk = Preparer(wanted).process(block(["caf\u00c3\u00a9", "\x07"]))
    assert texts_of(chunk, tokenizer) == ["caf\u00e9"]
    assert chunk.n_byte == len("caf\u00c3\u00a9".encode()) + 1 and chunk.documents["bytes"].tolist() == [5]
    assert [e["reason"] for e in chunk.removed] == ["empty"]
    assert cleaner("none")("caf\u00c3\u00a9") == "caf\u00c3\u00a9"


def test_held_out_by_a_hash_of_the_text(recipe):
    texts = made_up(400, n_word=3)
    held_out = Preparer(replace(recipe, held_out=0.25)).process(block(texts)).documents["held_out"]
    assert held_out.tolist() == [hash_share(text) < 0.25 for text in texts] and 60 < held_out.sum() < 140
    assert not Preparer(replace(recipe, held_out=0.0)).process(block(texts)).documents["held_out"].any()


def test_keys_and_signatures_belong_to_the_documents_that_stay(recipe):
    texts = ["some text of words", "", "some text of words", "another one than that"]
    wanted = replace(recipe, exact_duplicates=True, near_duplicates=NearConfig(0.5, n_gram=2, n_permutation=32))
    chunk = Preparer(wanted).process(block(texts))
    assert chunk.keys.tobytes() == b"".join(exact_key(texts[i]) for i in (0, 2, 3))
    assert chunk.signatures.shape == (3, 32) and (chunk.signatures[0] == chunk.signatures[1]).all()
    assert (chunk.signatures[0] != chunk.signatures[2]).any()


@pytest.mark.parametrize("remove", [True, False])
def test_evaluation_texts(recipe, tokenizer, tmp_path, remove):
    texts = made_up(5)
    Contamination({"task": [texts[2]]}, 13, 8, 1).save(tmp_path / "c.npz")
    wanted = replace(recipe, contamination=tmp_path / "c.npz", remove_contaminated=remove, near_duplicates=NearConfig())
    chunk = Preparer(wanted).process(block(["", *texts]))
    listed = [e for e in (chunk.removed if remove else chunk.contaminated) if e["reason"] == "contaminated"]
    assert [(e["record"], e["task"]) for e in listed] == [(3, "task")] and listed[0]["n_match"] > 0
    assert texts_of(chunk, tokenizer) == [t for t in texts if t != texts[2] or not remove]
    assert len(chunk.signatures) == len(chunk.documents) == (4 if remove else 5)
    assert [e["record"] for e in chunk.removed] == ([0, 3] if remove else [0])


def test_joining_chunks_is_the_same_as_one_block(recipe):
    texts = [*made_up(9), ""]
    preparer = Preparer(replace(recipe, exact_duplicates=True, near_duplicates=NearConfig()))
    whole = preparer.process(block(texts))
    joined = Chunk.joined([preparer.process(block(texts[i : i + 3], i)) for i in range(0, 10, 3)])
    assert (joined.tokens, joined.removed, joined.n_read, joined.n_byte) == (
        whole.tokens,
        whole.removed,
        whole.n_read,
        whole.n_byte,
    )
    for name in ("documents", "keys", "signatures"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    assert Chunk.joined([]).n_read == 0 and len(Chunk.joined([]).documents) == 0
