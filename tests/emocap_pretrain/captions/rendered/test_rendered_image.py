from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emocap_pretrain.captions.rendered.__main__ import main, sheet
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.captions.rendered.face import BEARDS, DRAWN, GLASSES, HAIR_STYLES, Light, Pose, actions
from emocap_pretrain.captions.rendered.render import render

# The rows in which each action unit is visible, in face units: 0 between the cheeks, -0.4 at the brows.
BROWS, LIDS, NOSE, MOUTH, LOWER = (-1.0, -0.1), (-0.45, 0.25), (-0.6, 1.05), (0.2, 1.1), (0.5, 1.75)
ROWS = {
    **dict.fromkeys((1, 2, 4), BROWS),
    **dict.fromkeys((5, 7, 43), LIDS),
    **dict.fromkeys((9, 10), NOSE),
    **dict.fromkeys((12, 14, 15, 20, 23, 25), MOUTH),
    **dict.fromkeys((17, 26), LOWER),
    6: (-0.35, 0.75),
}


@pytest.fixture(scope="module")
def still():
    """Returns a plain face at rest, seen from the front."""
    sampled = sample_face(0, 0)
    person = replace(sampled.identity, hair_style="bald", beard="none", glasses="none", freckles=0.0, age=0.1)
    scene = replace(sampled.scene, pose=Pose(), light=Light())
    return replace(sampled, identity=person, scene=scene, actions=actions({}))


def _change(still, unit, strength):
    """Returns the absolute change of every image row by `unit`, and the position of each row in face units."""
    moved = render(replace(still, actions=actions({unit: strength})), 112).astype(float)
    change = np.abs(moved - render(still, 112)).sum((1, 2))
    return change, ((np.arange(112) + 0.5) / 112 - 0.525) / Pose().zoom


@pytest.mark.parametrize("unit", DRAWN)
def test_an_action_unit_changes_its_own_region_and_little_elsewhere(still, unit: int):
    change, place = _change(still, unit, 0.9)
    low, high = ROWS[unit]
    inside = (place > low) & (place < high)
    assert change.sum() > 3000
    assert change[inside].sum() > 0.85 * change.sum()


@pytest.mark.parametrize("unit", DRAWN)
def test_a_stronger_action_changes_more(still, unit: int):
    weak, medium, strong = (_change(still, unit, strength)[0].sum() for strength in (0.2, 0.5, 0.9))
    assert 0 < weak < medium < strong


@pytest.mark.parametrize("unit", DRAWN)
def test_an_action_shows_on_both_sides(still, unit: int):
    moved = render(replace(still, actions=actions({unit: 0.9})), 112).astype(float)
    change = np.abs(moved - render(still, 112)).sum(2)
    assert min(change[:, :56].sum(), change[:, 56:].sum()) > 0.3 * change.sum()


def test_the_name_of_the_emotion_does_not_change_a_pixel(still):
    other = replace(still, emotion="anger", shade="rage", intensity=0.9, valence=-0.9, arousal=0.9, wording=5)
    assert np.array_equal(render(still, 64), render(other, 64))


def test_both_sides_of_a_face_in_even_light_are_alike(still):
    even = replace(still, scene=replace(still.scene, light=Light(x=0.0), gaze=(0.0, 0.0)))
    image = render(even, 112).astype(float)[30:90, 30:82]
    assert np.abs(image - image[:, ::-1]).mean() < 9


@pytest.mark.parametrize("pixels", [16, 49, 112, 300])
def test_any_size_gives_the_same_picture(still, pixels: int):
    image = render(still, pixels)
    assert image.shape == (pixels, pixels, 3)
    assert image.dtype == np.uint8
    small = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), float)
    large = np.asarray(Image.fromarray(render(still, 224)).resize((16, 16), Image.Resampling.BOX), float)
    assert np.abs(small - large).mean() < 12


def test_a_size_too_small_is_refused(still):
    with pytest.raises(ValueError, match="pixels=8"):
        render(still, 8)


@pytest.mark.parametrize("trait", ["hair_style", "beard", "glasses"])
def test_every_trait_gives_its_own_picture(still, trait: str):
    names = {"hair_style": HAIR_STYLES, "beard": BEARDS, "glasses": GLASSES}[trait]
    person = still.identity
    shown = {render(replace(still, identity=replace(person, **{trait: name})), 64).tobytes() for name in names}
    assert len(shown) == len(names)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31), st.floats(-3, 3), st.floats(-0.6, 0.6))
def test_any_face_can_be_drawn_even_when_it_leaves_the_image(seed, index, offset, angle):
    sampled = sample_face(seed, index)
    moved = replace(sampled.scene, pose=replace(sampled.scene.pose, x=offset, yaw=angle, roll=angle))
    assert render(replace(sampled, scene=moved), 32).shape == (32, 32, 3)


def test_the_contact_sheet_shows_every_face_with_its_label():
    page = sheet(9, seed=0, pixels=32)
    assert page.size == (7 * 32, 2 * 62)
    assert np.asarray(page)[32:62].min() < 80


def test_the_command_writes_a_sheet_and_prints_the_rate(tmp_path, capsys):
    main(["--preview", str(tmp_path / "sheet.png"), "--rate", "--count", "3", "--pixels", "24"])
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (72, 54)
    assert "faces/s" in capsys.readouterr().out


def test_the_command_refuses_to_do_nothing(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "nothing to do" in capsys.readouterr().err
