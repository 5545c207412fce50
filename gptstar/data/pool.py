"""Worker processes that prepare blocks of records.

A worker is a Python that runs `gptstar.data.worker.main`, told what to do through its standard input: it imports
nothing of the program that started it, and ends with it, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from gptstar.data.reading import Block
from gptstar.data.worker import Chunk, Preparer, Recipe
from gptstar.errors import UserError

# Ctrl-C is for the process that gives the work, also while its workers start.
_START = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from gptstar.data.worker import main; main()"


class Nobody:
    """Work that is not worth a process is done where it is asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.preparer = Preparer(recipe)
        self._lock = threading.Lock()

    def submit(self, block: Block) -> Future[Chunk]:
        """As `Workers` do."""
        future: Future[Chunk] = Future()
        with self._lock:
            future.set_result(self.preparer.process(block))
        return future

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Workers:
    """Processes that all know one recipe. `submit` may be called from any thread."""

    def __init__(self, n_worker: int, recipe: Recipe) -> None:
        self.recipe = recipe
        self._threads = ThreadPoolExecutor(n_worker, "worker")  # each talks to a process of its own
        self._own = threading.local()
        self._processes: list[subprocess.Popen] = []
        self._closed = False

    def submit(self, block: Block) -> Future[Chunk]:
        """What `worker.process` makes of a block. Raises in result(): UserError for what is wrong with the data."""
        return self._threads.submit(self._call, block)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        if error[0] is not None:
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it did not live to read the rest
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def _call(self, block: Block) -> Chunk:
        if not hasattr(self._own, "process"):
            self._own.process = self._start()
        process = self._own.process
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(block, process.stdin)
            process.stdin.flush()
            what, answer = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            if self._closed:
                raise
            raise UserError(
                f"a worker process ended with code {process.wait()} while it prepared {block.piece}: "
                "where memory was short, lower data.workers; the same command goes on from here"
            ) from error
        if what == "mistake":
            raise UserError(answer)
        if what == "bug":
            raise RuntimeError(f"in a worker process:\n{answer}")
        return answer

    def _start(self) -> subprocess.Popen:
        here = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONPATH": here, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._processes.append(process)
        assert process.stdin is not None
        pickle.dump(self.recipe, process.stdin)
        return process
