import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captions.rendered.dataset import record
from emocap_pretrain.data.regions import (
    REGIONS_FILE,
    FaceRegions,
    coverage,
    has_regions,
    outline,
    read_regions,
    write_regions,
)
from emocap_pretrain.errors import DataError

TRIANGLE = (0, 0, 1000, 0, 0, 1000)
FACE = FaceRegions({"eyes": (TRIANGLE,), "mouth": ()}, ("eyes", None))


@pytest.fixture
def data(tmp_path: Path) -> str:
    write_shards([record(0, 0, pixels=16)], str(tmp_path / "data"))
    return str(tmp_path / "data")


def test_regions_are_read_as_they_were_written(data: str):
    assert not has_regions(data)
    assert write_regions(data, [("0000-00000000", FACE)]) == 1
    assert has_regions(data)
    assert read_regions(data) == {"0000-00000000": FACE}


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8))
def test_the_coverage_of_a_rectangle_is_its_area(left: int, top: int, width: int, height: int):
    """All edges lie at multiples of an eighth of the image, so no sub-cell that `coverage` counts is cut in two."""
    right, bottom = min(8, left + width), min(8, top + height)
    shape = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) / 8
    area = (right - left) * (bottom - top) / 64
    # Pillow draws the edges of a polygon, so each is wider by up to half a sub-cell.
    for side in (1, 2, 4):
        found = coverage([outline(shape)], side)
        assert found.shape == (side * side,)
        assert found.mean() == pytest.approx(area, abs=0.1 * (2 / side) + 0.01) if area else found.mean() <= 0.1
    cells = coverage([outline(shape)], 8).reshape(8, 8)
    if area:
        assert (cells[top:bottom, left:right] > 0.99).all()


def test_a_union_counts_once_and_what_lies_outside_does_not_count():
    assert coverage([TRIANGLE, TRIANGLE], 4).tolist() == coverage([TRIANGLE], 4).tolist()
    assert coverage([(-500, -500, 2000, -500, 2000, 2000, -500, 2000)], 3).tolist() == [1.0] * 9
    assert coverage([(1500, 0, 1900, 0, 1900, 900)], 3).tolist() == [0.0] * 9


def test_a_missing_file_and_one_of_another_dataset_are_refused(data: str, tmp_path: Path):
    with pytest.raises(DataError, match=re.escape(f"{data}/{REGIONS_FILE} does not exist: write it with")):
        read_regions(data)
    write_regions(data, [("a", FACE)])
    other = str(tmp_path / "other")
    write_shards([Record("a", record(0, 1, pixels=16).image, "jpg", Caption("a face", (), ""))], other)
    Path(other, REGIONS_FILE).write_bytes(Path(data, REGIONS_FILE).read_bytes())
    with pytest.raises(DataError, match="belongs to another dataset"):
        read_regions(other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"key": 3, "areas": {}, "local": []}, "needs the text `key`"),
        ({"key": "b", "areas": {"eyes": [[1, 2, 3]]}, "local": []}, "'eyes' is not a list of polygons"),
        ({"key": "b", "areas": {"eyes": [[0, 0, 1e9, 0, 1, 1]]}, "local": []}, "'eyes' is not a list of polygons"),
        ({"key": "b", "areas": {"eyes": [[0, 0, True, 0, 1, 1]]}, "local": []}, "'eyes' is not a list of polygons"),
        ({"key": "b", "areas": {"The eyes": []}, "local": []}, "a region is called 'The eyes'"),
        ({"key": "b", "areas": {}, "local": ["eyes"]}, "a sentence is about 'eyes', which is no region of the face"),
        ([1], "list instead of an object"),
        ({"key": "a", "areas": {}, "local": []}, "an earlier line has the same key 'a'"),
        ({"key": "b", "areas": {f"r{each}": [] for each in range(65)}, "local": []}, "a face may have 64 regions"),
        ({"key": "b", "areas": {"eyes": [TRIANGLE] * 65}, "local": []}, "'eyes' may have 64 outlines"),
        ({"key": "b", "areas": {}, "local": [], "x": "x" * (1 << 16)}, "a line may have 65,536"),
    ],
)
def test_a_wrong_line_is_named(data: str, line: Any, message: str):
    write_regions(data, [("a", FACE)])
    path = Path(data, REGIONS_FILE)
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{REGIONS_FILE}, line 3: ") + ".*" + re.escape(message)):
        read_regions(data)


def test_only_the_faces_that_are_needed_are_kept(data: str):
    write_regions(data, [(key, FACE) for key in ("a", "b", "c")])
    assert read_regions(data, {"b", "d"}) == {"b": FACE}
    path = Path(data, REGIONS_FILE)
    path.write_text(path.read_text() + json.dumps({"key": "e", "areas": 3, "local": 3}) + "\n")
    assert read_regions(data, {"b"}) == {"b": FACE}
    with pytest.raises(DataError, match="line 5: a line needs the object `areas`"):
        read_regions(data)


def test_a_file_that_is_not_json_or_has_a_newer_version_is_refused(data: str):
    path = Path(data, REGIONS_FILE)
    for text, message in (("", "line 1: not JSON"), ('{"regions": 2}\n', "the version of the file is 2")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_regions(data)
