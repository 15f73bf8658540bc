"""Finds what language models write around a description: refusals, talk with the user, frames and empty caution.

The phrases are in boilerplate.toml. A nuance such as "a hint of sadness" is no fault.
"""

from emocap_pretrain.checking.texts.phrases import PhraseCheck, read_categories

_CATEGORIES = read_categories("boilerplate.toml")


def boilerplate_check() -> PhraseCheck:
    """Returns the check "boilerplate"."""
    return PhraseCheck(
        name="boilerplate",
        categories=tuple(_CATEGORIES.values()),
        clean="describes the face without a refusal, talk or empty caution",
    )
