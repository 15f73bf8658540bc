"""Turns the votes of ten people on one face into its emotion label and into the emotion that its caption describes.

The label follows the majority rule of FER+: if only one person votes for an emotion, this vote is dropped as an
outlier, and more than half of the remaining votes must be for the same emotion. The caption describes the emotion with
the most votes. The degree of that emotion (its intensity in three steps) depends on its own share of the votes, on the
share of "neutral", and on whether the face shows a strong movement. The caption also describes the emotion with the
second most votes if this emotion has at least two votes and the first emotion is either neutral or below the highest
degree.
"""

from collections.abc import Mapping

from emocap_pretrain.captions.grammar.action_units import Degree
from emocap_pretrain.captions.grammar.emotions import EMOTIONS, EmotionState

UNSURE = ("unknown", "NF")  # The votes of FER+ for "cannot tell" and for "not a face".
Votes = Mapping[str, int]


def without_outliers(votes: Votes) -> dict[str, int]:
    """Returns the votes with each count of 1 replaced by 0, because an emotion that only one person sees is an outlier.

    Raises:
        ValueError: If the names of the votes are not those of FER+.
    """
    if set(votes) != {*EMOTIONS, *UNSURE}:
        raise ValueError(
            f"votes for {', '.join(sorted(votes))}, but the names are {', '.join((*EMOTIONS, *UNSURE))}; "
            "map them by name."
        )
    return {name: count if count > 1 else 0 for name, count in votes.items()}


def majority(votes: Votes) -> str:
    """Returns the emotion with more than half of the votes, not counting outliers; "" if there is no such emotion."""
    kept = without_outliers(votes)
    name = max(kept, key=lambda name: kept[name])
    return name if name in EMOTIONS and 2 * kept[name] > sum(kept.values()) else ""


def is_face(votes: Votes) -> bool:
    """Returns whether the most frequent emotion has more votes than "unknown" and "NF" (no face) together.

    If only one person voted for an emotion, for "unknown" or for "NF", this vote does not count.
    """
    kept = without_outliers(votes)
    return max(kept[name] for name in EMOTIONS) > sum(kept[name] for name in UNSURE)


def emotion_state(votes: Votes, *, expressive: bool = True) -> EmotionState:
    """Returns the emotion with the most votes, and the emotion with the second most votes if it is visible as well.

    The second emotion must have at least two votes. If the first emotion is neutral, this is sufficient. Otherwise
    the degree of the first emotion must also be low or mid, because a high degree hides the second emotion.
    `expressive` says whether a strong movement was measured on the face. If not, every emotion except neutral has a low
    or mid degree. Emotions with the same number of votes are taken in the order of `EMOTIONS`, with neutral last.

    At least two people must have voted for the same emotion. Every face for which `is_face` is True fulfils this.
    """
    kept = without_outliers(votes)
    first, second = sorted((*EMOTIONS[1:], "neutral"), key=lambda name: -kept[name])[:2]
    total = sum(kept[name] for name in EMOTIONS)
    share, neutral_share = kept[first] / total, kept["neutral"] / total
    if first == "neutral" or (share >= 0.8 and expressive):
        degree = Degree.HIGH
    elif neutral_share >= 0.35 or share < 0.45:
        degree = Degree.LOW
    else:
        degree = Degree.MID
    # If an emotion is clear, a second one that a few people voted for is not visible.
    mixed = kept[second] > 0 and (first == "neutral" or degree is not Degree.HIGH)
    return EmotionState(
        name=first,
        degree=degree,
        second=second if mixed else "",
        even=mixed and 4 * kept[second] >= 3 * kept[first],
        ambiguous=votes["unknown"] >= 2,
    )
