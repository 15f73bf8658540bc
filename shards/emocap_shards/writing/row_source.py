"""Defines what a source is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from emocap_shards.writing.row import BadRow, SourceRow

_KINDS = 1000


@runtime_checkable
class RowSource(Protocol):
    """Rows in an order that is the same at each call."""

    @property
    def total(self) -> int | None:
        """The number of rows, or None if it is not known without reading them."""
        ...

    def rows(self) -> Iterator[SourceRow | BadRow]:
        """Yields the rows from the first one on.

        Raises:
            RecordError: If the source as a whole cannot be read.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that holds more than rows, such as a folder with other files than images."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Counts of the files that `rows` has ignored so far, by kind, such as ".txt"."""
        ...


def leave_out(left_out: Counter[str], kind: str) -> None:
    """Counts one more file of a kind. After a thousand kinds, which may be forged, further ones are counted
    together.
    """
    left_out[kind if kind in left_out or len(left_out) < _KINDS else "of other kinds"] += 1
