"""Divides a flat caption, a text of several sentences, into the global part, local sentences and the summary.

The rule looks at each sentence alone. The first sentence becomes the global part. Of the others, those that name a
region of the face become local sentences (`grammar/recognition.py`). The whole text becomes the summary, so no word of
the caption is lost. A caption of one sentence, and one that has a local part or a summary already, does not change.

The library sentencex finds the ends of sentences. It is a rule-based splitter for many languages, and downloads
nothing. Regions are recognised by English words only.
"""

import re
from collections.abc import Callable

from emocap_shards.sample import Caption

from emocap_pretrain.captions.grammar.recognition import area_of

_ITEM = re.compile(r"\d+[.)]\s")  # The number of an item of a list, such as "2. ".
_LANGUAGE = "en"


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text in their order, with single blanks between their words.

    The end of a line ends a sentence. A number or a sign alone is no sentence, and belongs to the one that follows. The
    words of the result, joined with blanks, are those of the text.

    >>> sentences("A joyful face. The brows, e.g. the left one, are raised!")
    ['A joyful face.', 'The brows, e.g. the left one, are raised!']
    """
    # Only packing with --flat needs the library.
    import sentencex

    # The library has no types.
    segment: Callable[[str, str], list[str]] = vars(sentencex)["segment"]

    found: list[str] = []
    begun = ""
    for line in text.splitlines():
        for piece in segment(_LANGUAGE, line):
            part = f"{begun} {piece}".strip()
            begun = ""
            if not any(map(str.isalpha, part)):
                begun = part
            # After an abbreviation that the library does not know, as in "approx. 3 of 5 people".
            elif found and part[0].isdigit() and not _ITEM.match(part):
                found[-1] = f"{found[-1]} {part}"
            else:
                found.append(part)
    if begun:
        found[-1:] = [" ".join((*found[-1:], begun))]
    return [" ".join(sentence.split()) for sentence in found]


def divided(caption: Caption) -> Caption:
    """Returns the caption with three parts if it is a flat one of several sentences, and unchanged otherwise.

    >>> divided(Caption("A joyful face. The brows are raised. It is sunny.", (), ""))
    Caption(global_='A joyful face.', local=('The brows are raised.',),
            summary='A joyful face. The brows are raised. It is sunny.')
    """
    found = [] if caption.local or caption.summary else sentences(caption.global_)
    if len(found) < 2:
        return caption
    first, *others = found
    return Caption(first, tuple(each for each in others if area_of(each)), " ".join(found))
