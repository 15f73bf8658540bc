import time

import pytest
import torch

from emocap_pretrain.health.timing import SECTIONS, SectionTimer


def step(timer: SectionTimer, seconds: float) -> None:
    for name in SECTIONS:
        with timer.measure(name):
            time.sleep(seconds)


def test_seconds_are_the_mean_of_a_step() -> None:
    timer, began = SectionTimer("cpu"), time.perf_counter()
    for _ in range(4):
        step(timer, 0.01)
    found, elapsed = timer.read().values(), time.perf_counter() - began
    assert min(found) >= 0.01
    assert 4 * sum(found) <= elapsed  # All sections of all steps are a part of the time that has passed.


def test_a_reading_starts_a_new_measurement() -> None:
    timer = SectionTimer("cpu")
    step(timer, 0.005)
    timer.read()
    assert timer.read() == dict.fromkeys(SECTIONS, 0.0)


def test_micro_batches_of_one_step_are_added_up() -> None:
    timer = SectionTimer("cpu")
    for name in ("forward", "forward", "forward", "update"):
        with timer.measure(name):
            time.sleep(0.01)
    assert timer.read()["forward"] >= 0.03


def test_the_beginning_of_each_section_is_reported() -> None:
    entered: list[str] = []
    timer = SectionTimer("cpu", entered.append)
    with timer.measure("backward"):
        assert entered == ["backward"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_device_is_timed_and_not_the_launch() -> None:
    timer = SectionTimer("cuda:0")
    cycles = 10**9  # At least a third of a second, because no GPU has a clock of 3 GHz.
    with timer.measure("forward"):
        torch.cuda._sleep(cycles)
    with timer.measure("update"):
        pass
    assert timer.read()["forward"] > cycles / 3e9
