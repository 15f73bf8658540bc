"""What a source is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from emocap_shards.writing.row import BadRow, SourceRow

_KINDS = 1000


@runtime_checkable
class RowSource(Protocol):
    """Rows in an order that is the same each time."""

    @property
    def total(self) -> int | None:
        """How many rows there are, if that is known without reading them."""
        ...

    def rows(self) -> Iterator[SourceRow | BadRow]:
        """The rows from the first on.

        Raises:
            RecordError: If the source as a whole cannot be read.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that holds more than rows, such as a folder with files that are no images."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What `rows` has passed over so far: a kind, such as ".txt", and how many of it."""
        ...


def leave_out(left_out: Counter[str], kind: str) -> None:
    """Counts one more of a kind; names of a stranger's kinds beyond a thousand are counted together."""
    left_out[kind if kind in left_out or len(left_out) < _KINDS else "of other kinds"] += 1
