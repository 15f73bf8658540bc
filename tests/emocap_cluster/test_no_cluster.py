"""Tests what the user reads if Ray, or the board of a job on it, cannot be started."""

import logging
import os

import psutil
import pytest
import ray
from emocap_cluster.address import HERE
from emocap_cluster.cluster import BOARD_ANSWER_S, BOARD_START_S, Cluster, connected
from emocap_cluster.errors import NoCluster
from ray.exceptions import GetTimeoutError


@pytest.mark.parametrize(
    "error", [Exception("The node timed out.\nIt is busy."), ConnectionError("The node timed out.")]
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("emocap_cluster.cluster.address_of_ray", lambda: HERE)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(NoCluster, match=r"^Ray cannot be started here: The node timed out\.$"), connected({}):
        pass


class SlowBoard:
    """A board whose process Ray has started after `unanswered` waits, in place of Ray's actor and of `ray.wait`."""

    def __init__(self, unanswered: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unanswered = unanswered
        self.begin = self
        self.asked = 0
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", self._get)

    def remote(self) -> object:
        self.asked += 1
        return object()

    def _wait(self, calls: list[object], timeout: float) -> tuple[list[object], list[object]]:
        assert timeout == BOARD_ANSWER_S
        self.unanswered -= 1
        return ([], calls) if self.unanswered >= 0 else (calls, [])

    def _get(self, _: object, timeout: float) -> None:
        assert timeout == 0
        if self.unanswered >= 0:
            raise GetTimeoutError


def test_a_board_that_starts_slowly_on_a_busy_host_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board = SlowBoard(20, monkeypatch)
    with caplog.at_level(logging.WARNING):
        Cluster(own=True, board=board).begin()
    assert board.asked == 1
    assert [each.message for each in caplog.records] == [
        "Ray has started no process for the job's board yet; is this host busy? Waiting."
    ]


def test_a_board_that_starts_soon_prints_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Cluster(own=True, board=SlowBoard(3, monkeypatch)).begin()
    assert not caplog.records


def test_a_board_that_never_starts_ends_the_job_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    board = SlowBoard(10_000, monkeypatch)
    with pytest.raises(NoCluster, match=r"^the job's board on this host does not answer: look at Ray's logs;"):
        Cluster(own=True, board=board).begin()
    assert 10_000 - board.unanswered == BOARD_START_S / BOARD_ANSWER_S


def test_a_board_is_not_waited_for_if_the_job_s_own_ray_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    board = SlowBoard(10_000, monkeypatch)
    ended = psutil.Process(os.getpid())
    monkeypatch.setattr(ended, "is_running", lambda: False)
    with pytest.raises(NoCluster, match="does not answer"):
        Cluster(own=True, board=board, processes=(ended,)).begin()
    assert board.unanswered == 10_000
