import gc
import weakref

import pytest

from gptstar.garbage import GarbageCollection, LongLived


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_cycles_are_collected_in_the_steps_where_that_is_due_and_no_others():
    with GarbageCollection(every=3) as garbage:
        assert not gc.isenabled()
        for _ in range(2):
            watched = weakref.ref(Cycle())
            for _ in range(2):
                garbage.after_step()
                assert watched() is not None
            garbage.after_step()
            assert watched() is None


def test_collects_when_told_to():
    with GarbageCollection() as garbage:
        watched = weakref.ref(Cycle())
        garbage.collect()
        assert watched() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_everything_is_as_before_even_after_an_error(enabled):
    was = gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(RuntimeError), GarbageCollection():
            assert gc.get_freeze_count() > frozen
            raise RuntimeError
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() <= frozen
    finally:
        (gc.enable if was else gc.disable)()


@pytest.fixture
def long_lived():
    made = LongLived()
    yield made
    made.release()


def test_garbage_that_is_there_already_is_not_kept(long_lived):
    watched = weakref.ref(Cycle())
    long_lived.set_aside()
    assert watched() is None


def test_what_becomes_garbage_later_is_still_found(long_lived):
    long_lived.set_aside()
    watched = weakref.ref(Cycle())
    gc.collect()
    assert watched() is None


def test_what_is_released_is_searched_again(long_lived):
    cycle = Cycle()
    watched = weakref.ref(cycle)
    long_lived.set_aside()
    del cycle
    gc.collect()
    assert watched() is not None
    long_lived.release()
    gc.collect()
    assert watched() is None
