"""Finds the region of the face that a local sentence is about, by its first word that names a region.

In all phrases of the grammar the subject comes before other parts of the face: "the eyes are narrowed by the raised
cheeks" is about the eyes. A test compares the result with the region for which each phrase of the grammar is written.
The rule also fits many sentences that were not built from the grammar, and does not need to know where they come from.
"""

import re
from collections.abc import Mapping

WORDS: Mapping[str, str] = {
    "eyebrows": r"(eye)?brows?",
    "eyes": r"eyes?|(eye)?lids?",
    "cheeks": r"cheeks?",
    "nose": r"nose|nostrils?|nasolabial folds?",
    "mouth": r"mouth|lips?|jaw|teeth|smile",
    "chin": r"chin",
}
"""A pattern of the words that name each region of a file of regions (`data/regions.py`)."""

_ANY = re.compile("|".join(rf"(?P<{name}>\b({words})\b)" for name, words in WORDS.items()), re.IGNORECASE)


def area_of(sentence: str) -> str | None:
    """Returns the name of the region that a local sentence is about; None if none of its words names a region.

    >>> area_of("The eyes are slightly narrowed by the raised cheeks."), area_of("A sunny day.")
    ('eyes', None)
    """
    match = _ANY.search(sentence)
    return match.lastgroup if match else None
