import numpy as np
import pytest
from landmark_cases import crowd, face, photographed

from emocap_pretrain.captions.face_mesh.cues import find_cues
from emocap_pretrain.captions.face_mesh.geometry import MEASURES, Population, measure
from emocap_pretrain.captions.ferplus.captioner import local_sentences
from emocap_pretrain.captions.grammar.action_units import Band
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Look, Region, RegionState
from emocap_pretrain.captions.grammar.sentences import Wording

PEOPLE = Population.fit(measure(crowd(600)))


def ranks(points: np.ndarray) -> dict[str, float]:
    return {name: float(values[0]) for name, values in PEOPLE.ranks(measure(points[None])).items()}


def cues(**amounts: float) -> dict[Region, RegionState]:
    return {cue.region: cue for cue in find_cues(ranks(photographed(face(**amounts))))}


@pytest.mark.parametrize(
    ("amounts", "region", "look"),
    [
        ({"raise_brows": 1.2}, Region.EYEBROWS, LOOKS["brows_raised"]),
        ({"slant_brows": 1.2}, Region.EYEBROWS, LOOKS["inner_brows_raised"]),
        ({"knit_brows": 1.2}, Region.EYEBROWS, LOOKS["brows_drawn_together"]),
        ({"widen_eyes": 1.2}, Region.EYES, LOOKS["eyes_widened"]),
        ({"squint": 0.8, "knit_brows": 1.2}, Region.EYES, LOOKS["lids_tightened"]),
        ({"lower_lids": 0.6}, Region.EYES, LOOKS["lids_lowered"]),
        ({"lower_lids": 1.5}, Region.EYES, LOOKS["eyes_closed_or_nearly"]),
        ({"smile": 1.2}, Region.LIP_CORNERS, LOOKS["lip_corners_raised"]),
        ({"smile": 1.2}, Region.NOSE, LOOKS["folds_deepened_by_smile"]),
        ({"smile": 1.2, "squint": 0.8}, Region.CHEEKS, LOOKS["cheeks_raised"]),
        ({"sink_corners": 1.2}, Region.LIP_CORNERS, LOOKS["lip_corners_lowered"]),
        ({"open_mouth": 1.5}, Region.LIPS, LOOKS["jaw_dropped"]),
        ({"press_lips": 1.2}, Region.LIPS, LOOKS["lips_pressed"]),
    ],
)
def test_a_displaced_face_has_the_look_of_its_movement(amounts: dict[str, float], region: Region, look: Look) -> None:
    assert cues(**amounts)[region].look is look


def test_every_measured_region_of_a_neutral_face_is_at_rest() -> None:
    assert all(cue.at_rest for cue in cues().values())


def test_a_larger_movement_is_a_stronger_cue() -> None:
    assert set(cues(raise_brows=0.5)[Region.EYEBROWS].bands) == {Band.SLIGHT}
    assert set(cues(raise_brows=1.5)[Region.EYEBROWS].bands) == {Band.STRONG}


def test_a_dropped_jaw_is_not_a_smile() -> None:
    assert Region.LIP_CORNERS not in cues(open_mouth=2.0)


def test_a_smile_is_not_mistaken_for_lowered_brows() -> None:
    assert cues(smile=1.2, knit_brows=1.0).get(Region.EYEBROWS) is None


def test_what_lies_outside_the_picture_has_no_cue() -> None:
    points = photographed(face(smile=1.2, raise_brows=1.2, widen_eyes=1.2))
    points[points[:, 1] > 30] = np.nan
    assert {cue.region for cue in find_cues(ranks(points))} == {Region.EYEBROWS, Region.EYES}


def test_an_image_without_a_face_has_no_sentence() -> None:
    assert local_sentences(find_cues(ranks(np.full((478, 3), np.nan))), Wording("nobody")) == ()


def test_sentences_are_equal_for_equal_keys_and_vary_between_keys() -> None:
    found = tuple(cues(raise_brows=1.2, widen_eyes=1.2, open_mouth=1.5).values())
    assert local_sentences(found, Wording("a")) == local_sentences(found, Wording("a"))
    assert len({local_sentences(found, Wording(str(number))) for number in range(50)}) > 10


@pytest.mark.parametrize("region", AT_REST)
def test_some_regions_at_rest_are_described_and_some_are_not(region: Region) -> None:
    still = RegionState(region, AT_REST[region])
    assert {len(local_sentences([still], Wording(str(number)))) for number in range(30)} == {0, 1}


def test_ranks_of_the_population_itself_are_uniform() -> None:
    own = PEOPLE.ranks(measure(crowd(600)))
    for name in MEASURES:
        assert np.nanmean(own[name]) == pytest.approx(0.5, abs=0.03), name


def test_the_population_removes_the_effect_of_the_pose() -> None:
    measurements = dict(measure(crowd(600)))
    tilted = measurements | {"brow_inner": measurements["brow_inner"] + 0.02 * measurements["pitch_deg"]}
    ranked = Population.fit(tilted).ranks(tilted)["brow_inner"]
    assert abs(np.corrcoef(ranked, tilted["pitch_deg"])[0, 1]) < 0.1


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"known of 5 of 5 faces.*check the landmarks"):
        Population.fit(measure(crowd(5)))
