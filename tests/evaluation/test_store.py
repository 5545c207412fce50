"""Finished requests survive a kill, torn line or not."""

import pytest
import torch

import gptstar
from gptstar.errors import UserError
from gptstar.evaluation.store import RequestStore, fingerprint, request_key
from support import tiny_model, tiny_tokenizer


def test_answers_come_back_exactly(tmp_path):
    path = tmp_path / "new" / "requests.jsonl"
    answers = {"a": [-0.1 - 0.2, True], "b": -1e-300, "c": "text\nwith \u2028 lines"}
    RequestStore(path).add(answers)  # on disk without being closed
    store = RequestStore(path)
    assert {key: store.get(key) for key in answers} == answers and store.get("d") is None


def test_a_torn_last_line_is_left_out_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('["a", 1]\n["b", 2')
    store = RequestStore(path)
    assert (store.get("a"), store.get("b")) == (1, None)
    store.add({"c": 3})
    again = RequestStore(path)
    assert [again.get(key) for key in "abc"] == [1, None, 3]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .* choose another output_dir"):
        RequestStore(tmp_path / "file" / "requests.jsonl")


def test_keys_tell_requests_apart():
    requests = [("loglikelihood", "a", "b"), ("loglikelihood", "ab", ""), ("loglikelihood_rolling", "a", "b")]
    assert len({request_key(*request) for request in requests}) == 3
    assert request_key("generate_until", "a", {"x": 1, "y": 2}) == request_key("generate_until", "a", {"y": 2, "x": 1})


def test_a_fingerprint_covers_weights_shape_tokenizer_and_settings():
    torch.manual_seed(0)
    model, tokenizer = gptstar.GPT(tiny_model(vocab_size=400)), tiny_tokenizer()
    first = fingerprint(model, tokenizer, max_length=8)
    assert fingerprint(model, tokenizer, max_length=8) == first
    others = [fingerprint(model, tokenizer, max_length=9), fingerprint(model, tiny_tokenizer(390), max_length=8)]
    others.append(fingerprint(model.bfloat16(), tokenizer, max_length=8))
    with torch.no_grad():
        model.float().norm.weight[0] += 1
    others.append(fingerprint(model, tokenizer, max_length=8))
    assert len({first, *others}) == 5
