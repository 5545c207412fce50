import threading

import numpy as np
import pytest
import torch

from gptstar.data.batches import BatchOrder, read_windows
from gptstar.training.feed import Feed


class Stream:
    """Tokens 0, 1, 2, ...; keeps who read."""

    def __init__(self, n_token, broken_at=None):
        self.n_token, self.broken_at, self.readers = n_token, broken_at, []

    def read(self, start, length):
        self.readers.append(threading.current_thread().name)
        if self.broken_at is not None and start >= self.broken_at:
            raise OSError("the disk is gone")
        return np.arange(start, start + length)


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [5, 6, 2, 3, 3]])
def test_it_gives_the_batches_of_the_order_whatever_step_is_asked_for(steps):
    stream, order = Stream(1000), BatchOrder(99, 4, seed=0)
    feed = Feed(stream, order, 10, torch.device("cpu"))
    for step in steps:
        for ours, theirs in zip(feed.take(step), read_windows(stream, order.windows(step), 10), strict=True):
            assert torch.equal(ours, theirs)
    feed.close()
    assert any(name.startswith("feed") for name in stream.readers)


def test_what_goes_wrong_while_reading_ahead_is_told_when_it_is_needed():
    order = BatchOrder(99, 4, seed=0)
    bad = next(step for step in range(1, 20) if (order.windows(step) >= 95).any())
    stream = Stream(1000, broken_at=950)
    feed = Feed(stream, order, 10, torch.device("cpu"))
    good = bad - 1
    if not (order.windows(good) >= 95).any():
        feed.take(good)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(bad)
    feed.close()
