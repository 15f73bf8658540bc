"""Measures the agreement check on written sentences about rendered faces, whose action units are known.

The landmarks are those that `emocap landmarks` finds in the images, so the errors of the mesh model count too. Only the
faces with an odd index are used: the thresholds of the check were chosen on the others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.library import Library

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from emocap_pretrain.checking.agreement import AgreementCheck
from emocap_pretrain.checking.check import CaptionedFace
from emocap_pretrain.checking.faces import TrustedLandmarks, faces_of
from emocap_pretrain.checking.population import MIN_FACES
from emocap_pretrain.errors import ConfigError, DataError

from .falsifier import TrueUnits, WrittenClaim, written_claims
from .judged import JudgedSentence, found_false, grouped_sentences, judged_sentences, share_below

BELOW = "share of written sentences about rendered faces with a score below 0.5"
FOUND = "precision of scores below 0.5 for written sentences about rendered faces"
_UNIT = re.compile(r"AU(\d+)")


@dataclass(frozen=True, slots=True)
class FalsifiedPlan:
    """Says which faces are used.

    Attributes:
        data: Packed dataset of `emocap synth`.
        landmarks: The landmarks of its faces (`emocap landmarks`); all of them are the population.
        seed: Another seed gives other wordings.
    """

    data: str
    landmarks: Path
    seed: int


def measure(plan: FalsifiedPlan, about: Occasion) -> Iterator[Measurement]:
    """Yields the records of each kind and region, of each kind, of each region, and of all sentences.

    Raises:
        ConfigError: If the faces are too few for a population.
        DataError: If a face has no action units or no caption, or the landmarks cannot be read.
    """
    sentences = list(_sentences(plan))
    for region, of_region in ("all", sentences), *grouped_sentences(sentences, _region).items():
        setting = {"faces": "rendered", "seed": plan.seed, "region": region}
        yield found_false(about, FOUND, setting, of_region)
        for kind, those in grouped_sentences(of_region, lambda each: each.written.kind).items():
            yield share_below(about, BELOW, {**setting, "kind": kind}, those)


def _region(sentence: JudgedSentence) -> str:
    return sentence.written.region


def _sentences(plan: FalsifiedPlan) -> Iterator[JudgedSentence]:
    landmarks = TrustedLandmarks.read(plan.landmarks)
    population = landmarks.population(f"the faces of {plan.landmarks}")
    if population is None:
        raise ConfigError(f"{plan.landmarks} has fewer than {MIN_FACES} faces; give the landmarks of more faces.")
    check = AgreementCheck(population=population)
    faces = (face for some in faces_of(Library.open(plan.data), landmarks) for face in some)
    for index, face in enumerate(faces):
        if index % 2:
            yield from judged_sentences(_written(face, plan), face.landmarks, check)


def _written(face: CaptionedFace, plan: FalsifiedPlan) -> list[WrittenClaim]:
    labels = {int(found[1]): float(value) for name, value in face.labels.items() if (found := _UNIT.fullmatch(name))}
    if not labels or not face.captions:
        raise DataError(
            f"{plan.data}: the sample {face.key} has no caption or no labels AU1, AU2, ...; "
            "give a dataset of `emocap synth`."
        )
    # A unit without activity has the label 0.
    truth = TrueUnits.symmetric({unit: value for unit, value in labels.items() if value})
    return written_claims(face.key, face.captions[0], truth, plan.seed)
