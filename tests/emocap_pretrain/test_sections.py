import time

import pytest
import torch

from emocap_pretrain.sections import SECTIONS, Sections


def step(sections: Sections, seconds: float) -> None:
    for name in SECTIONS:
        with sections.timed(name):
            time.sleep(seconds)


def test_seconds_are_those_of_one_step() -> None:
    sections = Sections("cpu")
    for _ in range(4):
        step(sections, 0.01)
    assert all(0.01 <= seconds < 0.03 for seconds in sections.read().values())


def test_a_reading_begins_anew() -> None:
    sections = Sections("cpu")
    step(sections, 0.005)
    sections.read()
    assert sections.read() == dict.fromkeys(SECTIONS, 0.0)


def test_micro_batches_of_one_step_are_added_up() -> None:
    sections = Sections("cpu")
    for name in ("forward", "forward", "forward", "update"):
        with sections.timed(name):
            time.sleep(0.01)
    assert sections.read()["forward"] >= 0.03


def test_whoever_listens_hears_each_section_at_its_begin() -> None:
    heard: list[str] = []
    sections = Sections("cpu", heard.append)
    with sections.timed("backward"):
        assert heard == ["backward"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_device_is_timed_and_not_the_launch() -> None:
    sections = Sections("cuda:0")
    matrix = torch.randn(4096, 4096, device="cuda:0")
    for _ in range(3):  # The first is a warm-up.
        with sections.timed("forward"):
            for _ in range(20):
                matrix @ matrix
        with sections.timed("update"):
            pass
        seconds = sections.read()
    start = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    assert seconds["forward"] == pytest.approx(time.perf_counter() - start, rel=0.5)
