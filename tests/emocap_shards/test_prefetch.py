import subprocess
import sys
import threading
from itertools import count, islice

import pytest
from emocap_shards.prefetch import FETCHED_AHEAD, ahead


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
    events, lock = [], threading.Lock()

    def note(*event):
        with lock:
            events.append(event)

    list(ahead(range(4), lambda item, _: note("fetched", item), lambda item: note("warmed", item), warmed_ahead=3))
    assert events[0] == ("fetched", 0)
    assert [item for what, item in events if what == "warmed"] == [1, 2, 3]


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
    results = ahead(count(), lambda item, _: item, nothing, warmed_ahead=3)
    next(results)
    results.close()
    for thread in threading.enumerate():
        if thread.name.startswith(("fetch", "warm")):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_a_process_ends_while_a_store_is_still_waited_for():
    code = (
        "import time\nfrom emocap_shards.prefetch import ahead\n"
        "results = ahead(range(9), lambda item, direct: item if direct else time.sleep(600), print, warmed_ahead=2)\n"
        "assert next(results) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True)
