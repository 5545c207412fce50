"""The lab from checkpoints to rows: arithmetic, contexts and strides, limits, continuing, mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.evaluation import perplexity as perplexity_module
from gptstar.evaluation.perplexity import PerplexityConfig, metrics, perplexity
from gptstar.evaluation.results import read_results
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import save_weights
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
TEXT = "Some words, again some words; äöü.\n" * 6
COUNTS = {"words": 20, "bytes": 100, "characters": 90}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Makes checkpoints and measures them on TEXT."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def checkpoint(name: str = "model", **changes) -> str:
        torch.manual_seed(0)
        folder = tmp_path / name
        folder.mkdir()
        save_weights(folder, GPT(tiny_model(init_std=0.2, **changes)), TOKENIZER, {"tokens": 1000})
        return name

    def measure(*checkpoints: str, **settings):
        values = {"text": ["text.txt"], "device": "cpu", "output_dir": "out", "checkpoints": list(checkpoints)}
        return perplexity(PerplexityConfig(**{**values, **settings}))

    measure.checkpoint = checkpoint
    return measure


def values(row: dict) -> dict[str, float]:
    return {name: metric["value"] for name, metric in row["metrics"].items()}


def test_what_each_figure_is():
    nats = np.array([np.nan, 1.0, 2.0, np.nan, 3.0, 2.0], dtype=np.float32)
    found = metrics(nats, COUNTS)
    assert found["loss"]["value"] == 2 and found["token_perplexity"]["value"] == pytest.approx(math.exp(2))
    assert found["word_perplexity"]["value"] == pytest.approx(math.exp(2 * 6 / 20))
    assert found["bits_per_byte"]["value"] == pytest.approx(2 / math.log(2) * 6 / 100)
    assert found["bits_per_character"]["value"] == pytest.approx(2 / math.log(2) * 6 / 90)
    assert all(metric["stderr"] is None and metric["higher_is_better"] is False for metric in found.values())
    original = metrics(nats, COUNTS, n_windowed=4)  # the rest counts in the division alone
    assert original["token_perplexity"]["value"] == pytest.approx(math.exp(2 * 4 / 6))
    assert original["bits_per_byte"] == found["bits_per_byte"]


def test_a_figure_beyond_all_numbers_is_none():
    found = metrics(np.full(3000, 10, dtype=np.float32), {"words": 1, "bytes": 100, "characters": 90})
    assert found["word_perplexity"]["value"] is None and found["loss"]["value"] == 10


def test_the_standard_error_is_the_spread_between_blocks(monkeypatch):
    """Of independent tokens in blocks of one it is the textbook's; of repeated ones it does not shrink."""
    monkeypatch.setattr(perplexity_module, "BLOCK", 1)
    nats = np.random.default_rng(0).normal(3, 1, 400)
    textbook = nats.std(ddof=1) / 20
    assert metrics(nats, COUNTS)["loss"]["stderr"] == pytest.approx(textbook)
    assert metrics(nats, COUNTS)["token_perplexity"]["stderr"] == pytest.approx(math.exp(nats.mean()) * textbook)
    monkeypatch.setattr(perplexity_module, "BLOCK", 5)
    assert metrics(np.repeat(nats, 5), COUNTS)["loss"]["stderr"] == pytest.approx(textbook)
    some = np.where(np.arange(2000) % 5 < 3, np.repeat(nats, 5), np.nan)
    assert metrics(some, COUNTS)["loss"]["stderr"] == pytest.approx(textbook)


