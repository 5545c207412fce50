"""Training on shards that lie behind a web server."""

import dataclasses
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.training.loop import train


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Serves a folder on this machine; returns its address."""
    servers = []

    def start(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def losses(config):
    found = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if "loss" in line]


def test_training_reads_the_same_from_afar_within_its_room(train_config, serve, tmp_path):
    data = dataclasses.replace(train_config.data, shard_tokens=2500, shuffle_shards=2, cache_dir=str(tmp_path / "here"))
    near = dataclasses.replace(train_config, data=data)
    train(near)
    (corpus,) = prepare(data, near.tokenizer).corpora.values()
    n_shard = len(corpus.train.split.shards)
    largest = max(shard.tokens for shard in corpus.train.split.shards)
    url = f"{serve(corpus.folder.parent)}/{corpus.folder.name}"
    afar = dataclasses.replace(
        data,
        corpus="prepared",
        paths=[],
        url=url,
        cache_dir=str(tmp_path / "there"),
        cache_gib=5 * (2 * largest + 4096) / 2**30,
    )
    far = dataclasses.replace(near, data=afar, run_dir=str(tmp_path / "far"))
    train(far)
    assert losses(far) == losses(near) and n_shard > 8
    kept = list((tmp_path / "there" / "remote").rglob("*.bin"))
    assert 0 < len(kept) <= 5
    small = dataclasses.replace(afar, cache_gib=2 * (2 * largest + 4096) / 2**30)
    with pytest.raises(UserError, match=r"tiny: 3 shards are read together \(data.shuffle_shards=2\)"):
        train(dataclasses.replace(far, data=small, run_dir=str(tmp_path / "small")))


def test_another_tokenizer_than_the_corpus_was_prepared_with_is_refused(train_config, serve, tmp_path):
    (corpus,) = prepare(train_config.data, train_config.tokenizer).corpora.values()
    url = f"{serve(corpus.folder.parent)}/{corpus.folder.name}"
    (tmp_path / "other").mkdir()
    other = prepare(train_config.data, TokenizerConfig(vocab_size=290)).tokenizer
    other.save(tmp_path / "other" / "tokenizer.json")
    data = dataclasses.replace(train_config.data, corpus="prepared", paths=[], url=url, cache_dir=str(tmp_path / "c"))
    source = TokenizerConfig(source=str(tmp_path / "other"))
    with pytest.raises(UserError, match=f"data.url={url} was prepared with another tokenizer"):
        train(dataclasses.replace(train_config, data=data, tokenizer=source))
