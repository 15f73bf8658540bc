"""Writes the caption of a FER+ face from its measured cues and, except in the test split, the votes on its emotion.

A cue is a visible state of a region of the face. The test split has a function of its own, `caption_without_votes`,
which does not receive the votes. So no caption of the test split can depend on them. The words are those of
`captions/grammar` (decision 31).
"""

from collections.abc import Sequence

from emocap_shards.sample import Caption

from emocap_pretrain.captions.ferplus.votes import Votes, emotion_state
from emocap_pretrain.captions.grammar.action_units import Band
from emocap_pretrain.captions.grammar.looks import RegionState
from emocap_pretrain.captions.grammar.sentences import (
    Wording,
    global_sentence,
    local_sentence,
    summary,
    summary_without_emotion,
)

GLOBAL_WITHOUT_VOTES = "A face."

# One in this number of regions at rest is described, chosen by the key of the sample.
_AT_REST_ONE_IN = 2


def caption(votes: Votes, cues: Sequence[RegionState], key: str) -> Caption:
    """Returns the caption of a face of the split "train" or "valid".

    The emotion comes from the votes, and its degree from the votes and the cues. All else comes from the cues.
    `key` is the key of the sample, which decides between wordings.
    """
    wording = Wording(key)
    emotion = emotion_state(votes, expressive=any(Band.STRONG in cue.bands for cue in cues))
    return Caption(
        global_=global_sentence(emotion, wording),
        local=local_sentences(cues, wording),
        summary=summary(emotion, cues, wording),
    )


def caption_without_votes(cues: Sequence[RegionState], key: str) -> Caption:
    """Returns the caption of a face of the test split, which depends only on measurements of the face and on `key`.

    `key` is the key of the sample, which decides between wordings.
    """
    wording = Wording(key)
    return Caption(
        global_=GLOBAL_WITHOUT_VOTES,
        local=local_sentences(cues, wording),
        summary=summary_without_emotion(cues, wording),
    )


def local_sentences(cues: Sequence[RegionState], wording: Wording) -> tuple[str, ...]:
    """Returns a sentence for every region that shows a movement, and for about half of the regions at rest."""
    described = (
        cue for cue in cues if not cue.at_rest or wording.number(cue.region, "described") % _AT_REST_ONE_IN == 0
    )
    return tuple(local_sentence([cue], wording) for cue in described)
