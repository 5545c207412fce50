import dataclasses
import io
import re
import threading
import time
from pathlib import Path

from preparing import BPE, contents, corpus_of, left_in, records
from rich.console import Console

from gptstar.data import assemble, tokenise
from gptstar.data import prepare as module
from gptstar.data.prepare import prepare


def test_of_two_at_once_one_waits(tmp_path, tokenizer, small_parts, monkeypatch):
    data = records(tmp_path)
    seen, entered = [], threading.Semaphore(0)
    make = module._Preparation._make

    def slow(self, *rest):
        entered.release()
        time.sleep(0.3)
        make(self, *rest)

    monkeypatch.setattr(module._Preparation, "_make", slow)
    out = io.StringIO()

    def one():
        seen.append(corpus_of(prepare(data, BPE, Console(file=out, width=200), given=tokenizer)))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(corpus.cached for corpus in seen) == [False, True] and seen[0].folder == seen[1].folder
    assert "another process is preparing a corpus like r: waiting for it" in out.getvalue()
    assert entered._value == 1 and left_in(Path(data.cache_dir)) == []


def test_two_at_once_that_train_a_tokenizer(data, monkeypatch):
    seen, errors = [], []

    def one():
        try:
            seen.append(prepare(data, BPE).tokenizer.fingerprint())
        except BaseException as error:
            errors.append(error)

    trained = []
    train = module.train_tokenizer
    monkeypatch.setattr(module, "train_tokenizer", lambda *args: trained.append(1) or train(*args))
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(seen) == 4 and len(set(seen)) == 1 and len(trained) == 1


def test_opening_what_is_ready_leaves_parts_alone_that_another_is_using(tmp_path, tokenizer, small_parts, monkeypatch):
    """Two corpora by one recipe share a file; the first is opened while the second is in the making."""
    data = records(tmp_path)
    first = dataclasses.replace(data, paths=[f"{tmp_path}/in/0.jsonl"])
    prepare(first, BPE, given=tokenizer)
    found = []
    writes = assemble.ShardWriter.add

    def meanwhile(self, *rest):
        if not found:
            found.append(corpus_of(prepare(first, BPE, given=tokenizer)))
        return writes(self, *rest)

    monkeypatch.setattr(assemble.ShardWriter, "add", meanwhile)
    prepared = prepare(data, BPE, given=tokenizer)
    assert found[0].cached and found[0].folder != corpus_of(prepared).folder
    fresh = dataclasses.replace(data, cache_dir=str(tmp_path / "fresh"))
    assert contents(corpus_of(prepared).folder) == contents(corpus_of(prepare(fresh, BPE, given=tokenizer)).folder)


def test_it_says_how_far_it_is(data, tokenizer, small_parts, monkeypatch):
    monkeypatch.setattr(tokenise, "PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    prepare(data, BPE, Console(file=out, width=200), given=tokenizer)
    progress = out.getvalue().splitlines()
    assert len(progress) > 3
    documents_ = [int(re.search(r"([\d,]+) documents", line).group(1)) for line in progress]
    assert documents_ == sorted(documents_) and documents_[-1] == 30
    assert all(line.startswith("preparing t: ") for line in progress[:-1]) and "1/1 pieces" in progress[-1]
