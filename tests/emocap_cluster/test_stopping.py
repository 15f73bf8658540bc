"""Tests what a signal to the driver does if the ranks have nothing to save."""

import os
import signal

import pytest
from emocap_cluster.stopping import interrupting_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_interrupts_a_driver_whose_ranks_cannot_save(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupting_signals() as stop:
        os.kill(os.getpid(), number)
    assert not stop.asked.is_set()
    assert signal.getsignal(number) is before
