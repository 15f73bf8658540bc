import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from itertools import count, islice

import pytest
from emocap_shards.background import FETCHED_AHEAD, Background, ahead


def nothing(_):
    pass


def test_results_come_in_order():
    assert list(ahead(range(20), lambda item, _: item * 2, nothing, warmed_ahead=3)) == [item * 2 for item in range(20)]


@pytest.mark.parametrize("warmed_ahead", [0, 1, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_no_item_is_left_over(items, warmed_ahead):
    assert list(ahead(range(items), lambda item, _: item, nothing, warmed_ahead=warmed_ahead)) == list(range(items))


def test_only_the_first_is_fetched_directly():
    assert list(ahead(range(4), lambda _, direct: direct, nothing, warmed_ahead=2)) == [True, False, False, False]


def test_an_endless_source_is_asked_for_no_more_than_is_wanted():
    asked = count()
    assert list(islice(ahead(asked, lambda item, _: item, nothing, warmed_ahead=4), 3)) == [0, 1, 2]
    assert next(asked) <= 3 + 4 + FETCHED_AHEAD + 1


def test_warming_waits_for_the_first_fetch_and_goes_ahead_of_the_others():
    events, far = [], threading.Event()

    def fetch(item, _):
        assert item != 1 or far.wait(timeout=10)
        events.append(("fetched", item))

    def warm(item):
        events.append(("warmed", item))
        if item == 6:
            far.set()

    list(ahead(range(9), fetch, warm, warmed_ahead=3))
    assert events[0] == ("fetched", 0)
    before = events[: events.index(("fetched", 1))]
    assert [item for _, item in before if item > 3] == [4, 5, 6]


def test_what_is_being_fetched_is_not_warmed_any_more():
    warmed, begun, free = [], threading.Event(), threading.Event()

    def warm(item):
        warmed.append(item)
        begun.set()
        assert free.wait(timeout=10)

    results = ahead(count(), lambda item, _: item, warm, warmed_ahead=3)
    assert next(results) == 0
    assert begun.wait(timeout=10)  # The thread that warms may get its first turn long after the fetches.
    for expected in range(1, 40):
        assert next(results) == expected  # The fetches continue while the first warming hangs.
    first = warmed[0]
    free.set()
    for _ in range(20):
        next(results)
    results.close()
    assert all(item == first or item >= 40 for item in warmed)


def test_the_last_result_is_not_kept_alive_while_nothing_is_to_be_done():
    class Step:
        pass

    thread = Background("fetch")
    future = thread.submit(Step)
    step = weakref.ref(future.result())
    del future
    until = time.monotonic() + 10
    while step() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert step() is None
    thread.close()


def test_who_waits_for_work_that_is_called_off_is_told():
    thread, started, hanging = Background("fetch"), threading.Event(), threading.Event()
    begun = thread.submit(lambda: started.set() or hanging.wait(timeout=10))
    assert started.wait(timeout=10)
    queued = [thread.submit(lambda: 1) for _ in range(3)]
    thread.close()
    assert wait(queued, timeout=5).not_done == set()
    with pytest.raises(CancelledError):
        queued[-1].result(timeout=5)
    hanging.set()
    assert begun.result(timeout=5)


def test_who_submits_work_after_the_end_is_told():
    thread = Background("fetch")
    thread.close()
    late = thread.submit(lambda: 1)
    assert wait([late], timeout=5).done == {late}
    with pytest.raises(CancelledError):
        late.result(timeout=5)


def test_cancelled_work_is_skipped():
    thread, hanging, done = Background("fetch"), threading.Event(), []
    thread.submit(lambda: hanging.wait(timeout=10))
    cancelled = thread.submit(lambda: done.append("cancelled"))
    last = thread.submit(lambda: done.append("last"))
    assert cancelled.cancel()
    hanging.set()
    last.result(timeout=5)
    assert done == ["last"]
    thread.close()


def test_an_error_comes_at_its_place():
    def fetch(item, _):
        return item if item != 2 else 1 // 0

    results = ahead(range(5), fetch, nothing, warmed_ahead=0)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_warming_is_left_to_the_fetch():
    assert list(ahead(range(5), lambda item, _: item, lambda _: 1 // 0, warmed_ahead=2)) == [0, 1, 2, 3, 4]


def test_threads_end_with_the_consumer():
    others = set(threading.enumerate())
    results = ahead(count(), lambda item, _: item, nothing, warmed_ahead=3)
    next(results)
    own = set(threading.enumerate()) - others
    assert {thread.name for thread in own} == {"fetch", "warm"}
    results.close()
    for thread in own:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_process_ends_while_a_store_is_still_waited_for():
    code = (
        "import time\nfrom emocap_shards.background import ahead\n"
        "results = ahead(range(9), lambda item, direct: item if direct else time.sleep(600), print, warmed_ahead=2)\n"
        "assert next(results) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True)
