"""Measures the agreement check on photographs of FER+, against action units that are derived from votes.

The rule: if at least eight of ten people voted for an emotion, the face shows the units of `SHOWN`; if they voted for
neutral, it does not show those of `ABSENT`. Of these units alone, a true and a false sentence are written.

The rule is not the truth. People voted on the emotion, and nobody coded action units. Happy faces nearly always raise
the corners of the lips, but an angry face need not lower its eyebrows, and few sad faces lower the corners of their
lips. So the results are bounds of how good the check can appear, and a low one may be the fault of the rule. Sides and
intensities follow from no vote and are not measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emocap_shards.sample import Caption

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from emocap_pretrain.captions.ferplus.dataset import Faces, load_tables
from emocap_pretrain.captions.ferplus.votes import Votes
from emocap_pretrain.checking.agreement import AgreementCheck
from emocap_pretrain.checking.population import FacePopulation
from emocap_pretrain.errors import DataError

from .falsifier import TrueUnits, WrittenClaim, written_claims
from .judged import JudgedSentence, found_false, grouped_sentences, judged_sentences, share_below

BELOW = "share of written sentences about FER+ with a score below 0.5"
FOUND = "precision of scores below 0.5 for written sentences about FER+"
SHOWN: Mapping[str, Sequence[int]] = {
    "happiness": (12,),
    "surprise": (1, 2, 5, 26),
    "anger": (4,),
    "sadness": (1, 4, 15),
}
"""The action units that a face with these votes is taken to show."""
ABSENT: Mapping[str, Sequence[int]] = {"neutral": (4, 12, 26)}
"""The action units that a face with these votes is taken not to show."""

_VOTES = 8
_MIDDLE = 0.5  # An intensity that the falsifier calls neither weak nor strong.
_KINDS = ("true", "negation", "wrong_unit")
_MOST_FACES = 20_000  # A population is fitted to at most so many faces, as `emocap check` does.


@dataclass(frozen=True, slots=True)
class VotedPlan:
    """Says which faces are used.

    Attributes:
        table: fer2013.csv.
        votes: fer2013new.csv of FER+.
        landmarks: The landmarks of the images (`emocap landmarks`).
        seed: Another seed gives other wordings.
    """

    table: Path
    votes: Path
    landmarks: Path
    seed: int


def measure(plan: VotedPlan, about: Occasion) -> Iterator[Measurement]:
    """Yields the records of each action unit, and of its sentences by kind and by the emotion that was voted for.

    The population is the training split, and the sentences are about the faces of the other two splits.

    Raises:
        DataError: If a file cannot be read, or the training split has too few faces with landmarks.
    """
    sentences = list(_sentences(plan))
    units = grouped_sentences([each for _, each in sentences], lambda each: each.written.units[0])
    for unit in sorted(units):
        setting = {"faces": "FER+", "seed": plan.seed, "unit": f"AU{unit}"}
        yield found_false(about, FOUND, setting, units[unit])
        for emotion in (*SHOWN, *ABSENT):
            those = [each for voted, each in sentences if voted == emotion and each.written.units == (unit,)]
            for kind, of_kind in grouped_sentences(those, lambda each: each.written.kind).items():
                yield share_below(about, BELOW, {**setting, "votes": emotion, "kind": kind}, of_kind)


def _sentences(plan: VotedPlan) -> Iterator[tuple[str, JudgedSentence]]:
    """Yields each judged sentence with the emotion that was voted for."""
    faces, _ = load_tables(plan.table, plan.votes, plan.landmarks)
    assert faces.landmarks is not None
    check = AgreementCheck(population=_population(faces, faces.landmarks))
    for row in (*faces.rows("valid"), *faces.rows("test")):
        emotion = voted_emotion(faces.votes[row])
        if emotion:
            points = faces.landmarks[row].astype(np.float64)
            for each in judged_sentences(_written(faces.names[row], emotion, plan.seed), points, check):
                yield emotion, each


def _population(faces: Faces, landmarks: np.ndarray) -> FacePopulation:
    train = [row for row in faces.rows("train") if np.isfinite(landmarks[row, 0, 0])]
    every = max(1, -(-len(train) // _MOST_FACES))
    try:
        return FacePopulation.fit(landmarks[train[::every]].astype(np.float64), "the training split of FER+")
    except ValueError as error:
        raise DataError(str(error)) from error


def voted_emotion(votes: Votes) -> str:
    """Returns the emotion of `SHOWN` or `ABSENT` with at least eight of the ten votes; "" if there is none."""
    return next((name for name in (*SHOWN, *ABSENT) if votes[name] >= _VOTES), "")


def _written(key: str, emotion: str, seed: int) -> list[WrittenClaim]:
    known = SHOWN.get(emotion, ABSENT.get(emotion, ()))
    truth = TrueUnits.symmetric(dict.fromkeys(SHOWN.get(emotion, ()), _MIDDLE))
    written = written_claims(key, Caption("A face.", (), ""), truth, seed)
    # The falsifier takes all other units as absent, but the votes do not say this.
    return [each for each in written if each.kind in _KINDS and each.units[0] in known]
