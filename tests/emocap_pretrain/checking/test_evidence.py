import json

import numpy as np
import pytest
from landmark_cases import crowd, face, photographed
from mesh_fixture import people, rendered

from emocap_pretrain.captions.face_mesh.geometry import LEFT
from emocap_pretrain.checking.evidence import evidence_of, measured_face
from emocap_pretrain.checking.faces import RENDERED
from emocap_pretrain.checking.movements import MOVEMENTS
from emocap_pretrain.checking.population import FacePopulation
from emocap_pretrain.errors import DataError

PEOPLE = FacePopulation.fit(crowd(600), "schematic faces")


def one_sided(brow_up: float = 0.0, corner_up: float = 0.0, **pose: float) -> np.ndarray:
    """Returns the mesh of a schematic face on which only the left half moves."""
    points = face()
    points[[*LEFT.brow_inner, *LEFT.brow_middle, *LEFT.brow_outer], 1] += brow_up
    points[LEFT.lip_corner, 1] += corner_up
    return photographed(points, **pose)


@pytest.mark.parametrize(
    ("movement", "amounts"),
    [
        ("brows_raised", {"raise_brows": 1.0}),
        ("inner_brows_raised", {"slant_brows": 1.0}),
        ("brows_lowered", {"knit_brows": 1.0}),
        ("eyes_widened", {"widen_eyes": 1.5}),
        ("eyes_closed", {"lower_lids": 1.4}),
        ("lids_tightened", {"squint": 1.0}),
        ("lip_corners_raised", {"smile": 1.0}),
        ("lip_corners_lowered", {"sink_corners": 1.2}),
        ("lips_parted", {"open_mouth": 1.0}),
        ("jaw_dropped", {"open_mouth": 1.2}),
        ("lips_pressed", {"press_lips": 1.5}),
    ],
)
def test_a_strong_movement_has_evidence_and_its_region_is_not_at_rest(movement: str, amounts: dict[str, float]) -> None:
    moved = measured_face(photographed(face(**amounts)), PEOPLE)
    # A mouth cannot be more closed than closed.
    opposites = {name: -amount for name, amount in amounts.items() if name != "open_mouth"}
    opposite = measured_face(photographed(face(**opposites)), PEOPLE)
    assert (moved.of(movement).value or 0) > 0.8
    assert (opposite.of(movement).value or 0) < 0.3
    assert (moved.of(f"{MOVEMENTS[movement].region}_at_rest").value or 0) < 0.4


def test_each_side_has_evidence_of_its_own() -> None:
    for movement, points in {
        "brows_raised": one_sided(brow_up=0.15),
        "lip_corners_raised": one_sided(corner_up=0.12),
    }.items():
        measured = measured_face(points, PEOPLE)
        assert (measured.of(movement, "left").value or 0) > 0.8
        assert (measured.of(movement, "right").value or 0) < 0.3
        assert (measured.of(movement, "one").value or 0) > 0.7
        assert (measured.of(movement, "both").value or 0) < 0.3
    both = measured_face(photographed(face(raise_brows=1.0)), PEOPLE)
    assert (both.of("brows_raised", "left").value or 0) > 0.6
    assert (both.of("brows_raised", "one").value or 0) < 0.5


def test_what_cannot_be_seen_is_left_open_with_a_reason() -> None:
    def why(points: np.ndarray, movement: str, side: str = "") -> str:
        found = measured_face(points, PEOPLE).of(movement, side)
        assert found.value is None
        return found.why_not

    rest = photographed(face())
    without_chin = rest.copy()
    without_chin[13] = np.nan
    assert why(rest, "dimpled") == "nothing measures this movement reliably"
    assert why(rest, "lips_parted", "left") == "no measure of this movement tells the sides apart"
    assert why(without_chin, "lips_parted") == "a point that it needs is missing or outside the image"
    assert why(photographed(face(), yaw_deg=60), "brows_raised") == "the head is turned too far"
    assert why(photographed(face(open_mouth=1.0)), "lip_corners_lowered") == "the open mouth hides it"
    turned = photographed(face(), yaw_deg=30)
    far, near = ("left", "right") if measured_face(turned, PEOPLE).yaw_deg > 0 else ("right", "left")
    assert why(turned, "brows_raised", far) == f"the head is turned, so the {far} half of the face is hidden"
    assert measured_face(turned, PEOPLE).of("brows_raised", near).value is not None


def test_the_evidence_is_half_where_the_movement_begins_and_whole_at_the_strongest_face() -> None:
    assert evidence_of(0.7, 0.3) == pytest.approx(0.5)
    assert evidence_of(1.0, 0.1) == pytest.approx(1.0)
    assert evidence_of(0.4, 0.3) == 0


# For each movement an action unit, and the difference that was measured between the mean evidence of faces with and
# without it. The test allows 0.08 less.
MEASURED = {
    "inner_brows_raised": (1, 0.58),
    "eyes_widened": (5, 0.54),
    "eyes_closed": (43, 0.60),
    "lip_corners_raised": (12, 0.52),
    "cheeks_raised": (6, 0.51),
    "lips_parted": (25, 0.64),
    "jaw_dropped": (26, 0.67),
    "lips_stretched": (20, 0.53),
}


def test_rendered_faces_with_an_action_unit_have_more_evidence() -> None:
    landmarks, units = rendered()
    faces = [measured_face(points, people()) for points in landmarks[:250]]
    for movement, (unit, difference) in MEASURED.items():
        values = np.array([np.nan if (value := each.of(movement).value) is None else value for each in faces])
        active, inactive = units[unit][:250] >= 0.2, units[unit][:250] < 0.1
        found = np.nanmean(values[active]) - np.nanmean(values[inactive])
        assert found > difference - 0.08, (movement, found)


def test_a_population_survives_its_file_and_a_damaged_one_is_refused() -> None:
    again = FacePopulation.from_json(json.dumps(PEOPLE.to_json()))
    points = photographed(face(smile=0.4))
    for movement in MOVEMENTS:
        before, after = (measured_face(points, each).of(movement).value for each in (PEOPLE, again))
        assert before == pytest.approx(after, abs=1e-3) if before is not None else after is None
    assert FacePopulation.from_json(RENDERED.read_bytes()).faces == 2400
    for damage in ({"version": 2}, {"gauges": {}}, {"whole": {}}):
        with pytest.raises(DataError, match="population of faces cannot be read"):
            FacePopulation.from_json(json.dumps(PEOPLE.to_json() | damage))
    with pytest.raises(DataError):
        FacePopulation.from_json("[]")
