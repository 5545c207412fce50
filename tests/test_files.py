import multiprocessing
import os
import signal
import time

import pytest

from gptstar.files import locked


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_a_lock_is_one_holder_s_at_a_time(path):
    told = []
    with locked(path) as first:
        assert first is not None
        with locked(path, patience=0, busy=lambda: told.append("busy")) as second:
            assert second is None and told == ["busy"]
    with locked(path, patience=0, busy=lambda: told.append("again")) as third:
        assert third is not None and told == ["busy"]


def test_a_folder_can_be_locked_and_what_is_in_a_file_stays(path, tmp_path):
    path.write_text("12")
    with locked(path) as file, locked(tmp_path) as folder:
        assert os.pread(file, 2, 0) == b"12" and folder is not None
        with locked(tmp_path, patience=0) as again:
            assert again is None


def test_patience_has_an_end(path):
    with locked(path):
        began = time.monotonic()
        with locked(path, patience=0.3) as second:
            assert second is None and 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize("patience", [None, 20])
def test_the_end_of_the_holder_frees_it(path, patience):
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        with locked(path):
            ready.set()
            time.sleep(60)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(10)
    with locked(path, patience, busy=lambda: os.kill(holder.pid, signal.SIGKILL)) as lock:
        assert lock is not None
    holder.join()


def test_a_child_that_was_forked_meanwhile_does_not_keep_it(path):
    with locked(path):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        with locked(path, patience=0) as lock:
            assert lock is not None
    finally:
        child.kill()
        child.join()
