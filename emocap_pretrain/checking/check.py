"""Defines what a check of captions sees, and what it finds.

A check compares a caption with something that the caption was not written from: with the measured geometry of the face,
with the other parts of the caption, with other captions of the same image, or with rules that hold for every caption.
It gives a score, or it abstains, and in both cases it states a reason. It does not decide whether a sample is used:
thresholds do (a filter file).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from emocap_shards.sample import Caption
from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionFinding:
    """Holds what a check says of one caption, or of one sentence of it.

    Attributes:
        check: Name of the check, such as "agreement".
        part: "global", "local", "summary", or "caption" for the caption as a whole.
        caption: Index of the caption among those of the sample.
        sentence: Index of the local sentence; None if the finding is not about one local sentence.
        region: Region of the face that the finding is about (`grammar/recognition.py`), or "".
        score: In [0, 1], where 1 is a caption without any fault that this check can see; None if the check abstains,
            because it cannot know.
        reason: One complete sentence that says why.
    """

    check: str
    part: str
    caption: int = 0
    sentence: int | None = None
    region: str = ""
    score: float | None
    reason: str

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score={self.score} of the check {self.check} must be 0 to 1, or None.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptionedFace:
    """Holds what is known of one sample: its captions, its labels, and the mesh of its face.

    Attributes:
        key: Key of the sample.
        captions: All captions of the sample.
        labels: Labels of the sample by their names.
        landmarks: Mesh points in pixels with depth in the same unit; None if no face was found or none was looked for.
    """

    key: str
    captions: Sequence[Caption]
    labels: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    landmarks: Float[np.ndarray, "478 3"] | None = None


class CaptionCheck(Protocol):
    """Judges the captions of one sample at a time. A check is a pure function of the sample and of its own settings."""

    @property
    def name(self) -> str: ...

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each thing that was judged, in a fixed order, including those without fault."""
        ...
