import numpy as np
import pytest
from landmark_cases import crowd, face, photographed

from emocap_pretrain.captions.ferplus.cues import Cue, Kind, Region, Strength, find_cues
from emocap_pretrain.captions.ferplus.geometry import MEASURES, measure
from emocap_pretrain.captions.ferplus.population import Population
from emocap_pretrain.captions.wording import listed, local_sentences, phrases

PEOPLE = Population.fit(measure(crowd(600)))


def ranks(points: np.ndarray) -> dict[str, float]:
    return {name: float(values[0]) for name, values in PEOPLE.ranks(measure(points[None])).items()}


def cues(**amounts: float) -> dict[Region, Cue]:
    return {cue.region: cue for cue in find_cues(ranks(photographed(face(**amounts))))}


@pytest.mark.parametrize(
    ("amounts", "region", "kind"),
    [
        ({"raise_brows": 1.2}, Region.BROWS, Kind.BROWS_RAISED),
        ({"slant_brows": 1.2}, Region.BROWS, Kind.BROWS_OBLIQUE),
        ({"knit_brows": 1.2}, Region.BROWS, Kind.BROWS_KNIT),
        ({"widen_eyes": 1.2}, Region.EYES, Kind.EYES_WIDE),
        ({"squint": 0.8, "knit_brows": 1.2}, Region.EYES, Kind.EYES_NARROWED),
        ({"lower_lids": 0.6}, Region.EYES, Kind.LIDS_LOWERED),
        ({"lower_lids": 1.5}, Region.EYES, Kind.EYES_CLOSED),
        ({"smile": 1.2}, Region.LIP_CORNERS, Kind.CORNERS_UP),
        ({"smile": 1.2}, Region.FOLDS, Kind.FOLDS_DEEPENED),
        ({"smile": 1.2, "squint": 0.8}, Region.CHEEKS, Kind.CHEEKS_RAISED),
        ({"sink_corners": 1.2}, Region.LIP_CORNERS, Kind.CORNERS_DOWN),
        ({"open_mouth": 1.5}, Region.LIPS, Kind.JAW_DROPPED),
        ({"press_lips": 1.2}, Region.LIPS, Kind.LIPS_PRESSED),
    ],
)
def test_a_displaced_face_has_the_cue_of_its_movement(amounts: dict[str, float], region: Region, kind: Kind) -> None:
    assert cues(**amounts)[region].kind is kind


def test_a_neutral_face_has_no_cue_but_calm() -> None:
    assert {cue.kind for cue in cues().values()} == {Kind.CALM}


def test_a_larger_movement_is_a_stronger_cue() -> None:
    assert cues(raise_brows=0.5)[Region.BROWS].strength is Strength.MILD
    assert cues(raise_brows=1.5)[Region.BROWS].strength is Strength.STRONG


def test_a_dropped_jaw_is_no_smile() -> None:
    assert Region.LIP_CORNERS not in cues(open_mouth=2.0)


def test_a_laugh_does_not_knit_the_brows() -> None:
    assert cues(smile=1.2, knit_brows=1.0).get(Region.BROWS) is None


def test_what_lies_outside_the_picture_is_not_spoken_of() -> None:
    points = photographed(face(smile=1.2, raise_brows=1.2, widen_eyes=1.2))
    points[points[:, 1] > 30] = np.nan
    assert {cue.region for cue in find_cues(ranks(points))} == {Region.BROWS, Region.EYES}


def test_no_face_gives_no_sentence() -> None:
    assert local_sentences(find_cues(ranks(np.full((478, 3), np.nan))), "nobody") == ()


def test_sentences_are_equal_for_equal_keys_and_vary_over_keys() -> None:
    found = tuple(cues(raise_brows=1.2, widen_eyes=1.2, open_mouth=1.5).values())
    assert local_sentences(found, "a") == local_sentences(found, "a")
    assert len({local_sentences(found, str(number)) for number in range(50)}) > 10


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CALM])
@pytest.mark.parametrize("strength", Strength)
def test_every_cue_has_words(kind: Kind, strength: Strength) -> None:
    # Eyes are closed or they are not.
    cue = Cue(Region.LIPS, kind, Strength.STRONG if kind is Kind.EYES_CLOSED else strength)
    for key in "abcdefgh":
        (sentence,) = local_sentences([cue], key)
        assert sentence.endswith(".")
        assert ", " in sentence
        assert "{" not in sentence
    assert phrases([cue])


@pytest.mark.parametrize("region", Region)
def test_some_calm_regions_are_spoken_of_and_some_are_not(region: Region) -> None:
    calm = Cue(region, Kind.CALM, Strength.MILD)
    assert {len(local_sentences([calm], str(number))) for number in range(30)} == {0, 1}
    assert phrases([calm]) == ()


def test_strong_cues_are_named_first() -> None:
    mild = Cue(Region.BROWS, Kind.BROWS_RAISED, Strength.MILD)
    strong = Cue(Region.LIPS, Kind.MOUTH_OPEN, Strength.STRONG)
    assert phrases([mild, strong]) == ("a wide-open mouth", "slightly raised eyebrows")
    assert listed(("a", "b", "c")) == "a, b and c"
    assert listed(("a",)) == "a"


def test_a_population_survives_json() -> None:
    assert Population.loads(PEOPLE.dumps()) == PEOPLE


def test_ranks_of_the_population_itself_are_uniform() -> None:
    own = PEOPLE.ranks(measure(crowd(600)))
    for name in MEASURES:
        assert np.nanmean(own[name]) == pytest.approx(0.5, abs=0.03), name


def test_the_population_takes_the_pose_out() -> None:
    measurements = dict(measure(crowd(600)))
    tilted = measurements | {"brow_inner": measurements["brow_inner"] + 0.02 * measurements["pitch_deg"]}
    ranked = Population.fit(tilted).ranks(tilted)["brow_inner"]
    assert abs(np.corrcoef(ranked, tilted["pitch_deg"])[0, 1]) < 0.1


def test_too_few_faces_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"known of 5 of 5 faces.*check the landmarks"):
        Population.fit(measure(crowd(5)))
