import numpy as np
import pytest
from emocap_shards.sample import Caption
from landmark_cases import crowd, face, photographed

from emocap_pretrain.captions.face_mesh.geometry import LEFT
from emocap_pretrain.checking.agreement import AgreementCheck
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.population import FacePopulation

CHECK = AgreementCheck(population=FacePopulation.fit(crowd(600), "schematic faces"))


def findings(points: np.ndarray | None, *local: str, summary: str = "") -> list[CaptionFinding]:
    captioned = CaptionedFace(key="a", captions=[Caption("A face.", local, summary)], landmarks=points)
    return list(CHECK.findings(captioned))


def score(points: np.ndarray, sentence: str) -> float:
    (found,) = findings(points, sentence)
    assert found.score is not None
    return found.score


def left_brow_up() -> np.ndarray:
    points = face()
    points[[*LEFT.brow_inner, *LEFT.brow_middle, *LEFT.brow_outer], 1] += 0.15
    return photographed(points)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Her left eyebrow is raised.", "Her right eyebrow is raised."),
        ("Her left eyebrow is raised.", "Her left eyebrow is not raised."),
        ("She raises one eyebrow.", "Both eyebrows are raised."),
        ("The right eyebrow is not raised.", "The left eyebrow is lowered."),
    ],
)
def test_side_direction_and_negation_decide(right: str, wrong: str) -> None:
    assert score(left_brow_up(), right) > 0.7
    assert score(left_brow_up(), wrong) < 0.3


def test_a_wrong_intensity_gives_a_lower_score_than_the_right_one() -> None:
    slight, strong = photographed(face(smile=0.4)), photographed(face(smile=1.2))
    slightly, strongly = (
        "The corners of the mouth are slightly raised.",
        "The corners of the mouth are strongly raised.",
    )
    assert score(strong, strongly) > 0.9
    assert score(strong, slightly) <= 0.6
    assert score(slight, slightly) > 0.7
    assert score(slight, strongly) < score(slight, slightly) - 0.2


def test_every_claim_has_a_finding_with_its_reason() -> None:
    found = findings(
        photographed(face(raise_brows=1.0)),
        "The eyebrows are lowered and the cheeks are dimpled.",
        "The light is soft.",
        summary="With slightly parted lips, the face looks calm.",
    )
    assert [(each.part, each.sentence, each.region) for each in found] == [
        ("local", 0, "eyebrows"),
        ("local", 0, "cheeks"),
        ("local", 1, ""),
        ("summary", None, "mouth"),
    ]
    assert found[0].score == 0
    assert found[0].reason == (
        "The sentence says that the eyebrows are lowered; they are measured higher than on 100 of 100 faces."
    )
    assert found[1].score is None
    assert found[1].reason == (
        "The sentence says that the lip corners are tightened so that the cheeks are dimpled; it cannot be judged, "
        "because nothing measures this movement reliably."
    )
    assert found[2].score is None
    assert found[3].reason.startswith("The summary says that the lips are parted slightly; they are measured ")


def test_without_landmarks_every_claim_is_left_open() -> None:
    for points in (None, np.full((478, 3), np.nan)):
        (found,) = findings(points, "The person smiles.")
        assert found.score is None
        assert found.reason == "The sentence says that the lip corners are raised; no landmarks of this face are known."
