"""Defines what a captioner gets and what it answers.

A captioner sees one face at a time, with facts that are known of it, such as the label of an annotator. It answers with
a caption of three parts, or with the name of the reason why there is none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from emocap_shards.sample import Caption

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceFacts:
    """Holds what is known of a face before it is captioned.

    Attributes:
        labels: Labels by their names, such as {"emotion": "fear"}.
        votes: The share of annotators for each emotion, in [0, 1].
        units: The intensity of action units by their FACS numbers, in the unit of the source.
        valence: Valence in the unit of the source, usually [-1, 1]; None if it is unknown.
        arousal: Arousal in the unit of the source; None if it is unknown.
    """

    labels: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    votes: Mapping[str, float] = field(default_factory=dict[str, float])
    units: Mapping[int, float] = field(default_factory=dict[int, float])
    valence: float | None = None
    arousal: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceToCaption:
    """Holds a face for which a caption is asked.

    Attributes:
        key: Key of the sample. It identifies the request and is never sent to a model, because it may name a person.
        jpeg: The image as JPEG without metadata.
        digest: SHA-256 of the image as its source stores it, in hexadecimal digits.
        facts: What is known of the face.
    """

    key: str
    jpeg: bytes = field(repr=False)
    digest: str
    facts: FaceFacts = FaceFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Counts the tokens of one answer; None is unknown. `cached` is the part of `prompt` that the endpoint had cached.

    `cost` is in the currency of the user's prices; None if a price or a number of tokens is unknown.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionAnswer:
    """Holds the answer of a captioner to one request.

    Attributes:
        caption: The caption; None if there is none, and then `reason` names why.
        reason: The name of the reason, such as "refused" or "prose" (`answers.REASONS`); "" with a caption.
        final: Whether asking again could not help. An answer with a caption is final.
        regions: The described regions with their action units, as `answers.RegionAnswer` in JSON.
        cues: The cues that decide, strongest first.
        repairs: The names of what was removed around the JSON, such as "code fence".
        text: Beginning of an answer that could not be used, for the person who looks for the cause.
        usage: The tokens and the cost of this answer.
        model: The name of the model as the endpoint has answered it.
    """

    caption: Caption | None = None
    reason: str = ""
    final: bool = True
    regions: tuple[Json, ...] = ()
    cues: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    text: str = ""
    usage: TokenUsage = TokenUsage()
    model: str = ""


@runtime_checkable
class FaceCaptioner(Protocol):
    """Writes captions of faces. Many calls of `caption` may run at the same time on one event loop."""

    @property
    def settings(self) -> Json:
        """Returns everything except the face that decides an answer: the model, the prompt's digest, the sampling."""
        ...

    def facts_text(self, facts: FaceFacts) -> str:
        """Returns the text about known facts that is part of the request for a face."""
        ...

    async def caption(self, face: FaceToCaption, *, ask: int = 1, earlier: str = "") -> CaptionAnswer:
        """Returns the answer to one request.

        Args:
            face: The face.
            ask: The number of the request for this face, from 1. It is above 1 if an earlier answer was unusable.
            earlier: The reason why the last answer was unusable, or "".

        Raises:
            NoAnswer: If no answer has arrived for this face.
            EndpointStopped: If no request can succeed any more.
        """
        ...


def request_digest(key: str, image_digest: str, facts: FaceFacts, captioner: FaceCaptioner) -> str:
    """Returns the digest under which the answers for a face are stored, as 32 hexadecimal digits.

    It changes with the key, the image, the facts that are sent, and the settings of the captioner.
    """
    request = [key, image_digest, captioner.facts_text(facts), dict(captioner.settings)]
    text = json.dumps(request, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
