import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preparing import BPE, contents, corpus_of, left_in, made_up, marks, records, write_jsonl

from gptstar.data.config import ContaminationConfig, DataConfig
from gptstar.data.prepare import prepare


class Killed(BaseException):
    """As sudden as it gets within a process."""


@pytest.mark.slow
def test_a_stop_at_any_rename_or_removal_changes_nothing(tmp_path, tokenizer, small_parts, monkeypatch):
    data = records(tmp_path)
    write_jsonl(tmp_path / "task.jsonl", made_up(1, seed=2, n_word=12))
    data = dataclasses.replace(data, contamination=ContaminationConfig(tasks=[f"{tmp_path}/task.jsonl"]))
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no power cut: only slow
    names = ("replace", "unlink", "rmdir")
    calls = {name: getattr(os, name) for name in names}
    done, stop_at, n_again = 0, None, 0
    parts: set[str] = set()

    def counted(name):
        def call(first, *rest, **more):
            nonlocal done, n_again
            done += 1
            target = str(rest[0]) if name == "replace" else ""
            if ".parts-" in target and target.endswith(".json"):
                n_again += target in parts
                parts.add(target)
            if done == stop_at:
                raise Killed
            result = calls[name](first, *rest, **more)
            if -done == (stop_at or 0):
                raise Killed
            return result

        return call

    for name in names:
        monkeypatch.setattr(os, name, counted(name))
    expected = contents(corpus_of(prepare(data, BPE, given=tokenizer)).folder)
    total = done
    assert len(parts) > 12 and total > 60
    cache = tmp_path / "again"
    for point in (*range(1, total, 11), *range(-total, 0, 23)):
        data = dataclasses.replace(data, cache_dir=str(cache / str(point)))
        done, stop_at, n_again = 0, point, 0
        parts.clear()
        with pytest.raises(Killed):
            prepare(data, BPE, given=tokenizer)
        done, stop_at = 0, None
        folder = corpus_of(prepare(data, BPE, given=tokenizer)).folder
        assert contents(folder) == expected and left_in(Path(data.cache_dir)) == []
        assert n_again <= 1  # the one whose mark was just about to be set


STARTER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
from gptstar.data import lines, prepare, tokenise
from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
import json
lines.BLOCK_BYTES, tokenise.PART_BYTES, prepare.SMALL = 2000, 10_000, 0
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.setsid()
        print(os.getpid(), flush=True)
        os.dup2(2, 1)
        try:
            prepare.prepare(DataConfig.from_dict(json.loads(line)), TokenizerConfig(vocab_size=300))
        except UserError as error:
            print(error, file=sys.stderr)
            os._exit(1)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Starter:
    """Processes that prepare, one after another, without the time that imports take."""

    def __init__(self, errors: Path) -> None:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen([sys.executable, "-c", STARTER], stderr=file, text=True, **pipes)

    def start(self, data: DataConfig) -> int:
        self.process.stdin.write(json.dumps(dataclasses.asdict(data)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def starter(tmp_path):
    made = Starter(tmp_path / "stderr")
    yield made
    made.close()


def alive(group: int) -> bool:
    """Whether a process group has members that are more than zombies (which whoever adopted them has yet to notice)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def nobody_left(group: int) -> bool:
    end = time.monotonic() + 10
    while alive(group) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(group)


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(tmp_path, starter):
    rng = random.Random(0)
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", made_up(350, seed=number) + made_up(50, seed=number))
    data = records(tmp_path, cache_dir=str(tmp_path / "undisturbed"), shard_tokens=6000)
    starter.start(data)
    began = time.monotonic()
    assert starter.end() == 0
    whole = time.monotonic() - began
    expected = {path.name: contents(path) for path in Path(data.cache_dir).glob("r-*")}
    data = dataclasses.replace(data, cache_dir=str(tmp_path / "cache"))
    cache = Path(data.cache_dir)
    kills, finished, states = 0, 0, set()
    while kills < 20 or not list(cache.glob("r-*")):
        before = marks(cache) if cache.exists() else {}
        pid = starter.start(data)
        time.sleep(rng.uniform(0.1, 0.8) * whole if kills < 20 else 0)
        if kills < 20:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if kills % 2 else os.kill)(pid, signal.SIGKILL)
        code = starter.end()
        assert nobody_left(pid), "a worker outlived the one it worked for"
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        after = marks(cache)
        ready = list(cache.glob("r-*"))
        states.add((bool(after), bool(list(cache.glob(".r-*.work"))), bool(ready)))
        again = [name for name, mark in before.items() if after.get(name, mark) != mark]
        assert not again and (ready or before.keys() <= after.keys())
        if ready:
            assert {path.name: contents(path) for path in ready} == expected
            finished += 1
            if kills < 20:
                for path in (*ready[0].iterdir(), ready[0]):
                    path.rmdir() if path.is_dir() else path.unlink()
    assert finished >= 1 and kills == 20 and len(states) >= 2
    starter.start(data)
    assert starter.end() == 0
    assert left_in(cache) == [] and starter.errors.read_text() == ""


def test_control_c_ends_every_process_in_silence(tmp_path, starter):
    """It reaches the whole group, at any moment, also while workers start."""
    write_jsonl(tmp_path / "in" / "0.jsonl", 6 * made_up(1000, n_word=200))  # more than the time is enough for
    data = DataConfig(corpus="text_files", paths=[f"{tmp_path}/in/*"], cache_dir=str(tmp_path / "cache"), workers=2)
    for seconds in (0.1, 0.3, 0.6):
        group = starter.start(data)
        time.sleep(seconds)
        os.killpg(group, signal.SIGINT)
        assert starter.end() == 130 and nobody_left(group)
    assert starter.errors.read_text() == ""


@pytest.mark.slow
def test_two_processes_that_prepare_the_same_end_with_the_same(tmp_path, starter):
    other = Starter(tmp_path / "stderr 2")
    data = records(tmp_path)
    for made in (starter, other):
        made.start(data)
    assert [made.end() for made in (starter, other)] == [0, 0]
    other.close()
    assert left_in(tmp_path / "cache") == [] and len(list((tmp_path / "cache").glob("r-*"))) == 1
    assert starter.errors.read_text() == other.errors.read_text() == ""
