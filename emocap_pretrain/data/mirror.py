"""Mirrors captions: mirroring an image makes the left eye the right one, so the words of its caption must change too.

The words "left" and "right" also have other meanings ("is left open", "the right expression"). So they are exchanged
only if each of them in a caption is used in one of a few unambiguous forms ("the left brow", "to the right.", "looks
left,", "left and right"). A caption with another use of these words cannot be mirrored, and then its image must not be
mirrored either. Only English is supported.

A wrong exchange would train the model on a false caption. If a caption is not mirrored, training only loses one
augmented image. So `mirrored` returns None in every case of doubt.
"""

import re
from dataclasses import replace

from emocap_shards.sample import Caption

_SIDE = r"(left|right)"
# The patterns are made of these words: parts of a face, what may precede such a part, and verbs of a direction.
_PLACES = (
    "arm|brow|cheek|cheekbone|corner|dimple|ear|earlobe|edge|eye|eyebrow|eyelash|eyelid|fold|hand|iris|jaw|lid|lip|"
    "nostril|profile|pupil|shoulder|side|temple"
)
_QUALITIES = "inner|outer|upper|lower|mouth|lip|nasolabial|medial|lateral"
_TURNS = "drift|face|gaze|glance|lean|look|move|point|pull|shift|slant|tilt|turn"
# After a direction the phrase must end. In "to the right expression" it does not, so there the word is no side.
_ENDS = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:and|or|of|than|while|with)\b)"
# Each group of each pattern matches a "left" or "right" that certainly means a side.
_CERTAIN = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "the left outer brow"
        rf"\b{_SIDE}(?:[- ]hand)?(?:\s+(?:{_QUALITIES})){{0,2}}\s+(?:{_PLACES})\b(?!-)",
        # "from left to right", "the left and the right"
        rf"\b{_SIDE}\s+(?:and|or|to|versus|than)\s+(?:the\s+|his\s+|her\s+)?{_SIDE}\b(?!-)",
        # "to the right.", "on the viewer's left"
        rf"\b(?:to|on|toward|towards|from|at)\s+(?:the|his|her|its|their|(?:the\s+)?[a-z]+'s)\s+{_SIDE}\b{_ENDS}",
        # "looks slightly left,"
        rf"\b(?:{_TURNS})(?:s|d|ed|ing)?(?:\s+[a-z]+ly)?\s+{_SIDE}\b{_ENDS}",
        # "the leftmost tooth", "rightwards"
        rf"\b{_SIDE}(?:-hand\b|most\b|wards?\b)",
    )
)
# Each "left" or "right" that could mean a side. Words such as "bright" and "lefty" do not count.
_MENTION = re.compile(rf"\b{_SIDE}(?=\b|most\b|wards?\b)", re.IGNORECASE)
# Sides that are not named by a word: FACS codes of one half of the face, and directions of rotation.
_UNREADABLE = re.compile(r"\b(?:AU\s?)?[LR]\d{1,2}[A-E]?\b|\bAU\s?\d{1,2}[A-E]?\s?\(?[LR]\b|(?i:clockwise)")
_OTHER = {"left": "right", "right": "left"}


def mirrored(caption: Caption) -> Caption | None:
    """Returns the caption of the mirrored image; None if the meaning of a "left" or "right" in it is uncertain.

    A caption that names no side is returned unchanged. If the result is None, the image must not be mirrored. Mirroring
    the result again gives the original caption.

    >>> caption = Caption("Joy.", ("The LEFT brow is raised.",), "She looks right.")
    >>> mirrored(caption)
    Caption(global_='Joy.', local=('The RIGHT brow is raised.',), summary='She looks left.')
    >>> mirrored(Caption("The right expression.", (), "")) is None
    True
    """
    parts = [_mirrored(text) for text in (caption.global_, *caption.local, caption.summary)]
    texts = [text for text in parts if text is not None]
    if len(texts) < len(parts):
        return None
    return replace(caption, global_=texts[0], local=tuple(texts[1:-1]), summary=texts[-1])


def _mirrored(text: str) -> str | None:
    if _UNREADABLE.search(text):
        return None
    # Spans are compared and not words: every place with a mention must be a place that a certain pattern has matched.
    mentions = [match.span(1) for match in _MENTION.finditer(text)]
    if not mentions:
        return text
    certain = {
        match.span(group)
        for pattern in _CERTAIN
        for match in pattern.finditer(text)
        for group in range(1, pattern.groups + 1)
    }
    return _MENTION.sub(_swap, text) if certain.issuperset(mentions) else None


def _swap(match: re.Match[str]) -> str:
    # Lower case, upper case and a capital are kept.
    side = match.group()
    other = _OTHER[side.lower()]
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other
