"""Compares what captions say of a face with what is measured of it.

Every claim of a local sentence, and of the cues that a summary names, gets a finding. The score of a claim that a
movement is visible is the evidence for it (`evidence.py`), and that of a negated claim is what speaks against it. A
stated intensity moves the expectation: "strongly" expects a rank that fewer faces reach, and "slightly" one that more
faces reach; "slightly" for one of the strongest movements is half right.

The measurements must not be those from which the caption was written; the caller decides that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emocap_pretrain.captions.grammar.action_units import Degree
from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.claims import Claim, find_claims
from emocap_pretrain.checking.evidence import Evidence, MeasuredFace, evidence_of, measured_face
from emocap_pretrain.checking.movements import MOVEMENTS
from emocap_pretrain.checking.population import FacePopulation

_EXPECTED = {Degree.LOW: 1.5, Degree.MID: 1.0, Degree.HIGH: 0.6}
"""The factor by which a stated degree changes the share of faces that are expected to show the movement so strongly."""

_STRONGEST = 0.5
"""The share, of the faces that show a movement, on which it is too strong to be called slight."""

AGREES = 0.5
"""The least score with which a claim agrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementCheck:
    """Compares the claims of captions with the mesh points of the face.

    Attributes:
        population: The faces with which each face is compared.
        name: Name of the check.
    """

    population: FacePopulation
    name: str = "agreement"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each claim, and one for each sentence without a claim, in the order of the texts."""
        measured: MeasuredFace | None = None
        if face.landmarks is not None and np.isfinite(face.landmarks).any():
            measured = measured_face(face.landmarks, self.population)
        return [finding for number in range(len(face.captions)) for finding in self._of_caption(face, number, measured)]

    def _of_caption(self, face: CaptionedFace, number: int, measured: MeasuredFace | None) -> Iterator[CaptionFinding]:
        caption = face.captions[number]
        for sentence, text in enumerate(caption.local):
            claims = find_claims(text)
            if not claims:
                yield CaptionFinding(
                    check=self.name,
                    part="local",
                    caption=number,
                    sentence=sentence,
                    region=area_of(text) or "",
                    score=None,
                    reason="The sentence says nothing of a movement that this check knows.",
                )
            for claim in claims:
                yield self._judged(claim, measured, part="local", caption=number, sentence=sentence)
        for claim in find_claims(caption.summary):
            yield self._judged(claim, measured, part="summary", caption=number)

    def _judged(
        self, claim: Claim, measured: MeasuredFace | None, *, part: str, caption: int, sentence: int | None = None
    ) -> CaptionFinding:
        score, why = judged(claim, measured)
        text = "sentence" if part == "local" else "summary"
        return CaptionFinding(
            check=self.name,
            part=part,
            caption=caption,
            sentence=sentence,
            region=claim.region,
            score=score,
            reason=f"The {text} says that {said(claim)}; {why}.",
        )


def judged(claim: Claim, measured: MeasuredFace | None) -> tuple[float | None, str]:
    """Returns the score of a claim about a face, or None, and a clause that says why.

    `measured` is None if the face has no landmarks.
    """
    if measured is None:
        return None, "no landmarks of this face are known"
    evidence = measured.of(claim.movement, claim.side)
    if evidence.value is None:
        return None, f"it cannot be judged, because {evidence.why_not}"
    score = _with_degree(claim.degree, evidence)
    return round(1 - score if claim.negated else score, 4), _measured(claim, evidence)


def said(claim: Claim) -> str:
    """Returns a claim as a clause, such as "the left eyebrow is strongly raised"."""
    clause = MOVEMENTS[claim.movement].clause(claim.side, negated=claim.negated)
    if claim.degree is None:
        return clause
    return f"{clause} {_DEGREE_WORDS[claim.degree]}"


_DEGREE_WORDS = {Degree.LOW: "slightly", Degree.MID: "moderately", Degree.HIGH: "strongly"}


def _with_degree(degree: Degree | None, evidence: Evidence) -> float:
    """Returns the evidence for a movement of the stated degree. That against a movement has no degree."""
    value, rank, gauge = evidence.value or 0.0, evidence.rank, evidence.gauge
    if degree is None or rank is None or gauge is None or evidence.is_opposite:
        return value
    expected = evidence_of(rank, min(0.9, gauge.share * _EXPECTED[degree]))
    if degree is not Degree.LOW:
        return expected
    # From 1 at the lower end of the strongest faces down to 1/2 at the strongest face.
    above = max(0.0, (rank - (1 - _STRONGEST * gauge.share)) / (_STRONGEST * gauge.share))
    return expected * (1 - above / 2)


def _measured(claim: Claim, evidence: Evidence) -> str:
    """Returns a clause such as "it is measured lower than on 78 of 100 faces"."""
    if evidence.rank is None or evidence.gauge is None:
        return "this follows from the movements of its parts"
    more = round(100 * evidence.rank)
    is_plural = " are " in f"{MOVEMENTS[claim.movement].clause(claim.side)} "
    named = f"{evidence.subject or ('they are' if is_plural else 'it is')} measured"
    if more >= 50:
        return f"{named} {evidence.gauge.more} than on {more} of 100 faces"
    return f"{named} {evidence.gauge.less} than on {100 - more} of 100 faces"
