"""Cues -> local sentences of the form "<visible state>, <action unit and intensity>", and short phrases.

The choice among wordings depends on the sample's key alone, so that packing twice gives equal text.
"""

import hashlib
from collections.abc import Mapping, Sequence

from emocap_pretrain.captions.ferplus.cues import Cue, Kind, Region, Strength

_MILD, _STRONG = Strength.MILD, Strength.STRONG

_STATES: Mapping[tuple[Kind, Strength], tuple[str, ...]] = {
    (Kind.BROWS_RAISED, _MILD): ("The eyebrows are slightly raised", "The eyebrows sit a little high above the eyes"),
    (Kind.BROWS_RAISED, _STRONG): (
        "The eyebrows are raised high",
        "The eyebrows are lifted well above the eyes",
        "Both brows arch upwards",
    ),
    (Kind.BROWS_OBLIQUE, _MILD): (
        "The inner ends of the eyebrows are a little higher than usual",
        "The eyebrows slant slightly up towards the middle",
    ),
    (Kind.BROWS_OBLIQUE, _STRONG): (
        "The inner ends of the eyebrows are drawn up",
        "The eyebrows slope up towards the middle of the forehead",
    ),
    (Kind.BROWS_LOWERED, _MILD): ("The eyebrows are slightly lowered", "The eyebrows sit low above the eyes"),
    (Kind.BROWS_LOWERED, _STRONG): (
        "The eyebrows are pulled down close to the eyes",
        "The eyebrows are heavily lowered",
    ),
    (Kind.BROWS_KNIT, _MILD): (
        "The eyebrows are a little lowered and drawn together",
        "The brows draw slightly down and inwards",
    ),
    (Kind.BROWS_KNIT, _STRONG): (
        "The eyebrows are pulled down and together",
        "The brows are tightly knit above the nose",
    ),
    (Kind.EYES_WIDE, _MILD): ("The eyes are opened rather wide", "The eyes are a little wider than usual"),
    (Kind.EYES_WIDE, _STRONG): ("The eyes are wide open", "The eyes are opened very wide"),
    (Kind.EYES_NARROWED, _MILD): ("The eyes are somewhat narrowed", "The opening of the eyes is rather small"),
    (Kind.EYES_NARROWED, _STRONG): ("The eyes are narrowed to slits", "Only a narrow slit of the eyes is open"),
    (Kind.LIDS_LOWERED, _MILD): ("The upper eyelids hang rather low", "The eyelids are partly lowered"),
    (Kind.LIDS_LOWERED, _STRONG): ("The upper eyelids are lowered far", "The eyelids are cast down"),
    (Kind.EYES_CLOSED, _STRONG): ("The eyes are closed or nearly so", "The eyelids are shut or almost shut"),
    (Kind.CHEEKS_RAISED, _MILD): ("The cheeks are lifted a little", "The cheeks rise towards the eyes"),
    (Kind.CHEEKS_RAISED, _STRONG): (
        "The cheeks are raised and push up the lower lids",
        "The cheeks bulge up below the narrowed eyes",
    ),
    (Kind.FOLDS_DEEPENED, _MILD): (
        "The nasolabial folds are slightly deepened",
        "Folds run from the nose to the lip corners",
    ),
    (Kind.FOLDS_DEEPENED, _STRONG): (
        "The nasolabial folds are drawn wide and deep",
        "The nasolabial folds stand out around a widened nose",
    ),
    (Kind.UPPER_LIP_RAISED, _MILD): (
        "The upper lip is raised a little towards the nose",
        "The upper lip is slightly lifted",
    ),
    (Kind.UPPER_LIP_RAISED, _STRONG): (
        "The upper lip is drawn up close to the nose",
        "The upper lip is lifted high",
    ),
    (Kind.CORNERS_UP, _MILD): ("The corners of the mouth are slightly raised", "The lip corners curve up a little"),
    (Kind.CORNERS_UP, _STRONG): (
        "The corners of the mouth are pulled up and back",
        "The lip corners are drawn far up",
    ),
    (Kind.CORNERS_DOWN, _MILD): ("The corners of the mouth sink slightly", "The lip corners point a little downwards"),
    (Kind.CORNERS_DOWN, _STRONG): (
        "The corners of the mouth are turned down",
        "The lip corners are pulled downwards",
    ),
    (Kind.MOUTH_OPEN, _MILD): ("The lips are parted", "The mouth is partly open"),
    (Kind.MOUTH_OPEN, _STRONG): ("The mouth is wide open", "The lips are far apart"),
    (Kind.JAW_DROPPED, _MILD): ("The mouth is open and the jaw lowered", "The jaw is dropped and the lips are apart"),
    (Kind.JAW_DROPPED, _STRONG): ("The jaw is dropped far and the mouth gapes", "The mouth is stretched wide open"),
    (Kind.LIPS_PRESSED, _MILD): ("The closed lips look thin", "The lips are lightly pressed together"),
    (Kind.LIPS_PRESSED, _STRONG): ("The lips are pressed thin", "The lips are pressed together to a narrow line"),
    (Kind.LIPS_FUNNELED, _MILD): ("The mouth is drawn rather narrow", "The lips are gathered to a small mouth"),
    (Kind.LIPS_FUNNELED, _STRONG): ("The mouth is small and rounded", "The lips are drawn together and forward"),
}

