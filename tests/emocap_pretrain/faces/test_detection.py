"""Tests the search for several faces, with a detector that finds coloured squares."""

import io
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_calls import called
from PIL import Image

from emocap_pretrain.faces import mediapipe_program as program


def image_with(*squares, size=(900, 1600)):
    image = np.zeros((*size, 3), np.uint8)
    for left, top, side in squares:
        image[top : top + side, left : left + side] = 255
    return image


def detect(image):
    """Finds white squares whose side is at least an eighth of that of the image, also those that the image cuts."""
    found = []
    rest = image[..., 0] > 0
    while rest.any():
        top, left = np.argwhere(rest)[0]
        width = np.argmin(np.append(rest[top, left:], False))
        height = np.argmin(np.append(rest[top:, left], False))
        rest[top : top + height, left : left + width] = False
        if min(width, height) >= max(rest.shape) / 8:
            box = np.array([left, top, left + width, top + height]) / np.tile(rest.shape[::-1], 2)
            found.append([min(width, height) / max(width, height), *box])
    return np.array(found, float).reshape(-1, 5)


@pytest.mark.parametrize(
    ("height", "width", "smallest"), [(900, 1600, 64), (1600, 300, 20), (50, 60, 64), (700, 700, 87)]
)
def test_tiles_cover_the_image_and_each_small_face_lies_whole_in_one(height, width, smallest):
    tiles = list(program.tiles(height, width, smallest))
    assert tiles[0] == (0, 0, width, height)
    last = min(max(right - left, bottom - top) for left, top, right, bottom in tiles)
    assert last <= max(program.TILES_OF_FACE * smallest, max(height, width) if len(tiles) == 1 else 0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        side = min(smallest, height, width)
        left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        holding = [
            each
            for each in tiles
            if each[0] <= left and each[1] <= top and each[2] >= left + side and each[3] >= top + side
        ]
        # A face of the smallest size is at least a sixteenth of the smallest tile that holds it whole.
        assert min(max(right - left, bottom - top) for left, top, right, bottom in holding) <= 16 * smallest


def test_small_faces_of_a_large_image_are_found_once_and_cut_ones_are_not_counted_twice():
    squares = [(40, 50, 400), (790, 380, 70), (1500, 800, 80), (700, 100, 220)]
    image = image_with(*squares)
    found = program.boxes_in(image, detect, 64)
    expected = sorted(([x, y, x + side, y + side] for x, y, side in squares), key=lambda box: -(box[2] - box[0]))
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-6)
    assert len(program.boxes_in(image, detect, 100)) == 2


def test_landmarks_are_in_pixels_of_the_image_and_a_box_without_a_mesh_is_no_face():
    image = image_with((40, 50, 400), (700, 100, 220))

    def find(square):
        # The brightest part is the face; the larger one has no mesh.
        rows, columns = np.nonzero(square[..., 0] > 200)
        if image_of_large(square):
            return None
        return np.tile([columns.mean() / square.shape[1], rows.mean() / square.shape[0], 0.0], (program.POINTS, 1))

    def image_of_large(_square):
        calls.append(1)
        return len(calls) <= len(program.MARGINS)

    calls = []
    (only,) = program.faces_in(image, detect, find, 64)
    np.testing.assert_allclose(only[1:5], [700, 100, 920, 320], atol=1e-3)
    np.testing.assert_allclose(only[7:10], [810, 210, 0], atol=1.5)


@pytest.mark.slow
def test_the_command_finds_rendered_faces_in_photographs_and_pack_packs_them(tmp_path):
    called("synth", tmp_path / "synth", "--train", 1, "--test", 4, "--pixels", 400)
    called("unpack", tmp_path / "synth" / "test", tmp_path / "single")
    faces = sorted((tmp_path / "single").glob("*.jpg"))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    places = [(50, 40, 400), (700, 300, 200), (1100, 100, 120), (900, 700, 160)]
    party = Image.new("RGB", (1400, 900), (70, 110, 90))
    for path, (x, y, side) in zip(faces, places, strict=True):
        party.paste(Image.open(path).resize((side, side)), (x, y))
    party.save(photographs / "party.png")
    Image.new("RGB", (300, 200)).save(photographs / "night.png")
    (photographs / "broken.jpg").write_bytes(b"no image")

    done = called("faces", photographs, "--out", tmp_path / "faces.parquet", "--pixels", 96, "--smallest", 50)

    assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "faces.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["broken.jpg", "night.png", *["party.png"] * 4]
    assert rows[1]["error"] == "no face was found"
    found = rows[2:]
    for row in found:
        centre = np.array([row["box"][0] + row["box"][2], row["box"][1] + row["box"][3]]) / 2
        inside = [x < centre[0] < x + side and y < centre[1] < y + side for x, y, side in places]
        assert sum(inside) == 1
        with closing(Image.open(io.BytesIO(row["image"]))) as square:
            assert square.size == (96, 96)
    assert len({row["key"] for row in found}) == 4
    packed = called(
        *("pack", tmp_path / "faces.parquet", tmp_path / "packed", "--image", "image", "--key", "key"),
        *("--label", "yaw_deg", "--skip-bad", "2"),
    )
    assert packed.exit_code == 0, packed.output
    assert "4 samples" in packed.output
