import json
import logging
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.tracking.spool import MAX_ROWS_PER_CALL, Row, Spool, row


class Server:
    """Imitates a tracking server, which accepts rows while it is up."""

    def __init__(self, *, up: bool = True) -> None:
        self.up, self.rows, self.tries = up, list[Row](), 0
        self.changed = threading.Condition()

    def take(self, rows: Sequence[Row]) -> None:
        with self.changed:
            self.tries += 1
            self.changed.notify_all()
            if not self.up:
                raise ConnectionError("no server at http://anna:sesame@tracker/\nand a long story")
            self.rows += rows

    def wait(self, until: Callable[["Server"], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: until(self), 10)

    @property
    def steps(self) -> list[int]:
        return [each["step"] for each in self.rows]


def loss(step: int) -> Row:
    return row("metrics", step, {"loss": step / 7})


def filled(server: Server, steps: Sequence[int], unsent: Sequence[Row] = ()) -> Spool:
    spool = Spool(server.take, unsent, max_pause_s=0.01)
    for step in steps:
        spool.put(loss(step))
    return spool


def test_rows_arrive_in_order_with_their_values_and_times() -> None:
    server, before = Server(), time.time() * 1000
    assert filled(server, range(1, 30)).close(10)
    assert server.steps == list(range(1, 30))
    assert all(each["body"] == {"loss": each["step"] / 7} for each in server.rows)
    assert all(before - 1 <= each["at_ms"] <= time.time() * 1000 + 1 for each in server.rows)


def test_more_rows_than_fit_into_one_call_arrive() -> None:
    server, steps = Server(), range(3 * MAX_ROWS_PER_CALL + 1)
    assert filled(server, steps).close(10)
    assert server.steps == list(steps)


def test_rows_are_kept_during_an_outage_and_arrive_later_in_order() -> None:
    server = Server(up=False)
    spool = filled(server, range(1, 6))
    server.wait(lambda it: it.tries >= 2)
    assert server.rows == []
    assert [each["step"] for each in spool.unsent()] == [1, 2, 3, 4, 5]
    server.up = True
    for step in range(6, 9):
        spool.put(loss(step))
    assert spool.close(10)
    assert server.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert spool.unsent() == []


@given(st.lists(st.booleans(), max_size=12))
def test_no_row_is_lost_or_out_of_order_whenever_the_server_is_unreachable(ups: list[bool]) -> None:
    server = Server()
    spool = filled(server, [])
    for step, up in enumerate(ups):
        server.up = up
        spool.put(loss(step))
        spool.flush(0.002)
    server.up = True
    assert spool.close(10)
    assert server.steps == list(range(len(ups)))


def test_putting_a_row_does_not_wait_for_the_server() -> None:
    free, taken = threading.Event(), list[Row]()
    spool = Spool(lambda rows: free.wait(60) and taken.extend(rows))
    for step in range(100):
        spool.put(loss(step))
    assert taken == []
    free.set()
    assert spool.close(60)
    assert len(taken) == 100


def test_unsent_rows_are_stored_as_json_and_sent_first_by_another_host() -> None:
    lost = filled(Server(up=False), range(1, 4))
    kept = json.loads(json.dumps(lost.unsent()))
    lost.close(0)
    server = Server()
    assert filled(server, [4, 5], kept).close(10)
    assert server.rows[:3] == kept
    assert server.steps == [1, 2, 3, 4, 5]


def test_a_flush_waits_until_all_rows_have_arrived() -> None:
    server = Server()
    spool = filled(server, range(50))
    assert spool.flush(10)
    assert server.steps == list(range(50))
    assert spool.unsent() == []
    spool.close(1)


def test_a_flush_of_a_slow_server_ends_in_time_and_returns_false() -> None:
    free, taken = threading.Event(), list[Row]()
    spool = Spool(lambda rows: free.wait(60) and taken.extend(rows))
    spool.put(loss(1))
    assert not spool.flush(0.1)
    assert taken == []
    free.set()
    assert spool.close(60)


def test_a_flush_does_not_wait_for_a_server_that_is_known_to_be_unreachable() -> None:
    server = Server(up=False)
    spool = filled(server, [1])
    server.wait(lambda it: it.tries >= 2)
    assert not spool.flush(3600)  # pytest-timeout would end a longer wait.
    spool.close(0)


def test_an_outage_is_logged_once_in_one_line_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server(up=False)
    spool = filled(server, [1])
    server.wait(lambda it: it.tries >= 5)
    server.up = True
    assert spool.close(10)
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
    assert "no server at http://***@tracker/" in caplog.text
    assert "sesame" not in caplog.text
    assert "long story" not in caplog.text
    assert "again" in caplog.text


def test_closing_during_an_outage_ends_in_time_and_keeps_the_rows() -> None:
    spool = filled(Server(up=False), [1])
    assert not spool.close(0.1)
    assert [each["step"] for each in spool.unsent()] == [1]


def test_closing_ends_a_long_pause_and_tries_again() -> None:
    server = Server(up=False)
    spool = Spool(server.take, max_pause_s=60)
    spool.put(loss(1))
    server.wait(lambda it: it.tries >= 2)  # The pause is two seconds now.
    threading.Timer(0.2, setattr, (server, "up", True)).start()
    assert spool.close(20)
    assert server.steps == [1]


def test_nothing_is_sent_after_the_spool_is_closed() -> None:
    server = Server(up=False)
    spool = filled(server, [1])
    server.wait(lambda it: it.tries >= 1)
    spool.close(0)
    time.sleep(0.05)  # A call may have begun before.
    tries, server.up = server.tries, True
    spool.put(loss(2))
    time.sleep(0.1)
    assert server.tries == tries
    assert [each["step"] for each in spool.unsent()] == [1, 2]