_CALM: Mapping[Region, tuple[str, ...]] = {
    Region.BROWS: (
        "The eyebrows rest at their usual height, not raised",
        "The eyebrows are neither raised nor lowered, at rest",
    ),
    Region.EYES: ("The eyes are open as usual, no lid action", "The eyes are normally open, lids at rest"),
    Region.CHEEKS: ("The cheeks are relaxed, no cheek raiser", "The cheeks are not lifted, no cheek raiser"),
    Region.FOLDS: ("The upper lip and the nose are at rest, no action", "The upper lip is relaxed, not raised"),
    Region.LIP_CORNERS: ("The mouth is held straight, lip corners at rest", "The lip corners are level, no action"),
    Region.LIPS: ("The lips are closed and relaxed, no lip action", "The lips rest on each other, no action"),
}

_UNITS: Mapping[Kind, tuple[str, str]] = {
    Kind.BROWS_RAISED: ("inner and outer brow raiser", "AU1+2"),
    Kind.BROWS_OBLIQUE: ("inner brow raiser", "AU1"),
    Kind.BROWS_LOWERED: ("brow lowerer", "AU4"),
    Kind.BROWS_KNIT: ("brow lowerer", "AU4"),
    Kind.EYES_WIDE: ("upper lid raiser", "AU5"),
    Kind.EYES_NARROWED: ("lid tightener", "AU7"),
    Kind.LIDS_LOWERED: ("lid droop", "AU41"),
    Kind.CHEEKS_RAISED: ("cheek raiser", "AU6"),
    Kind.FOLDS_DEEPENED: ("nasolabial deepening", "AU12"),
    Kind.UPPER_LIP_RAISED: ("upper lip raiser", "AU10"),
    Kind.CORNERS_UP: ("lip corner puller", "AU12"),
    Kind.CORNERS_DOWN: ("lip corner depressor", "AU15"),
    Kind.MOUTH_OPEN: ("lips part", "AU25"),
    Kind.JAW_DROPPED: ("jaw drop", "AU26"),
    Kind.LIPS_PRESSED: ("lip pressor", "AU24"),
    Kind.LIPS_FUNNELED: ("lip pucker", "AU18"),
}

_INTENSITY: Mapping[Strength, tuple[str, ...]] = {
    _MILD: ("mild {name}", "slight {name}", "{name} ({code}) at low intensity", "faint {code}", "{name}, mild"),
    _STRONG: (
        "strong {name}",
        "marked {name}",
        "{name} ({code}) at high intensity",
        "pronounced {code}",
        "{name}, strong",
    ),
}

_PHRASES: Mapping[Kind, tuple[str, str]] = {
    Kind.BROWS_RAISED: ("slightly raised eyebrows", "highly raised eyebrows"),
    Kind.BROWS_OBLIQUE: ("slightly slanting eyebrows", "eyebrows drawn up in the middle"),
    Kind.BROWS_LOWERED: ("somewhat low eyebrows", "heavily lowered eyebrows"),
    Kind.BROWS_KNIT: ("slightly knit eyebrows", "knit and lowered eyebrows"),
    Kind.EYES_WIDE: ("rather wide eyes", "wide-open eyes"),
    Kind.EYES_NARROWED: ("somewhat narrowed eyes", "strongly narrowed eyes"),
    Kind.LIDS_LOWERED: ("lowered eyelids", "eyelids cast down"),
    Kind.EYES_CLOSED: ("closed eyes", "closed eyes"),
    Kind.CHEEKS_RAISED: ("slightly lifted cheeks", "raised cheeks"),
    Kind.FOLDS_DEEPENED: ("visible nasolabial folds", "deepened nasolabial folds"),
    Kind.UPPER_LIP_RAISED: ("a slightly raised upper lip", "a raised upper lip"),
    Kind.CORNERS_UP: ("slightly raised lip corners", "lip corners pulled up and back"),
    Kind.CORNERS_DOWN: ("slightly sinking lip corners", "lip corners turned down"),
    Kind.MOUTH_OPEN: ("parted lips", "a wide-open mouth"),
    Kind.JAW_DROPPED: ("a lowered jaw", "a dropped jaw"),
    Kind.LIPS_PRESSED: ("thin, closed lips", "tightly pressed lips"),
    Kind.LIPS_FUNNELED: ("a narrow mouth", "a small, rounded mouth"),
}

# Of the calm regions of a face, about one in this many is worth a sentence.
_CALM_ONE_IN = 2


def pick(options: Sequence[str], *key: str) -> str:
    """One of the options, the same for the same key on every machine."""
    return options[_number(*key) % len(options)]


def local_sentences(cues: Sequence[Cue], key: str) -> tuple[str, ...]:
    """A sentence for every region that does something, and for some of those that rest."""
    spoken = (cue for cue in cues if cue.kind is not Kind.CALM or _number(key, cue.region, "calm") % _CALM_ONE_IN == 0)
    return tuple(_sentence(cue, key) + "." for cue in spoken)


def phrases(cues: Sequence[Cue]) -> tuple[str, ...]:
    """Noun phrases of the cues that are not calm, the strong ones first."""
    active = [cue for cue in cues if cue.kind is not Kind.CALM]
    active.sort(key=lambda cue: cue.strength is not _STRONG)
    return tuple(_PHRASES[cue.kind][cue.strength is _STRONG] for cue in active)


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _sentence(cue: Cue, key: str) -> str:
    if cue.kind is Kind.CALM:
        return pick(_CALM[cue.region], key, cue.region)
    state = pick(_STATES[cue.kind, cue.strength], key, cue.region)
    if cue.kind is Kind.EYES_CLOSED:
        return f"{state}, eye closure (AU43)"
    name, code = _UNITS[cue.kind]
    return f"{state}, " + pick(_INTENSITY[cue.strength], key, cue.region, "unit").format(name=name, code=code)


def _number(*key: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest())
