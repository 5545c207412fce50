import threading

import pytest
import torch

from gptstar.data.packing import IGNORED, Batch
from gptstar.training.feed import Feed

CPU = torch.device("cpu")


class Reader:
    """Batch n is full of n, its last target is not to be predicted; keeps who read, and breaks at some step."""

    def __init__(self, broken_at=None):
        self.broken_at, self.readers = broken_at, []

    def __call__(self, step):
        self.readers.append(threading.current_thread().name)
        if step == self.broken_at:
            raise OSError("the disk is gone")
        targets = torch.full((2, 3), step)
        targets[-1, -1] = IGNORED
        return Batch(torch.full((2, 3), step), targets, torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [5, 6, 2, 3, 3]])
def test_it_gives_the_batch_of_whatever_step_is_asked_for_and_counts_its_targets(steps):
    read = Reader()
    feed = Feed(read, CPU, masked=False)
    for step in steps:
        batch, n_target = feed.take(step)
        assert (batch.inputs == step).all() and n_target == 5 and batch.documents is None
    feed.close()
    assert any(name.startswith("feed") for name in read.readers)


def test_documents_go_along_where_the_model_is_told_of_them():
    feed = Feed(Reader(), CPU, masked=True)
    assert feed.take(0)[0].documents is not None
    feed.close()


def test_what_goes_wrong_while_reading_ahead_is_told_when_it_is_needed():
    feed = Feed(Reader(broken_at=1), CPU, masked=False)
    feed.take(0)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(1)
    feed.close()
