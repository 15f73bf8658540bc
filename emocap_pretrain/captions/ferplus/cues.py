"""Ranks of measurements -> what a region of the face visibly does, each with its strength."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

Ranks = Mapping[str, float]


class Region(StrEnum):
    """A part of the face that gets one sentence at most."""

    BROWS = "brows"
    EYES = "eyes"
    CHEEKS = "cheeks"
    FOLDS = "folds"
    LIP_CORNERS = "lip corners"
    LIPS = "lips"


class Kind(StrEnum):
    """A visible state. The comment names the action units of FACS that make it."""

    BROWS_RAISED = "brows raised"  # 1 + 2
    BROWS_OBLIQUE = "brows oblique"  # 1 + 4
    BROWS_LOWERED = "brows lowered"  # 4
    BROWS_KNIT = "brows knit"  # 4, drawn together
    EYES_WIDE = "eyes wide"  # 5
    EYES_NARROWED = "eyes narrowed"  # 7
    LIDS_LOWERED = "lids lowered"  # 41
    EYES_CLOSED = "eyes closed"  # 43
    CHEEKS_RAISED = "cheeks raised"  # 6
    FOLDS_DEEPENED = "folds deepened"  # 12, or 10
    UPPER_LIP_RAISED = "upper lip raised"  # 10
    CORNERS_UP = "corners up"  # 12
    CORNERS_DOWN = "corners down"  # 15
    MOUTH_OPEN = "mouth open"  # 25
    JAW_DROPPED = "jaw dropped"  # 26, 27 when strong
    LIPS_PRESSED = "lips pressed"  # 24
    LIPS_FUNNELED = "lips funneled"  # 18, 22
    CALM = "calm"


class Strength(StrEnum):
    """The distance of a cue from the usual."""

    MILD = "mild"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class Cue:
    """The action of one region."""

    region: Region
    kind: Kind
    strength: Strength


def find_cues(ranks: Ranks) -> tuple[Cue, ...]:
    """Returns at most one cue for each region, in the order of `Region`; a region between calm and clear has none.

    A rank of NaN meets no rule, so a region out of the picture has no cue either.
    """
    found = (rule(ranks) for rule in _RULES)
    return tuple(cue for cue in found if cue is not None)


def _band(rank: float, mild: float, strong: float) -> Strength | None:
    if rank >= strong:
        return Strength.STRONG
    return Strength.MILD if rank >= mild else None


def _first(region: Region, *choices: tuple[Kind, Strength | None], calm: bool) -> Cue | None:
    """The first strong choice, else the first mild one, else calm if nothing is near to a choice."""
    for wanted in (Strength.STRONG, Strength.MILD):
        for kind, strength in choices:
            if strength is wanted:
                return Cue(region, kind, wanted)
    return Cue(region, Kind.CALM, Strength.MILD) if calm else None


def _when(condition: bool, strength: Strength | None) -> Strength | None:
    return strength if condition else None


def _central(*ranks: float) -> bool:
    return all(0.35 <= rank <= 0.65 for rank in ranks)


def _quiet(ranks: Ranks) -> bool:
    """A closed mouth without a smile: only such a face may be called calm elsewhere."""
    return ranks["mouth_opening"] <= 0.55 and ranks["corner_lift"] <= 0.65


def _smile(ranks: Ranks) -> Strength | None:
    # A wide mouth tells a smile from a mouth whose lower lip has dropped; the more it is open, the wider it must be.
    wide = 0.55 + 0.6 * max(0.0, ranks["mouth_opening"] - 0.6)
    strength = _band(min(ranks["corner_lift"], ranks["corner_curve"] + 0.1), 0.67, 0.86)
    return _when(ranks["mouth_width"] >= wide, strength)


def _brows(ranks: Ranks) -> Cue | None:
    height = (ranks["brow_inner"] + ranks["brow_middle"] + ranks["brow_outer"]) / 3
    low = 1 - (ranks["brow_inner"] + ranks["brow_middle"]) / 2
    # Brows come near to the eyes of a laughing or a staring face too; there they have not moved.
    stern = _smile(ranks) is None and ranks["eye_aperture"] <= 0.75
    sorrow = _smile(ranks) is None and ranks["brow_inner"] >= 0.5
    near = ranks["brow_gap"] <= 0.35
    return _first(
        Region.BROWS,
        (Kind.BROWS_RAISED, _when(ranks["eye_aperture"] >= 0.35, _band(height, 0.87, 0.95))),
        (Kind.BROWS_OBLIQUE, _when(sorrow, _band(ranks["brow_slant"], 0.93, 0.97))),
        (Kind.BROWS_KNIT, _when(stern and near, _band(low, 0.84, 0.93))),
        (Kind.BROWS_LOWERED, _when(stern, _band(low, 0.86, 0.94))),
        calm=_central(height, low) and ranks["brow_gap"] >= 0.4 and _quiet(ranks),
    )


def _eyes(ranks: Ranks) -> Cue | None:
    aperture = ranks["eye_aperture"]
    narrow = _band(1 - aperture, 0.80, 0.90)
    # A lowered gaze narrows the eyes as a squint does; the rest of the face tells them apart.
    effort = _smile(ranks) is not None or ranks["mouth_opening"] >= 0.7 or ranks["brow_middle"] <= 0.3
    squint = effort and ranks["lower_lid_lift"] >= 0.6
    return _first(
        Region.EYES,
        (Kind.EYES_CLOSED, _band(1 - aperture, 0.97, 0.97)),
        (Kind.EYES_WIDE, _when(ranks["brow_middle"] >= 0.4, _band(aperture, 0.90, 0.96))),
        (Kind.EYES_NARROWED, _when(squint, narrow)),
        (Kind.LIDS_LOWERED, _when(not effort, narrow)),
        calm=_central(aperture) and _quiet(ranks),
    )


def _cheeks(ranks: Ranks) -> Cue | None:
    raised = _when(_smile(ranks) is Strength.STRONG, _band(1 - ranks["eye_aperture"], 0.55, 0.75))
    return _first(
        Region.CHEEKS,
        (Kind.CHEEKS_RAISED, raised),
        calm=_central(ranks["corner_lift"], ranks["eye_aperture"]) and _quiet(ranks),
    )


def _folds(ranks: Ranks) -> Cue | None:
    smile = _smile(ranks)
    raised = _when(ranks["mouth_opening"] >= 0.4, _band(1 - ranks["upper_lip_drop"], 0.92, 0.97))
    return _first(
        Region.FOLDS,
        (Kind.FOLDS_DEEPENED, _when(smile is not None, _band(ranks["nose_width"], 0.72, 0.88))),
        (Kind.UPPER_LIP_RAISED, _when(smile is None, raised)),
        calm=_central(ranks["nose_width"], ranks["upper_lip_drop"]) and _quiet(ranks),
    )


def _lip_corners(ranks: Ranks) -> Cue | None:
    shut = ranks["mouth_opening"] <= 0.45
    down = _when(shut and ranks["mouth_width"] >= 0.12, _band(1 - ranks["corner_curve"], 0.88, 0.95))
    return _first(
        Region.LIP_CORNERS,
        (Kind.CORNERS_UP, _smile(ranks)),
        (Kind.CORNERS_DOWN, down),
        calm=shut and 0.25 <= ranks["corner_curve"] <= 0.55,
    )


def _lips(ranks: Ranks) -> Cue | None:
    shut = ranks["mouth_opening"] <= 0.3
    narrow = _when(ranks["lip_thickness"] >= 0.5, _band(1 - ranks["mouth_width"], 0.96, 0.985))
    dropped = _when(ranks["jaw_drop"] >= 0.75, _band(ranks["mouth_opening"], 0.80, 0.90))
    return _first(
        Region.LIPS,
        (Kind.JAW_DROPPED, dropped),
        (Kind.MOUTH_OPEN, _band(ranks["mouth_opening"], 0.64, 0.83)),
        (Kind.LIPS_FUNNELED, narrow),
        (Kind.LIPS_PRESSED, _when(shut, _band(1 - ranks["lip_thickness"], 0.88, 0.95))),
        calm=shut and _central(ranks["lip_thickness"]),
    )


_RULES: tuple[Callable[[Ranks], Cue | None], ...] = (_brows, _eyes, _cheeks, _folds, _lip_corners, _lips)
