"""Writes captions in which every local sentence follows from the action units, never from the name of the emotion."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emocap_shards.sample import Caption

from emocap_pretrain.captions.rendered import phrases, states
from emocap_pretrain.captions.rendered.face import NAMES, Actions, Face, band
from emocap_pretrain.captions.rendered.states import RegionStates, State

Units = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Remark:
    """One sentence about one region, and the action units that it names; none if the region is at rest."""

    region: str
    units: Units
    sentence: str


def caption(face: Face) -> Caption:
    """Returns the caption of `face`; the same face always gets the same words."""
    rng = random.Random(face.wording)
    local = tuple(remark.sentence for remark in _chosen(remarks(face, rng), face.actions, rng))
    return Caption(global_=_global(face, rng), local=local, summary=_summary(face, rng))


def remarks(face: Face, rng: random.Random) -> list[Remark]:
    """Returns every true remark, in the order of the regions.

    A region has none if it is neither at rest nor in one of its states.
    """
    found = [_mouth(face.actions, rng)]
    for name, region in states.REGIONS.items():
        remark = _remark(name, region, face.actions, rng)
        if remark is not None:
            found.append(remark)
    return found


def _chosen(found: list[Remark], acting: Actions, rng: random.Random) -> list[Remark]:
    """Chooses three to six remarks, in any order.

    Remarks that name the strongest actions come first, then those about regions at rest.
    """
    count = rng.randint(3, 6)
    shuffled = rng.sample(found, len(found))
    ranked = sorted(shuffled, key=lambda remark: max((acting[unit] for unit in remark.units), default=0.0))
    return rng.sample(ranked[-count:], min(count, len(ranked)))


def _remark(name: str, region: RegionStates, acting: Actions, rng: random.Random) -> Remark | None:
    for state in region.states:
        if _holds(state, acting):
            clause = _fill(rng.choice(state.phrases), state.needs, acting, rng)
            return Remark(name, state.needs, f"{clause}, {_codes(state.needs, acting, rng)}.")
    if acting.any(*region.movers):
        return None
    return Remark(name, (), f"{rng.choice(region.rest)}, {rng.choice(states.NOTHING)}.")


def _holds(state: State, acting: Actions) -> bool:
    return all(unit in acting for unit in state.needs) and band(acting[state.needs[0]]) in state.bands


def _mouth(acting: Actions, rng: random.Random) -> Remark:
    """Returns a remark about the one or two strongest movements of the lips, and about whether the mouth is open."""
    leads = sorted((unit for unit in states.LEADS if unit in acting), key=lambda unit: -acting[unit])[:2]
    if leads == [17] or rng.random() < 0.25:
        leads = leads[:1]
    opening = [unit for unit in (26, 25) if unit in acting][:1]
    units = (*leads, *opening)
    if not units:
        return Remark("mouth", (), f"{rng.choice(states.MOUTH_RESTS)}, {rng.choice(states.NOTHING)}.")
    clauses = [_lips(unit, acting, rng) for unit in units]
    if not opening and rng.random() < 0.6:
        clauses.append(rng.choice(states.SHUT))
    return Remark("mouth", units, f"{_capital(_while(clauses))}, {_codes(units, acting, rng)}.")


def _lips(unit: int, acting: Actions, rng: random.Random) -> str:
    table = states.LEADS if unit in states.LEADS else states.OPENINGS
    return _fill(rng.choice(table[unit]), (unit,), acting, rng)


def _fill(phrase: str, units: Units, acting: Actions, rng: random.Random) -> str:
    """Inserts adverbs: `{how}` for the first of `units`, `{also}` for the second."""
    how = _adverb(acting[units[0]], rng)
    return phrase.format(how=how, also=_adverb(acting[units[min(1, len(units) - 1)]], rng))


def _adverb(intensity: float, rng: random.Random) -> str:
    return rng.choice(phrases.ADVERBS[phrases.DEGREE[band(intensity)]])


def _codes(units: Units, acting: Actions, rng: random.Random) -> str:
    """Returns each unit with its band, all in one style."""
    style = rng.choice(_STYLES)
    opener = rng.choice(("", "with ", "showing "))
    return opener + _series([style(unit, band(acting[unit]), rng) for unit in units])


def _coded(unit: int, strength: str, rng: random.Random) -> str:
    return f"AU{unit} at {rng.choice(phrases.LEVELS[strength])} intensity"


def _named(unit: int, strength: str, rng: random.Random) -> str:
    return f"{NAMES[unit]} (AU{unit}) at {rng.choice(phrases.LEVELS[strength])} intensity"


def _described(unit: int, strength: str, rng: random.Random) -> str:
    return f"{_plain(unit, strength, rng)} (AU{unit})"


def _plain(unit: int, strength: str, rng: random.Random) -> str:
    return f"{rng.choice(phrases.ADJECTIVES[strength])} {rng.choice(phrases.DEEDS[unit])}"


_STYLES: tuple[Callable[[int, str, random.Random], str], ...] = (_coded, _named, _described, _plain)


def _global(face: Face, rng: random.Random) -> str:
    templates = phrases.NEUTRAL_GLOBALS if face.emotion == "neutral" else phrases.GLOBALS
    return rng.choice(templates).format(**_terms(face, rng))


def _summary(face: Face, rng: random.Random) -> str:
    cues = _cues(face.actions, rng)
    if face.emotion != "neutral":
        templates = phrases.SUMMARIES
    else:
        templates = phrases.NEUTRAL_SUMMARIES if cues else phrases.STILL_SUMMARIES
    return rng.choice(templates).format(cues=_series(cues), affect=_affect(face), **_terms(face, rng))


def _terms(face: Face, rng: random.Random) -> dict[str, str]:
    """Returns words for the emotion; a noun that repeats the name of the emotion is not used."""
    emotion = rng.choice(phrases.EMOTION_NOUNS[face.emotion])
    nouns = [noun for noun in phrases.SHADES[face.shade] if emotion not in noun]
    adjective = rng.choice(phrases.STRENGTH[degree(face.intensity)])
    return {"emotion": emotion, "noun": rng.choice(nouns), "adjective": adjective}


def degree(intensity: float) -> str:
    """Returns the degree of an emotion's `intensity` in [0, 1]: low, mid or high."""
    return "low" if intensity < 0.5 else "mid" if intensity < 0.75 else "high"


def _cues(acting: Actions, rng: random.Random) -> list[str]:
    """Returns at most five cues, the strongest first; actions that belong together form one cue."""
    left, found = set(acting), list[tuple[float, str]]()
    for units, words in phrases.CUES:
        if left.issuperset(units):
            left.difference_update(units)
            found.append((acting[units[0]], f"the {_fill(rng.choice(words), units, acting, rng)}"))
    return [cue for _, cue in sorted(found, key=lambda pair: -pair[0])[:5]]


def _affect(face: Face) -> str:
    pleasure = _rung(face.valence, phrases.PLEASURE)
    return f"a state {pleasure} and {_rung(face.arousal, phrases.ENERGY)}"


def _rung(value: float, ladder: Sequence[tuple[float, str]]) -> str:
    return next(words for least, words in ladder if value >= least)


def _series(parts: Sequence[str]) -> str:
    """Returns the parts as a list in words: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _while(clauses: Sequence[str]) -> str:
    """Returns clauses that happen together: "a", "a while b", "a, b while c"."""
    return " while ".join(part for part in (", ".join(clauses[:-1]), clauses[-1]) if part)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
