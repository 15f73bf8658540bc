"""Finds the cues of a face: the visible states of its regions, such as raised eyebrows or closed lips.

The input is, for each measurement of the face, its rank in [0, 1] among the measurements of many faces. A cue says that
a region is at rest, or that it shows a slight or a strong movement.

A rank is the fraction of the faces of a population with a smaller value: `rank >= 0.87` holds for about 13 of 100
faces. FER+ compares every face with those of its training split.

If it is not clear from the ranks of a region whether it is at rest or moves, the region gets no cue. Several
rules also read measurements of other regions, because a movement there can look like a movement of the region itself.
For example, the eyebrows of a smiling face are close to the eyes, although they have not moved.
tests/emocap_pretrain/captions/face_mesh/test_cues.py tests rules on artificial faces that show one or two movements.
"""

from collections.abc import Callable, Mapping

from emocap_pretrain.captions.grammar.action_units import Band
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Look, Region, RegionState

Ranks = Mapping[str, float]


def find_cues(ranks: Ranks) -> tuple[RegionState, ...]:
    """Returns the state of each region that is clearly at rest or clearly active. The other regions are left out.

    A region outside of the picture is also left out: its ranks are NaN, and no rule accepts NaN.
    """
    found = (rule(ranks) for rule in _RULES)
    return tuple(state for state in found if state is not None)


def _band(rank: float, slight: float, strong: float) -> Band | None:
    if rank >= strong:
        return Band.STRONG
    return Band.SLIGHT if rank >= slight else None


def _first(region: Region, *choices: tuple[Look, Band | None], at_rest: bool) -> RegionState | None:
    """Returns the state of a region: the first of the `choices` with a strong band, else the first with a slight band.

    A choice is a look (a visible state of the region) and its band of intensity. The band is None if the face does not
    have the look. If all bands are None, the result is the state at rest if `at_rest` is True, otherwise None.
    """
    for wanted in (Band.STRONG, Band.SLIGHT):
        for look, band in choices:
            if band is wanted:
                return RegionState(region, look, (wanted,) * len(look.units))
    return RegionState(region, AT_REST[region]) if at_rest else None


def _when(condition: bool, band: Band | None) -> Band | None:
    return band if condition else None


# The middle 30 % of all faces. A comparison with NaN is false, so a region that was not measured is not at rest.
def _central(*ranks: float) -> bool:
    return all(0.35 <= rank <= 0.65 for rank in ranks)


def _quiet(ranks: Ranks) -> bool:
    """Returns whether the mouth is neither clearly open nor smiling.

    Only then are the eyebrows, the eyes, the cheeks and the nose described as at rest.
    """
    return ranks["mouth_opening"] <= 0.55 and ranks["corner_lift"] <= 0.65


def _smile(ranks: Ranks) -> Band | None:
    # The width of the mouth distinguishes a smile from a lowered lower lip; a mouth that is more open must be wider.
    wide = 0.55 + 0.6 * max(0.0, ranks["mouth_opening"] - 0.6)
    band = _band(min(ranks["corner_lift"], ranks["corner_curve"] + 0.1), 0.67, 0.86)
    return _when(ranks["mouth_width"] >= wide, band)


def _eyebrows(ranks: Ranks) -> RegionState | None:
    height = (ranks["brow_inner"] + ranks["brow_middle"] + ranks["brow_outer"]) / 3
    low = 1 - (ranks["brow_inner"] + ranks["brow_middle"]) / 2
    # The eyebrows of a smiling or a staring face are close to the eyes too, although they have not moved.
    stern = _smile(ranks) is None and ranks["eye_aperture"] <= 0.75
    sorrow = _smile(ranks) is None and ranks["brow_inner"] >= 0.5
    near = ranks["brow_gap"] <= 0.35
    return _first(
        Region.EYEBROWS,
        (LOOKS["brows_raised"], _when(ranks["eye_aperture"] >= 0.35, _band(height, 0.87, 0.95))),
        (LOOKS["inner_brows_raised"], _when(sorrow, _band(ranks["brow_slant"], 0.93, 0.97))),
        (LOOKS["brows_drawn_together"], _when(stern and near, _band(low, 0.84, 0.93))),
        (LOOKS["brows_lowered"], _when(stern, _band(low, 0.86, 0.94))),
        at_rest=_central(height, low) and ranks["brow_gap"] >= 0.4 and _quiet(ranks),
    )


