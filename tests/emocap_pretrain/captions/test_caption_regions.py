"""Tests which region of the face a sentence is about, and where the regions of a face lie.

The expected regions of sentences follow from the states from which the sentences are written, and the expected places
from the rendered pictures and from given landmarks.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards

from emocap_pretrain.captions.face_mesh import mesh
from emocap_pretrain.captions.grammar.action_units import BANDS
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Region, RegionState
from emocap_pretrain.captions.grammar.recognition import WORDS, area_of
from emocap_pretrain.captions.grammar.sentences import Wording, local_sentence
from emocap_pretrain.captions.regions import Landmarks, Missing, find, of_rendered
from emocap_pretrain.captions.rendered.captioner import REGION_LOOKS, caption
from emocap_pretrain.captions.rendered.dataset import record, sample_face
from emocap_pretrain.captions.rendered.face import actions
from emocap_pretrain.captions.rendered.regions import areas
from emocap_pretrain.captions.rendered.render import render
from emocap_pretrain.data.regions import coverage
from emocap_pretrain.errors import DataError

MOUTH = {Region.LIPS: "mouth", Region.LIP_CORNERS: "mouth"}
OF_LOOKS = {look: str(region) for region, looks in REGION_LOOKS.items() for look in looks}


@pytest.mark.parametrize("name", LOOKS)
def test_the_words_of_each_look_name_the_region_to_which_it_belongs(name: str):
    look = LOOKS[name]
    others = {"brows_lowered": "eyebrows", "eyes_closed_or_nearly": "eyes"}  # Only FER+ has these.
    wanted = OF_LOOKS.get(look, others.get(name, "mouth"))
    for band in BANDS:
        state = RegionState(Region.LIPS, look, (band,) * len(look.units))
        for key in range(12):
            if state.clauses():
                assert area_of(local_sentence([state], Wording(str(key)))) == wanted


@pytest.mark.parametrize("region", AT_REST)
def test_the_words_of_a_region_at_rest_name_it(region: Region):
    for key in range(12):
        sentence = local_sentence([RegionState(region, AT_REST[region])], Wording(str(key)))
        assert area_of(sentence) == MOUTH.get(region, str(region))


def test_a_sentence_without_a_part_of_the_face_has_no_region():
    assert area_of("A sunny day in the browser.") is None
    assert area_of("Her EYELIDS are low.") == "eyes"


@pytest.mark.parametrize(
    ("unit", "region"), [(1, "eyebrows"), (43, "eyes"), (6, "cheeks"), (9, "nose"), (26, "mouth"), (17, "chin")]
)
def test_what_an_action_unit_changes_in_the_picture_lies_in_its_region_more_than_elsewhere(unit: int, region: str):
    """The mean change of a pixel in the region of the unit is more than three times that of all pixels.

    This is checked for the median over several faces.
    """
    shares: list[float] = []
    for index in range(6):
        rest = replace(sample_face(1, index), actions=actions({}))
        moved = replace(rest, actions=actions({unit: 1.0}))
        change = np.abs(render(rest, 64).astype(float) - render(moved, 64)).sum(2).ravel()
        covered = coverage(areas(moved)[region], 64)
        shares.append(float(change @ covered / change.sum() / covered.mean()))
    assert np.median(shares) > 3


def test_rendered_samples_are_found_by_their_key_and_others_are_counted(tmp_path: Path):
    good, other = record(5, 3, pixels=16), record(5, 4, pixels=16)
    changed = replace(other, caption=replace(other.caption, global_="Another caption."))
    foreign = Record("photo", good.image, "jpg", Caption("a face", ("The sky is blue.",), ""))
    write_shards([good, changed, foreign], str(tmp_path))
    missing = Missing()
    ((key, found),) = find(str(tmp_path), of_rendered, missing)
    assert key == good.key
    assert found.areas == areas(sample_face(5, 3))
    assert found.areas.keys() == WORDS.keys()
    assert len(found.local) == len(caption(sample_face(5, 3)).local)
    assert None not in found.local
    assert (missing.samples, missing.examples) == (2, [changed.key, "photo"])


def test_photographs_have_the_regions_of_their_landmarks(tmp_path: Path):
    """The landmarks are given as points of a grid, so the expected outline of the eyes is known exactly."""
    points = np.stack([np.arange(478.0) % 22, np.arange(478.0) // 22, np.zeros(478)], 1).astype(np.float32)
    image = record(0, 0, pixels=24).image
    sentences = ("The eyes are closed.", "The sky is blue.")
    names = ["joy/a.01.jpg", "b.jpg", "c.jpg"]
    samples = [Record(key, image, "jpg", Caption("a face", sentences, "")) for key in ("joy_a_01", "b", "c")]
    write_shards(samples, str(tmp_path / "data"))
    half = points.copy()
    half[0, 0] = np.nan
    np.savez(tmp_path / "l.npz", name=names[:2], landmarks=np.stack([points, half]))
    missing = Missing()
    ((key, found),) = find(str(tmp_path / "data"), Landmarks.read(tmp_path / "l.npz").of, missing)
    assert key == "joy_a_01"
    assert found.local == ("eyes", None)
    assert (missing.samples, missing.sentences) == (2, 1)
    first = mesh.OUTLINES["eyes"][0]
    expected = [round(value / 24 * 1000) for value in points[list(first), :2].astype(float).ravel()]
    assert found.areas["eyes"][0] == pytest.approx(expected, abs=1)
    wide = mesh.areas(points, width_px=34, height_px=24)["eyes"][0]
    assert np.array(wide[::2]) == pytest.approx(np.array(found.areas["eyes"][0][::2]) - 5 / 24 * 1000, abs=1)


@pytest.mark.parametrize("landmarks", [np.zeros((1, 68, 3)), np.zeros((2, 478, 3)), np.zeros((1, 478, 3), int)])
def test_a_file_of_other_landmarks_is_refused(tmp_path: Path, landmarks: np.ndarray):
    np.savez(tmp_path / "l.npz", name=["a"], landmarks=landmarks)
    with pytest.raises(DataError, match="has landmarks of the shape"):
        Landmarks.read(tmp_path / "l.npz")


def test_a_file_that_is_no_npz_or_holds_objects_is_refused(tmp_path: Path):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "objects.npz", name=np.array([{}], object), landmarks=np.zeros((1, 478, 3)))
    for name in ("text.npz", "objects.npz", "missing.npz"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            Landmarks.read(tmp_path / name)
