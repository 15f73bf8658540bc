"""Tests how rows are chosen: for splits at random, for whole persons, and without the keys of a list."""

from collections.abc import Iterator

import orjson
import pytest
from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.selection import KeysToLeaveOut, split_of, without_keys
from hypothesis import given
from hypothesis import strategies as st


class Rows:
    """Provides one row for each key; the person is the part of the key before the first hyphen."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def rows(self) -> Iterator[SourceRow | BadRow]:
        for key in self.keys:
            labels = {"person": key.partition("-")[0]} if "-" in key else {}
            yield SourceRow(key, key, b"", orjson.dumps({"labels": labels | {"emotion": "joy"}}))


def keys_of(source: Rows, shares: dict[str, float], name: str, label: str | None = None) -> list[str]:
    return [row.key for row in split_of(source, shares, name, label).rows() if isinstance(row, SourceRow)]


@given(st.sets(st.text("abc-", min_size=1, max_size=8), max_size=40), st.sets(st.text("xyz", min_size=1, max_size=8)))
def test_each_row_is_in_exactly_one_split_and_stays_there_when_others_come(first: set[str], more: set[str]) -> None:
    shares = {"train": 3.0, "valid": 0.5, "test": 0.1}
    parts = {name: keys_of(Rows(sorted(first)), shares, name) for name in shares}
    assert sorted(key for part in parts.values() for key in part) == sorted(first)
    later = {name: keys_of(Rows(sorted(first | more)), shares, name) for name in shares}
    assert all(set(parts[name]) <= set(later[name]) for name in shares)


def test_splits_have_about_their_shares() -> None:
    keys, shares = [f"{number:05d}" for number in range(10_000)], {"train": 8.0, "valid": 1.0, "test": 1.0}
    sizes = [len(keys_of(Rows(keys), shares, name)) for name in shares]
    # Four standard deviations of a binomial number.
    assert [abs(size - 1000 * share) <= 160 for size, share in zip(sizes, shares.values(), strict=True)] == [True] * 3


def test_all_rows_of_a_person_are_in_one_split() -> None:
    keys = [f"p{person}-{number}" for person in range(60) for number in range(3)]
    shares = {"train": 1.0, "test": 1.0}
    people = {name: [key.partition("-")[0] for key in keys_of(Rows(keys), shares, name, "person")] for name in shares}
    assert set(people["train"]).isdisjoint(people["test"])
    assert all(part.count(person) == 3 for part in people.values() for person in part)
    assert sum(map(len, people.values())) == len(keys)


def test_a_row_without_the_label_of_the_splits_is_refused() -> None:
    with pytest.raises(RecordError, match="nobody: the row has no label person"):
        keys_of(Rows(["p1-1", "nobody"]), {"train": 1.0, "test": 1.0}, "train", "person")


def test_listed_keys_are_left_out_and_counted() -> None:
    listed = KeysToLeaveOut(frozenset({"b", "x"}))
    source = without_keys(Rows(["a", "b", "c"]), listed)
    assert [row.key for row in source.rows() if isinstance(row, SourceRow)] == ["a", "c"]
    assert source.left_out == {"whose key is to be left out": 1}
    assert listed.absent == {"x"}