def test_rows_are_those_of_the_model_itself(lab):
    """Against the model's own loss over the whole text, and bytes and words counted by hand."""
    name = lab.checkpoint()
    (row,) = lab(name, contexts=[1000]).rows
    tokens = [TOKENIZER.eot_id, *TOKENIZER.encode(TEXT)]
    model, _ = perplexity_module.load_for_evaluation(name, "cpu")
    with torch.no_grad():
        loss = model(torch.tensor([tokens[:-1]]), torch.tensor([tokens[1:]])).item()
    n = len(tokens) - 1
    assert values(row) == pytest.approx(
        {
            "loss": loss,
            "token_perplexity": math.exp(loss),
            "word_perplexity": math.exp(loss * n / 36),
            "bits_per_byte": loss * n / math.log(2) / len(TEXT.encode()),
            "bits_per_character": loss * n / math.log(2) / len(TEXT),
        },
        rel=1e-5,
    )
    assert (row["tokens"], row["tokens_scored"], row["bytes"]) == (n, n, len(TEXT.encode()))
    assert (row["task"], row["max_length"], row["stride"], row["protocol"]) == ("text", 1000, 1000, "exact")
    assert row["training_tokens"] == 1000 and row["dtype"] == "fp32" and row["files"].keys() == {"text.txt"}


def test_every_stride_counts_the_same_text(lab):
    rows = lab(lab.checkpoint(), contexts=[16, 24], strides=[5, 20], batch_tokens="50").rows
    assert [(row["max_length"], row["stride"]) for row in rows] == [(16, 5), (24, 5), (24, 20)]
    keys = ("tokens", "tokens_scored", "bytes", "characters", "words", "documents")
    assert len({tuple(row[key] for key in keys) for row in rows}) == 1
    assert len({row["metrics"]["loss"]["value"] for row in rows}) == 3


def test_joints_between_documents_are_read_and_not_scored(lab, tmp_path):
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Some", "words")))
    (row,) = lab(lab.checkpoint(), text=["two.jsonl"], contexts=[32]).rows
    tokens = [TOKENIZER.eot_id, *TOKENIZER.encode("Some"), TOKENIZER.eot_id, *TOKENIZER.encode("words")]
    model, _ = perplexity_module.load_for_evaluation("model", "cpu")
    with torch.no_grad():
        nats = -model(torch.tensor([tokens[:-1]])).log_softmax(-1)[0].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    kept = [nat for nat, token in zip(nats.tolist(), tokens[1:], strict=True) if token != TOKENIZER.eot_id]
    assert row["metrics"]["loss"]["value"] == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    assert row["tokens_scored"] == row["tokens"] == len(kept) and row["documents"] == 2