def _eyes(ranks: Ranks) -> RegionState | None:
    aperture = ranks["eye_aperture"]
    narrow = _band(1 - aperture, 0.80, 0.90)
    # A lowered gaze narrows the eyes as a squint does; the rest of the face distinguishes the two.
    effort = _smile(ranks) is not None or ranks["mouth_opening"] >= 0.7 or ranks["brow_middle"] <= 0.3
    squint = effort and ranks["lower_lid_lift"] >= 0.6
    return _first(
        Region.EYES,
        (LOOKS["eyes_closed_or_nearly"], _band(1 - aperture, 0.97, 0.97)),  # With equal bounds it is always strong.
        (LOOKS["eyes_widened"], _when(ranks["brow_middle"] >= 0.4, _band(aperture, 0.90, 0.96))),
        (LOOKS["lids_tightened"], _when(squint, narrow)),
        (LOOKS["lids_lowered"], _when(not effort, narrow)),
        at_rest=_central(aperture) and _quiet(ranks),
    )


def _cheeks(ranks: Ranks) -> RegionState | None:
    raised = _when(_smile(ranks) is Band.STRONG, _band(1 - ranks["eye_aperture"], 0.55, 0.75))
    return _first(
        Region.CHEEKS,
        (LOOKS["cheeks_raised"], raised),
        at_rest=_central(ranks["corner_lift"], ranks["eye_aperture"]) and _quiet(ranks),
    )


def _nose(ranks: Ranks) -> RegionState | None:
    smile = _smile(ranks)
    raised = _when(ranks["mouth_opening"] >= 0.4, _band(1 - ranks["upper_lip_drop"], 0.92, 0.97))
    return _first(
        Region.NOSE,
        (LOOKS["folds_deepened_by_smile"], _when(smile is not None, _band(ranks["nose_width"], 0.72, 0.88))),
        (LOOKS["upper_lip_raised"], _when(smile is None, raised)),
        at_rest=_central(ranks["nose_width"], ranks["upper_lip_drop"]) and _quiet(ranks),
    )


def _lip_corners(ranks: Ranks) -> RegionState | None:
    shut = ranks["mouth_opening"] <= 0.45
    down = _when(shut and ranks["mouth_width"] >= 0.12, _band(1 - ranks["corner_curve"], 0.88, 0.95))
    return _first(
        Region.LIP_CORNERS,
        (LOOKS["lip_corners_raised"], _smile(ranks)),
        (LOOKS["lip_corners_lowered"], down),
        at_rest=shut and 0.25 <= ranks["corner_curve"] <= 0.55,
    )


def _lips(ranks: Ranks) -> RegionState | None:
    shut = ranks["mouth_opening"] <= 0.3
    narrow = _when(ranks["lip_thickness"] >= 0.5, _band(1 - ranks["mouth_width"], 0.96, 0.985))
    dropped = _when(ranks["jaw_drop"] >= 0.75, _band(ranks["mouth_opening"], 0.80, 0.90))
    return _first(
        Region.LIPS,
        (LOOKS["jaw_dropped"], dropped),
        (LOOKS["lips_parted"], _band(ranks["mouth_opening"], 0.64, 0.83)),
        (LOOKS["lips_puckered"], narrow),
        (LOOKS["lips_pressed"], _when(shut, _band(1 - ranks["lip_thickness"], 0.88, 0.95))),
        at_rest=shut and _central(ranks["lip_thickness"]),
    )


_RULES: tuple[Callable[[Ranks], RegionState | None], ...] = (_eyebrows, _eyes, _cheeks, _nose, _lip_corners, _lips)
