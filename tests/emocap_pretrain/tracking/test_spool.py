import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emocap_pretrain.tracking.spool import Row, Spool, unsent


class Server:
    """Takes rows while it is up; says so through `arrived`."""

    def __init__(self, *, up: bool = True) -> None:
        self.up, self.rows, self.tries = up, list[Row](), 0
        self.changed = threading.Condition()

    def take(self, rows: list[Row]) -> None:
        with self.changed:
            self.tries += 1
            self.changed.notify_all()
            if not self.up:
                raise ConnectionError("nobody is there\nand a long story")
            self.rows += rows

    def wait(self, until: Callable[["Server"], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: until(self), 10)

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "run.jsonl"


def test_rows_arrive_in_order_with_their_values_and_times(path: Path) -> None:
    server, before = Server(), time.time() * 1000
    spool = Spool(path, server.take)
    for step in range(1, 30):
        spool.put(step, {"loss": step / 7})
    assert spool.close(10)
    assert server.steps == list(range(1, 30))
    assert all(metrics == {"loss": step / 7} for step, _, metrics in server.rows)
    assert all(before - 1 <= at_ms <= time.time() * 1000 + 1 for _, at_ms, _ in server.rows)
    assert not path.exists()


def test_rows_wait_through_an_outage_and_arrive_later_in_order(path: Path) -> None:
    server = Server(up=False)
    spool = Spool(path, server.take, longest_pause_s=0.01)
    for step in range(1, 6):
        spool.put(step, {"loss": 1.0})
    server.wait(lambda it: it.tries >= 1)
    assert server.rows == []
    assert [step for step, _, _ in unsent(path)] == [1, 2, 3, 4, 5]
    server.up = True
    for step in range(6, 9):
        spool.put(step, {"loss": 1.0})
    assert spool.close(10)
    assert server.steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_putting_a_row_does_not_wait_for_the_server(path: Path) -> None:
    busy = threading.Event()

    def never(_: list[Row]) -> None:
        busy.wait(10)

    spool = Spool(path, never)
    began = time.perf_counter()
    for step in range(100):
        spool.put(step, {"loss": 1.0})
    assert time.perf_counter() - began < 5
    busy.set()
    assert spool.close(10)


def test_an_outage_is_told_with_its_reason_in_one_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(up=False)
    spool = Spool(path, server.take)
    spool.put(1, {"loss": 1.0})
    server.wait(lambda it: it.tries >= 1)
    assert not spool.close(0.05)
    assert "nobody is there" in caplog.text
    assert "long story" not in caplog.text


def test_rows_of_a_process_that_was_killed_are_sent_by_the_next_one(path: Path) -> None:
    down = Server(up=False)
    killed = Spool(path, down.take)
    for step in (1, 2, 3):
        killed.put(step, {"loss": step * 1.0})
    assert not killed.close(0.05)
    server = Server()
    spool = Spool(path, server.take)
    spool.put(4, {"loss": 4.0})
    assert spool.close(10)
    assert [(step, metrics["loss"]) for step, _, metrics in server.rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_what_arrived_before_a_kill_is_not_sent_again(path: Path) -> None:
    killed = Spool(path, Server(up=False).take)
    for step in (1, 2, 3):
        killed.put(step, {"loss": 1.0})
    killed.close(0.05)
    server = Server()
    assert Spool(path, server.take, after_step=2).close(10)
    assert server.steps == [3]


def test_replayed_steps_are_left_out(path: Path) -> None:
    server = Server()
    spool = Spool(path, server.take, after_step=5)
    for step in (4, 5, 6, 6, 5, 7):
        spool.put(step, {"loss": 1.0})
    assert spool.close(10)
    assert server.steps == [6, 7]


def test_steps_that_wait_on_disk_count_as_replayed_too(path: Path) -> None:
    killed = Spool(path, Server(up=False).take)
    for step in (1, 2, 3):
        killed.put(step, {"loss": 1.0})
    killed.close(0.05)
    server = Server()
    spool = Spool(path, server.take)
    for step in (2, 3, 4):
        spool.put(step, {"loss": 2.0})
    assert spool.close(10)
    assert [(step, metrics["loss"]) for step, _, metrics in server.rows] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


LAST = json.dumps((2, 1_000, {"loss": 1.0}))


@pytest.mark.parametrize("cut", range(1, len(LAST) + 1))
def test_a_last_line_that_was_cut_short_costs_no_row_but_itself(path: Path, cut: int) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps((1, 900, {"loss": 1.0})) + "\n" + LAST[:cut])
    killed = Spool(path, Server(up=False).take)
    killed.put(3, {"loss": 3.0})
    killed.put(4, {"loss": 4.0})
    killed.close(0.01)
    server = Server()
    assert Spool(path, server.take).close(10)
    assert server.steps == ([1, 2, 3, 4] if cut == len(LAST) else [1, 3, 4])


def test_closing_in_an_outage_keeps_every_row_and_says_so(path: Path) -> None:
    spool = Spool(path, Server(up=False).take)
    spool.put(1, {"loss": 1.0})
    began = time.perf_counter()
    assert not spool.close(0.1)
    assert time.perf_counter() - began < 5
    assert [step for step, _, _ in unsent(path)] == [1]
