import gc
import weakref

import pytest

from gptstar.training.garbage import GarbageCollection


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
