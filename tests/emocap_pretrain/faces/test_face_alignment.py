"""Tests that faces are cut out at the places that the alignments promise."""

import math

import numpy as np
import pytest
from landmark_cases import crowd
from PIL import Image, ImageDraw

from emocap_pretrain.captions.face_mesh.geometry import LEFT, RIGHT
from emocap_pretrain.faces.alignment import BOX_SCALE, EYES_AND_MOUTH, aligned
from emocap_pretrain.faces.quality import quality

PIXELS = 100


def placed(scale=60.0, degrees=0.0, at=(300.0, 200.0)):
    """Returns the landmarks of a face, scaled, turned and moved in the image, [478, 3]."""
    unit = crowd(1)[0].astype(float)
    unit = (unit - unit.mean(0)) / np.ptp(unit[:, 0])
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.hstack([unit[:, :2] @ turn.T * scale + at, unit[:, 2:] * scale])


def painted(landmarks, size=(600, 400)):
    """Returns an image with a red, a green and a blue dot at the right eye, the left eye and the mouth."""
    picture = Image.new("RGB", size, (90, 90, 90))
    draw = ImageDraw.Draw(picture)
    for (x, y), colour in zip(middles(landmarks), [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return np.asarray(picture)


def middles(landmarks):
    pairs = (RIGHT.eye, LEFT.eye, (RIGHT.lip_corner, LEFT.lip_corner))
    return [landmarks[list(pair), :2].mean(0) for pair in pairs]


@pytest.mark.parametrize("scale", [40.0, 150.0, 900.0])
@pytest.mark.parametrize("degrees", [0.0, 25.0, -70.0])
def test_the_landmarks_of_an_upright_face_do_not_depend_on_where_it_was(scale, degrees):
    image = np.zeros((50, 50, 3), np.uint8)
    found = aligned(image, placed(scale, degrees), "eyes_mouth", PIXELS).landmarks
    expected = aligned(image, placed(), "eyes_mouth", PIXELS).landmarks
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Three points cannot be moved to any three places without a change of proportions, so they only come close.
    assert np.abs(np.array(middles(found)) / PIXELS - np.array(EYES_AND_MOUTH)).max() < 0.05


@pytest.mark.parametrize("degrees", [0.0, 25.0, -70.0])
@pytest.mark.parametrize("name", ["eyes_mouth", "box"])
@pytest.mark.parametrize("pixels", [30, 100, 400])  # Smaller, about as large, and larger than in the image.
def test_the_pixels_move_as_the_landmarks_do(name, degrees, pixels):
    landmarks = placed(110.0, degrees)
    face = aligned(painted(landmarks), landmarks, name, pixels)
    for channel, (x, y) in enumerate(middles(face.landmarks)):
        others = np.delete(face.image.astype(float), channel, axis=2).max(2)
        dot = np.clip(face.image[..., channel] - others, 0, None)
        rows, columns = np.mgrid[:pixels, :pixels] + 0.5
        centre = np.array([(dot * columns).sum(), (dot * rows).sum()]) / dot.sum()
        np.testing.assert_allclose(centre, [x, y], atol=max(0.5, pixels / 150))
    assert face.inside == 1


def test_a_box_is_not_turned_and_holds_all_landmarks_in_its_middle():
    landmarks = placed(150.0, 25.0)
    found = aligned(painted(landmarks), landmarks, "box", PIXELS).landmarks
    low, high = found[:, :2].min(0), found[:, :2].max(0)
    np.testing.assert_allclose((low + high) / 2, PIXELS / 2, atol=1e-6)
    assert (high - low).max() == pytest.approx(PIXELS / BOX_SCALE)
    across = np.subtract(*middles(found)[1::-1])
    assert math.degrees(math.atan2(across[1], across[0])) == pytest.approx(
        math.degrees(math.atan2(*np.subtract(*middles(landmarks)[1::-1])[::-1]))
    )


def test_what_lies_outside_of_the_image_has_its_mean_colour_and_is_counted():
    landmarks = placed(150.0, at=(0.0, 200.0))
    face = aligned(np.full((400, 600, 3), (10, 20, 30), np.uint8), landmarks, "box", PIXELS)
    assert face.inside == pytest.approx(0.5, abs=0.05)
    assert (face.image == (10, 20, 30)).all()


def test_blur_and_enlargement_lower_the_sharpness_and_contrast_does_not():
    rng = np.random.default_rng(0)
    square = rng.integers(60, 180, (112, 112, 3)).astype(np.uint8)
    landmarks = placed()
    sharp = quality(square, landmarks)
    small = np.asarray(Image.fromarray(square).resize((28, 28)).resize((112, 112)))
    weak = (square.astype(float) / 2 + 60).round().astype(np.uint8)
    assert quality(small, landmarks).sharpness < sharp.sharpness / 2
    assert quality(weak, landmarks).sharpness == pytest.approx(sharp.sharpness, rel=0.02)
    assert sharp.clipped == 0
    assert quality(np.zeros_like(square), landmarks)[4:] == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("degrees", [-30.0, 0.0, 40.0])
def test_size_and_roll_are_those_of_the_face_in_the_image(degrees):
    square = np.zeros((112, 112, 3), np.uint8)
    upright, turned = quality(square, placed(60.0)), quality(square, placed(120.0, degrees))
    assert turned.eyes_px == pytest.approx(2 * upright.eyes_px)
    assert turned.roll_deg - upright.roll_deg == pytest.approx(degrees)
    assert turned.yaw_deg == pytest.approx(upright.yaw_deg, abs=1e-4)
    assert turned.pitch_deg == pytest.approx(upright.pitch_deg, abs=1e-4)
