import os
import signal

import pytest

from gptstar.training.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_second_insists(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert interrupt.requested is None
        os.kill(os.getpid(), number)
        assert interrupt.requested == number.name
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
