"""Tests what a signal to the driver does if the ranks can save, and if they have nothing to save."""

import os
import signal

import pytest
from emocap_cluster.stopping import interrupting_signals, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_interrupts_a_driver_whose_ranks_cannot_save(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupting_signals() as stop:
        os.kill(os.getpid(), number)
    assert not stop.asked.is_set()
    assert signal.getsignal(number) is before


def test_the_first_signal_asks_ranks_that_can_save_to_stop_and_a_second_ctrl_c_interrupts() -> None:
    # A shell starts its background jobs with SIGINT ignored, so this is not always Python's own handler.
    before, said = signal.getsignal(signal.SIGINT), list[str]()
    with stop_signals(said.append) as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.asked.is_set()
        assert stop.interrupted
        assert said == ["SIGTERM: the ranks save and stop."]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
