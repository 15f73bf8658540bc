"""Tests the limits per minute, and the headers that ask to wait."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captioning.pacing import LONGEST_WAIT_S, MinuteWindow, asked_wait_s, backoff_s


@given(
    st.lists(st.tuples(st.integers(0, 240), st.integers(1, 60), st.integers(1, 60)), max_size=60),
    st.integers(1, 8) | st.none(),
    st.integers(50, 200) | st.none(),
)
def test_no_minute_has_more_requests_or_tokens_than_its_limits(
    arrivals: list[tuple[int, int, int]], requests: int | None, tokens: int | None
) -> None:
    window, now = MinuteWindow(requests, tokens), 0.0
    sent: list[tuple[float, int]] = []
    for pause, estimate, used in arrivals:
        now += pause / 8  # Eighths are exact in binary, so the edge of the minute is exact too.
        wait_s = window.wait_s(now, estimate)
        now += wait_s
        assert window.wait_s(now, estimate) <= 0
        entry = window.add(now, estimate)
        recent = [each for at, each in sent if at > now - 60]
        assert requests is None or len(recent) + 1 <= requests
        assert tokens is None or sum(recent) + estimate <= tokens or not recent
        window.correct(entry, used)
        sent.append((now, used))


def test_a_request_waits_no_longer_than_it_has_to() -> None:
    window = MinuteWindow(requests=2, tokens=None)
    window.add(0.0, 1)
    window.add(10.0, 1)
    assert window.wait_s(20.0, 1) == 40.0
    assert MinuteWindow(None, None).wait_s(5.0, 1e9) == 0.0
    tokens = MinuteWindow(None, 100)
    tokens.add(0.0, 60)
    tokens.add(30.0, 30)
    assert tokens.wait_s(40.0, 10) == 0.0
    assert tokens.wait_s(40.0, 70) == 20.0
    assert tokens.wait_s(40.0, 500) == 50.0  # More than a minute allows: alone.


@pytest.mark.parametrize(
    ("header", "ms", "seconds"),
    [("7", "", 7.0), ("0.5", "", 0.5), ("", "1500", 1.5), ("20", "100", 0.1), ("soon", "", 0.0), ("-1", "nan", 0.0)],
)
def test_the_headers_say_how_long_to_wait(header: str, ms: str, seconds: float) -> None:
    assert asked_wait_s(header, ms) == pytest.approx(seconds)


def test_a_date_says_when_to_send_again() -> None:
    assert 3500 < asked_wait_s(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)) <= 3600
    assert asked_wait_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_waits_after_failures_are_random_below_a_bound_that_grows() -> None:
    bounds = [backoff_s(failures, lambda: 1.0) for failures in range(1, 12)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.5
    assert bounds[-1] == LONGEST_WAIT_S
    assert backoff_s(3, lambda: 0.25) == 0.5
