"""Defines the interface of a source, which provides the rows of a pack."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from emocap_shards.writing.row import BadRow, SourceRow

_KINDS = 1000


@runtime_checkable
class RowSource(Protocol):
    """Provides rows. Every call of `rows` must yield the same rows in the same order, so that a pack can resume.

    A row must be cheap to make, because it is made in the main process. So an image on a disk is given as a
    `LocalFile`, which a worker process reads later. docs/extend/source.md shows how to write a source.
    """

    def rows(self) -> Iterator[SourceRow | BadRow]:
        """Yields the rows from the first one on.

        Raises:
            RecordError: If the source as a whole cannot be read.
        """
        ...


@runtime_checkable
class CountedSource(Protocol):
    """Describes a source that knows the number of its rows before it reads them."""

    @property
    def total(self) -> int: ...


@runtime_checkable
class Selective(Protocol):
    """Describes a source that also holds files which belong to no row, such as texts in a folder of images."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Returns the number of files that `rows` has ignored so far, by kind, such as ".txt"."""
        ...


@runtime_checkable
class Noted(Protocol):
    """Describes a source that tells the user how it has read its input, such as which of two annotations it takes."""

    @property
    def notes(self) -> Sequence[str]:
        """Returns lines for the user, which are known before the first row is read."""
        ...


def left_out_of(source: RowSource) -> dict[str, int]:
    """Returns the number of files that a source has ignored so far, by kind; nothing if it counts none."""
    return dict(source.left_out) if isinstance(source, Selective) else {}


def take_back(left_out: Counter[str], used: Mapping[str, int]) -> None:
    """Subtracts the numbers of files that belong to rows after all, by kind."""
    left_out.subtract(used)
    for kind in used:
        if left_out[kind] <= 0:
            del left_out[kind]


def leave_out(left_out: Counter[str], kind: str) -> None:
    """Counts one more file of the kind `kind` in `left_out`.

    After 1,000 kinds, all further kinds are counted together, because a forged source could hold any number of them.
    """
    left_out[kind if kind in left_out or len(left_out) < _KINDS else "of other kinds"] += 1
