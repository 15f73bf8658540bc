"""Tests how the way in which the faces of a copy were cut out is recognized, and when it is reported as unknown."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cli_calls import called
from PIL import Image

from benchmarks.evaluation.crops import crops, landmarks_of
from emocap_pretrain.benchmarks.alignment import (
    FEWEST,
    Kind,
    SeenImage,
    judge,
    kind_of_image,
    look,
    seen_image,
)
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.captions.rendered.regions import areas
from emocap_pretrain.captions.rendered.render import render

FACES, PIXELS = 40, 96
KINDS: Mapping[str, Kind] = {"official": "landmarks", "box": "box", "whole": "whole"}


@pytest.fixture(scope="module")
def copies() -> dict[str, list[tuple[Image.Image, np.ndarray]]]:
    """Returns crops of rendered faces, each with the positions of its eyes, by the kind of the crop (`KINDS`)."""
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[Image.Image, np.ndarray]]] = {kind: [] for kind in KINDS}
    for index in range(FACES):
        face = sample_face(3, index)
        regions = areas(face)
        points = {name: [np.reshape(each, (-1, 2)) / 1000 * PIXELS for each in regions[name]] for name in regions}
        right, left = (each.mean(0) for each in points["eyes"])
        every = np.concatenate([*points["eyebrows"], *points["chin"], *points["cheeks"]])
        box = np.concatenate([every.min(0), every.max(0)])
        picture = Image.fromarray(render(face, PIXELS))
        for kind, made in crops(picture, np.stack([left, right]), points["mouth"][0].mean(0), box, random).items():
            found[kind].append(made)
    return found


def seen(made: tuple[Image.Image, np.ndarray]) -> SeenImage:
    return seen_image(np.asarray(made[0]), landmarks_of(made[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_told_apart_by_the_places_of_the_eyes(
    copies: dict[str, list[tuple[Image.Image, np.ndarray]]], kind: str
):
    judgement = judge([seen(each) for each in copies[kind]])
    assert judgement.kind == KINDS[kind]
    assert f"in {FACES} of {FACES} images with a face" in judgement.why


def test_single_images_are_unknown_more_often_than_wrong(copies: dict[str, list[tuple[Image.Image, np.ndarray]]]):
    for kind, wanted in KINDS.items():
        found = [kind_of_image(seen(each)) for each in copies[kind]]
        wrong = sum(each not in {wanted, None} for each in found)
        assert wrong <= 0.25 * FACES, (kind, found)
    assert kind_of_image(SeenImage(10, 10, is_cornerless=False)) is None


def test_without_places_of_the_eyes_only_differing_sizes_tell_something(
    copies: dict[str, list[tuple[Image.Image, np.ndarray]]],
):
    blind = {kind: [seen_image(np.asarray(image), None) for image, _ in each] for kind, each in copies.items()}
    assert {kind: judge(each).kind for kind, each in blind.items()} == {"official": None, "box": None, "whole": "whole"}
    assert "100 x 100 pixels" in judge(blind["official"]).why
    assert judge([]).kind is None
    # A few faces do not allow a judgement of a copy.
    assert judge([seen(each) for each in copies["box"][: FEWEST - 1]]).kind is None


def test_between_the_bounds_a_copy_is_unknown():
    def tilted(degrees: float, apart: float = 0.4) -> Kind | None:
        angles = np.linspace(-degrees, degrees, 2 * FEWEST)
        return judge([SeenImage(9, 9, is_cornerless=False, apart=apart, roll_deg=float(each)) for each in angles]).kind

    assert [tilted(degrees) for degrees in (1, 3.6, 6)] == ["landmarks", None, "box"]
    assert [tilted(1, apart) for apart in (0.2, 0.27, 0.3)] == ["whole", None, "landmarks"]


def test_a_black_corner_is_seen_and_a_broken_image_left_out(tmp_path: Path):
    image = np.full((20, 20, 3), 90, np.uint8)
    assert not seen_image(image, None).is_cornerless
    image[-3:, :3] = 1
    assert seen_image(image, None).is_cornerless
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert [each.width_px for each in look([tmp_path / name for name in ("a.png", "b.png", "c.png")], tmp_path)] == [20]
    assert np.isnan(landmarks_of(np.full((2, 2), np.nan))[33, 0])
    assert seen_image(image, landmarks_of(np.full((2, 2), np.nan))).apart is None


def written(root: Path, made: list[tuple[Image.Image, np.ndarray]]) -> Path:
    """Writes a copy of RAF-DB in its authors' layout with these images, and returns the file of their landmarks.

    `made` has the images, each with the positions of its eyes.
    """
    folder = root / "Image" / "aligned"
    folder.mkdir(parents=True)
    (root / "EmoLabel").mkdir()
    names = [f"{'train' if number % 2 else 'test'}_{number:05d}" for number in range(len(made))]
    lines = [f"{name}.jpg {number % 7 + 1}\n" for number, name in enumerate(names)]
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines))
    for name, (image, _) in zip(names, made, strict=True):
        image.save(folder / f"{name}_aligned.jpg")
    landmarks = np.stack([landmarks_of(eyes) for _, eyes in made])
    np.savez(root / "l.npz", name=[f"Image/aligned/{name}_aligned.jpg" for name in names], landmarks=landmarks)
    return root / "l.npz"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_names_a_copy_that_was_cut_out_in_another_way(
    copies: dict[str, list[tuple[Image.Image, np.ndarray]]], tmp_path: Path, kind: str
):
    landmarks = written(tmp_path, copies[kind])
    # The sizes of the splits differ from those of RAF-DB in any case.
    done = called("benchmarks", "check", "raf_db", tmp_path, "--landmarks", landmarks)
    row = " ".join(word for word in done.stdout.split() if word != "│")
    assert done.exit_code == 1
    if kind == "official":
        assert "all ok the faces are aligned by landmarks" in row
    else:
        assert "all DIFFERENT the faces are" in row
        assert "this layout has images that are aligned by landmarks" in row
    done = called("benchmarks", "check", "raf_db", tmp_path)
    row = " ".join(word for word in done.stdout.split() if word != "│")
    assert ("all DIFFERENT" if kind == "whole" else "all unchecked it is not known how the faces were cut out") in row
