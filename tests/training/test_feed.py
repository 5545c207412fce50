import threading

import pytest
import torch

from gptstar.data.packing import IGNORED, Batch
from gptstar.training.feed import Feed

CPU = torch.device("cpu")


class Reader:
    """Batch n is full of n, its last target is not to be predicted; keeps who read, and breaks at some step."""

    def __init__(self, broken_at=None, documents=None):
        self.broken_at, self.documents, self.readers = broken_at, documents, []

    def __call__(self, step):
        self.readers.append(threading.current_thread().name)
        if step == self.broken_at:
            raise OSError("the disk is gone")
        targets = torch.full((2, 3), step)
        targets[-1, -1] = IGNORED
        return Batch(torch.full((2, 3), step), targets, self.documents)


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [5, 6, 2, 3, 3]])
def test_it_gives_the_batch_of_whatever_step_is_asked_for_and_counts_its_targets(steps):
    read = Reader()
    feed = Feed(read, CPU)
    for step in steps:
        batch, n_target_B = feed.take(step)
        assert (batch.inputs == step).all() and n_target_B.tolist() == [3, 2]
    feed.close()
    assert any(name.startswith("feed") for name in read.readers)


@pytest.mark.parametrize("documents", [None, torch.zeros(2, 3, dtype=torch.int64)], ids=["none", "numbered"])
def test_documents_go_along_where_they_are_numbered(documents):
    feed = Feed(Reader(documents=documents), CPU)
    assert (feed.take(0)[0].documents is None) == (documents is None)
    feed.close()


def test_what_goes_wrong_while_reading_ahead_is_told_when_it_is_needed():
    feed = Feed(Reader(broken_at=1), CPU)
    feed.take(0)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(1)
    feed.close()
