"""Helps the tests of the cache: counts the requested ranges, and lists the files of a cache's folder."""

import time
from pathlib import Path

from emocap_shards.cache_ledger import CacheLedger
from emocap_shards.store import open_store

# Samples of the small dataset, and bytes of a segment of it.
SAMPLES, SEGMENT = 40, 4000


class Fetch:
    """Reads ranges of a dataset and counts them; `change` may replace the bytes that a call returns."""

    def __init__(self, url, change=lambda _, parts: parts):
        self.store, self.change, self.calls = open_store(url), change, []

    def __call__(self, spans):
        self.calls.append(list(spans))
        return self.change(len(self.calls), self.store.read_ranges(spans))


class Counted:
    """Forwards calls to a store, counts the bytes of the requested ranges, and claims to be remote."""

    def __init__(self, url):
        self.store, self.url, self.bytes = open_store(url), url, 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read_ranges(self, spans):
        self.bytes += sum(stop - start for _, start, stop in spans)
        return self.store.read_ranges(spans)


def files(cache, suffix=".seg"):
    return sorted(Path(cache.folder).glob(f"*/*{suffix}"))


def segments(rows):
    return [segment for segment, _ in rows.segments()]


def taken(cache):
    """Returns the bytes of all segment files, under the lock of the ledger, so that nothing is booked or evicted
    meanwhile.
    """
    if not Path(cache.folder, "ledger").exists():
        return 0
    with CacheLedger(Path(cache.folder), cache.max_bytes).opened():
        stats = [path.stat() for suffix in (".part", ".seg") for path in files(cache, suffix) if path.exists()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def until(holds):
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.002)


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
