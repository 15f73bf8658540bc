"""Chooses rows of a source: by patterns of keys, by a list of keys, or at random for one of several splits."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate

from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.row_source import RowSource, left_out_of


@dataclass(frozen=True, slots=True)
class SelectedSource:
    """Provides some rows of a source. Bad rows have no key and stay.

    Attributes:
        source: The source of all rows.
        keeps: Whether a row is one of them. It must decide in the same way each time, so that a pack can resume.
        others: How the other rows are called in `left_out`, such as "whose key is not train_*"; empty does not count
            them.
    """

    source: RowSource
    keeps: Callable[[SourceRow], bool]
    others: str = ""
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        others = 0
        for row in self.source.rows():
            if isinstance(row, BadRow) or self.keeps(row):
                yield row
            else:
                others += 1
            # Until a source is read to its end, its own counts may still grow.
            self.left_out.clear()
            self.left_out.update(left_out_of(self.source))
            if others and self.others:
                self.left_out[self.others] = others


def with_keys(source: RowSource, pattern: str) -> SelectedSource:
    """Returns the rows whose key matches a pattern of wild cards, such as "train_*"."""
    return SelectedSource(source, lambda row: fnmatchcase(row.key, pattern), f"whose key is not {pattern}")


@dataclass(slots=True)
class KeysToLeaveOut:
    """Holds keys whose rows are to be left out, and remembers which of them occurred.

    Attributes:
        keys: The keys.
        absent: Those that no row had. This is known once the source has been read to its end.
    """

    keys: frozenset[str]
    absent: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.absent = set(self.keys)

    def keeps(self, row: SourceRow) -> bool:
        self.absent.discard(row.key)
        return row.key not in self.keys


def without_keys(source: RowSource, listed: KeysToLeaveOut) -> SelectedSource:
    """Returns the rows whose key is not listed."""
    return SelectedSource(source, listed.keeps, "whose key is to be left out")


def split_of(source: RowSource, shares: Mapping[str, float], name: str, label: str | None = None) -> SelectedSource:
    """Returns the rows of one split.

    A digest of the key decides to which split a row belongs, so a row stays in its split when others are added or
    removed, and no row is in two splits. With a label, its value takes the place of the key: all rows of one person are
    then in the same split.

    Args:
        source: The rows of all splits.
        shares: The share of each split, relative to the others.
        name: The split.
        label: Name of a label, such as the person; None divides by keys.

    Raises:
        RecordError: While rows are read, if one has no such label.
    """
    bounds = dict(zip(shares, accumulate(share / sum(shares.values()) for share in shares.values()), strict=True))

    def keeps(row: SourceRow) -> bool:
        digest = hashlib.sha256((_value(row, label) if label else row.key).encode()).digest()
        place = int.from_bytes(digest[:6]) / (1 << 48)
        return next((split for split, bound in bounds.items() if place < bound), [*bounds][-1]) == name

    return SelectedSource(source, keeps)


def _value(row: SourceRow, label: str) -> str:
    annotation = row.annotation if isinstance(row.annotation, bytes) else row.annotation.read()
    value = load_annotation(annotation)[1].get(label, "")
    if value == "":
        raise RecordError(f"{row.where}: the row has no label {label}, by which the splits are made.")
    return str(value)
