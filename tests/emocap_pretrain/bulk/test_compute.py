"""Tests the computation of parts with a scorer that has no model."""

import errno
from pathlib import Path

import pytest
from bulk_fakes import FakeScorer, a_computation, computed, images_in, rows_of, works_of
from emocap_shards.errors import StoreError

from emocap_pretrain.bulk import part_files
from emocap_pretrain.bulk.inputs import open_input
from emocap_pretrain.bulk.pictures import prefetched


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_rows_are_in_the_order_of_the_input_with_the_vectors_of_their_images(tmp_path):
    rows = rows_of(computed(open_input(str(images_in(tmp_path / "faces", 23))), tmp_path / "parts"))
    assert [row["name"] for row in rows] == [f"{number:04d}.png" for number in range(23)]
    assert [row["embedding"][:3] for row in rows] == [[number] * 3 for number in range(23)]


def test_a_batch_has_images_of_one_part_only_and_unreadable_ones_take_no_place(tmp_path):
    faces = images_in(tmp_path / "faces", 23)
    for bad in (2, 3, 14):
        (faces / f"{bad:04d}.png").write_bytes(b"")
    (tmp_path / "parts").mkdir()
    scorer = FakeScorer()
    a_computation(tmp_path / "parts").compute(works_of(open_input(str(faces)), 10), scorer, lambda _: None)
    assert scorer.batches == [4, 4, 4, 4, 1, 3]


def test_the_parts_do_not_depend_on_which_of_them_are_computed_together(tmp_path):
    source = open_input(str(images_in(tmp_path / "faces", 35)))
    computed(source, tmp_path / "whole")
    (tmp_path / "pieces").mkdir()
    for work in reversed(list(works_of(source, 10))):
        a_computation(tmp_path / "pieces").compute([work], FakeScorer(), lambda _: None)
    assert bytes_of(tmp_path / "pieces") == bytes_of(tmp_path / "whole")
    assert len(bytes_of(tmp_path / "whole")) == 4


def test_a_part_without_a_readable_image_has_rows_with_errors(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(3):
        (faces / f"{number}.png").write_bytes(b"")
    parts = computed(open_input(str(faces)), tmp_path / "parts")
    assert [row["embedding"] for row in rows_of(parts)] == [None] * 3
    assert (parts.counts().rows, parts.counts().errors) == (3, 3)


def test_progress_counts_images_errors_and_weights(tmp_path):
    faces = images_in(tmp_path / "faces", 9)
    (faces / "0004.png").write_bytes(b"")
    (tmp_path / "parts").mkdir()
    seen = []
    a_computation(tmp_path / "parts").compute(works_of(open_input(str(faces)), 5), FakeScorer(), seen.append)
    assert (sum(each.pictures for each in seen), sum(each.errors for each in seen)) == (9, 1)
    assert sum(each.weight for each in seen) == 9


@pytest.mark.parametrize("place", ["add", "close"])
def test_a_full_disk_is_one_line_and_leaves_only_complete_parts(tmp_path, monkeypatch, place):
    parts = tmp_path / "parts"
    parts.mkdir()
    real = getattr(part_files.PartWriter, place)

    def full(writer, *arguments):
        if (parts / "part-000001.parquet").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(writer, *arguments)

    monkeypatch.setattr(part_files.PartWriter, place, full)
    works = list(works_of(open_input(str(images_in(tmp_path / "faces", 35))), 10))
    with pytest.raises(StoreError, match=r"No space left on device.*free some space, and start the same") as caught:
        a_computation(parts).compute(works, FakeScorer(), lambda _: None)
    assert "\n" not in str(caught.value)
    assert sorted(bytes_of(parts)) == ["part-000000.parquet", "part-000001.parquet"]


def test_items_are_taken_and_worked_on_in_order_and_a_bounded_number_prefetched():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    found = prefetched(items(), lambda number: -number, ahead=5)
    assert [next(found) for _ in range(3)] == [0, -1, -2]
    assert len(taken) < 20
    assert list(found) == [-number for number in range(3, 1000)]


def test_an_error_of_the_input_ends_the_computation():
    def items():
        yield 1
        raise StoreError("the store is unreachable.")

    with pytest.raises(StoreError, match="unreachable"):
        list(prefetched(items(), lambda number: number, ahead=5))
