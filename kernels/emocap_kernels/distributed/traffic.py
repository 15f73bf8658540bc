"""How many bytes reach this rank: counted where they arrive, for tests, benchmarks and anybody who wonders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

Kind = Literal["vectors", "numbers"]

_open: list[Counter[Kind]] = []


def count(kind: Kind, received_bytes: int) -> None:
    for counter in _open:
        counter[kind] += received_bytes


@contextmanager
def counted() -> Generator[Counter[Kind]]:
    """Bytes received within the block, by all threads: `vectors` and their gradients, and `numbers` beside them."""
    counter: Counter[Kind] = Counter()
    _open.append(counter)
    try:
        yield counter
    finally:
        # By identity: two counters that counted the same are equal.
        _open[:] = [each for each in _open if each is not counter]
