import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import wait

import pytest

from gptstar.data import pool as module
from gptstar.data.pool import Nobody, Workers
from gptstar.data.records import Block, Fields
from gptstar.data.worker import Recipe
from gptstar.errors import UserError


@pytest.fixture
def recipe(tokenizer) -> Recipe:
    return Recipe(tokenizer.fast.to_str(), tokenizer.eot_token, Fields(), 0.5)


def block(text: str, number: int = 0) -> Block:
    return Block("a.txt", "members", number, [("", text.encode())])


def test_workers_and_nobody_do_the_same(recipe):
    blocks = [block(f"text {i} " * 50, i) for i in range(20)]
    with Nobody(recipe) as nobody:
        expected = [nobody.submit(b).result() for b in blocks]
    with Workers(2, recipe) as workers:
        found = [future.result() for future in [workers.submit(b) for b in blocks]]
    assert [c.tokens for c in found] == [c.tokens for c in expected]
    assert [c.documents.tolist() for c in found] == [c.documents.tolist() for c in expected]
    assert len(workers._processes) == 2 and all(process.returncode == 0 for process in workers._processes)


@pytest.mark.parametrize("make", [Nobody, lambda recipe: Workers(1, recipe)], ids=["nobody", "a worker"])
def test_what_is_wrong_with_the_data_is_said_and_work_goes_on(recipe, make):
    with make(recipe) as workers:
        with pytest.raises(UserError, match=r"a\.txt is not UTF-8 \(byte 0\)"):
            workers.submit(Block("a.txt", "members", 0, [("", b"\xff")])).result()
        assert workers.submit(block("fine")).result().n_read == 1


def test_a_mistake_in_the_program_comes_with_its_traceback(recipe):
    words = r"in a worker process(.|\n)*KeyError: 'no kind'"
    with Workers(1, recipe) as workers, pytest.raises(RuntimeError, match=words):
        workers.submit(Block("a", "no kind", 0, b"")).result()


@pytest.mark.parametrize("n_byte", [10, 10_000_000])
def test_a_worker_that_is_killed_is_one_line_that_names_the_piece(recipe, n_byte):
    """As when memory is short, also in the middle of a block."""
    with pytest.raises(UserError) as error, Workers(1, recipe) as workers:
        workers.submit(block("fine")).result()
        workers._processes[0].kill()
        workers._processes[0].wait()
        workers.submit(block("x" * n_byte)).result()
    assert "a worker process ended with code -9 while it prepared a.txt" in str(error.value)
    assert "lower data.workers" in str(error.value) and "\n" not in str(error.value)


def test_an_error_ends_the_workers_in_the_middle_of_their_work(recipe):
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), Workers(2, recipe) as workers:
        wait([workers.submit(block("fine")) for _ in range(2)])
        many = [workers.submit(block(f"{i} " + "word " * 400_000)) for i in range(30)]
        raise ZeroDivisionError
    assert time.monotonic() - began < 20 and not all(future.done() and not future.cancelled() for future in many)
    assert all(process.returncode is not None for process in workers._processes)


def test_a_worker_hears_nothing_of_control_c(recipe):
    with Workers(1, recipe) as workers:
        first = workers.submit(block("fine"))
        while not workers._processes:
            time.sleep(0.01)
        time.sleep(0.1)  # Python itself has begun
        workers._processes[0].send_signal(signal.SIGINT)
        assert first.result().n_read == 1
        workers._processes[0].send_signal(signal.SIGINT)
        assert workers.submit(block("fine")).result().n_read == 1


@pytest.mark.parametrize("sent", ["nothing", "half a recipe", "half a block", "a block that nobody hears of"])
def test_a_worker_ends_in_silence_with_the_one_it_works_for(recipe, sent):
    whole, work = pickle.dumps(recipe), pickle.dumps(block("some words " * 100_000))
    data = {"nothing": b"", "half a recipe": whole[:100], "half a block": whole + work[:1000]}.get(sent, whole + work)
    here = os.pathsep.join(path for path in sys.path if path)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", module._START], env=os.environ | {"PYTHONPATH": here}, **pipes)
    process.stdout.close()
    process.stdin.write(data)
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) is not None
