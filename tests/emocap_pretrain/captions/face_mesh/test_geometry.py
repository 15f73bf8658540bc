import numpy as np
import pytest
from landmark_cases import face, photographed

from emocap_pretrain.captions.face_mesh.geometry import MEASURES, measure


def measured(points: np.ndarray) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measure(points[None]).items()}


@pytest.mark.parametrize(
    ("movement", "measure_name", "sign"),
    [
        ("raise_brows", "brow_middle", 1),
        ("slant_brows", "brow_slant", 1),
        ("knit_brows", "brow_inner", -1),
        ("knit_brows", "brow_gap", -1),
        ("widen_eyes", "eye_aperture", 1),
        ("lower_lids", "eye_aperture", -1),
        ("squint", "lower_lid_lift", 1),
        ("smile", "corner_lift", 1),
        ("smile", "mouth_width", 1),
        ("smile", "nose_width", 1),
        ("sink_corners", "corner_curve", -1),
        ("open_mouth", "mouth_opening", 1),
        ("open_mouth", "jaw_drop", 1),
        ("press_lips", "lip_thickness", -1),
        ("lift_upper_lip", "upper_lip_drop", -1),
    ],
)
def test_a_movement_changes_its_measure_in_its_direction(movement: str, measure_name: str, sign: int) -> None:
    rest, moved = measured(photographed(face())), measured(photographed(face(**{movement: 1.0})))
    assert sign * (moved[measure_name] - rest[measure_name]) > 0.01


def test_size_position_and_roll_change_nothing() -> None:
    near = measured(photographed(face(smile=0.5), eyes_px=16))
    elsewhere = np.array([100, -40, 7])
    far = measured(photographed(face(smile=0.5), eyes_px=160, roll_deg=35) + elsewhere)
    assert near == pytest.approx(far, abs=1e-9)


def test_yaw_and_pitch_change_no_measure_of_a_symmetric_face() -> None:
    front = measured(photographed(face(raise_brows=0.5)))
    turned = measured(photographed(face(raise_brows=0.5), yaw_deg=25, pitch_deg=15))
    for name in MEASURES:
        assert turned[name] == pytest.approx(front[name], abs=1e-6), name
    assert abs(turned["yaw_deg"]) > 20
    assert abs(turned["pitch_deg"]) > 10


def test_the_nearer_half_counts_more_in_a_turned_face() -> None:
    points = face()
    points[[291]] += (0.0, 0.2, 0.0)  # the left lip corner alone
    lift = {yaw: measured(photographed(points, yaw_deg=yaw))["corner_lift"] for yaw in (-30, 0, 30)}
    left_is_near = -30 if measured(photographed(points, yaw_deg=-30))["yaw_deg"] < 0 else 30
    assert lift[left_is_near] > lift[0] > lift[-left_is_near]


def test_a_profile_is_not_measured() -> None:
    values = measured(photographed(face(), yaw_deg=60))
    assert all(np.isnan(values[name]) for name in MEASURES)


def test_a_missing_point_affects_only_the_measures_that_need_it() -> None:
    points = photographed(face())
    points[152] = np.nan
    values = measured(points)
    assert {name for name in values if np.isnan(values[name])} == {"jaw_drop"}