def test_a_preset_is_the_original_protocol(lab, tmp_path):
    (tmp_path / "raw").write_text("One line \n" * 30)
    name = lab.checkpoint()
    (original,) = lab(name, preset="wikitext2", text=["raw"], contexts=[16]).rows
    (exact,) = lab(name, preset="wikitext2", text=["raw"], contexts=[16], protocol="exact").rows
    n = original["tokens"]
    assert original["protocol"] == "original" and original["tokens_scored"] == n // 16 * 15
    assert values(original)["token_perplexity"] == pytest.approx(
        math.exp(values(original)["loss"] * (n // 16 * 16) / n), rel=1e-12
    )
    assert exact["tokens_scored"] == n and exact["preset"] == original["preset"] == "wikitext2"


def test_learned_positions_end_at_their_limit(lab):
    learned, alibi = lab.checkpoint("learned", position="learned"), lab.checkpoint("alibi")
    outcome = lab(learned, alibi, contexts=[16, 32, 64])
    assert [(row["checkpoint"], row["max_length"]) for row in outcome.rows] == [
        ("learned", 16),
        ("learned", 32),
        ("alibi", 16),
        ("alibi", 32),
        ("alibi", 64),
    ]
    assert outcome.notes == ["contexts=[64] of learned: its 32 learned positions are the most it can read; left out"]
    with pytest.raises(UserError, match=r"contexts=\[33, 64\] of learned: its 32 learned positions .* lower them"):
        lab(alibi, learned, contexts=[33, 64], output_dir="other")
    assert lab(learned).rows[0]["max_length"] == 32


def test_what_is_measured_is_not_measured_again(lab, monkeypatch):
    name = lab.checkpoint()
    first = lab(name, contexts=[16]).rows
    calls = []
    score = perplexity_module.score_windows
    monkeypatch.setattr(perplexity_module, "score_windows", lambda *args: (calls.append(args), score(*args))[1])
    assert lab(name, contexts=[16, 24]).rows[0] == first[0] and len(calls) == 1
    lab(name, contexts=[16], strides=[8])
    lab(name, contexts=[16], max_bytes=100)
    lab(lab.checkpoint("other", n_layer=1), contexts=[16])
    assert len(calls) == 4 and len(read_results(Path("out/perplexity.json"))) == 5


def test_an_interrupted_sweep_keeps_what_it_has(lab, monkeypatch):
    name, score = lab.checkpoint(), perplexity_module.score_windows

    def interrupted(model, stream, windows, *rest):
        if windows[0].end > 16:
            raise KeyboardInterrupt
        return score(model, stream, windows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(perplexity_module, "score_windows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab(name, contexts=[8, 16, 24, 32])
    kept = read_results(Path("out/perplexity.json"))
    rows = lab(name, contexts=[8, 16, 24, 32]).rows
    assert [row["max_length"] for row in kept] == [8, 16] and rows[:2] == kept and len(rows) == 4


def test_a_model_that_gives_no_numbers_is_refused(lab, tmp_path):
    (tmp_path / "big").mkdir()
    model = GPT(tiny_model())
    torch.nn.init.constant_(model.blocks[1].norm.weight, 3e38)
    save_weights(tmp_path / "big", model, TOKENIZER, {})
    with pytest.raises(UserError, match="big gives no numbers at context=32"):
        lab("big")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"contexts": [0]}, ValueError, "contexts=0 must be at least 1"),
        ({"contexts": [1], "protocol": "original"}, ValueError, "contexts=1 must be at least 2"),
        ({"strides": [0]}, ValueError, "strides=0 must be at least 1"),
        ({"max_bytes": 0}, ValueError, "max_bytes=0 must be at least 1"),
        ({"strides": [16], "preset": "wikitext2"}, ValueError, "protocol=original has stride = context"),
        ({"preset": "wikitext"}, ValueError, "preset='wikitext' is unknown: choose one of wikitext2, enwik8, text8"),
        ({"protocol": "both"}, ValueError, "protocol='both' is unknown: choose one of exact, original"),
        ({"dtype": "fp8"}, ValueError, "dtype='fp8' is unknown"),
        ({"text": []}, ValueError, "there is no text"),
        ({"checkpoints": []}, ValueError, "checkpoints is empty"),
        ({"contexts": [16], "strides": [17]}, UserError, "strides=17 is longer than every context"),
        ({"contexts": [600], "protocol": "original"}, UserError, "the text has .* tokens, fewer than one window"),
        ({"text": ["empty.txt"]}, UserError, "empty.txt: there is no text in it"),
        ({"checkpoints": ["nowhere"]}, UserError, "nowhere: no such run or checkpoint"),
        ({"batch_tokens": "many"}, UserError, "batch_tokens='many' must be auto or a number"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(lab, tmp_path, monkeypatch, settings, error, words):
    (tmp_path / "empty.txt").touch()
    name = lab.checkpoint()
    monkeypatch.setattr(perplexity_module, "score_windows", lambda *args: pytest.fail("it measured"))
    with pytest.raises(error, match=words):
        lab(*settings.pop("checkpoints", [name]), **settings)


def test_a_folder_that_cannot_be_made_is_refused_before_a_model_is_loaded(lab, monkeypatch):
    name = lab.checkpoint()
    monkeypatch.setattr(perplexity_module, "load_for_evaluation", None)
    with pytest.raises(UserError, match=r"output_dir=/proc/x cannot be made \(No such file.*\): choose another one"):
        lab(name, output_dir="/proc/x")


def test_a_tokenizer_of_another_model_is_refused(lab, tmp_path):
    (tmp_path / "small").mkdir()
    save_weights(tmp_path / "small", GPT(tiny_model(vocab_size=100)), TOKENIZER, {})
    with pytest.raises(UserError, match="they do not belong together"):
        lab("small")
