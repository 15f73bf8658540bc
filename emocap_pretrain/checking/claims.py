"""Finds what a sentence claims about the movements of a face.

The sentence is free English. It is normalized and divided into items: parts of the face, actions, words of degree, side
and negation, and the words between them (movements.toml). Then each action is attached to a part of the face:

1. to the part that follows as its noun or object ("a raised left eyebrow", "furrowing her brow"), or
2. to the part that follows after "of" or "in" ("a narrowing of the eyes"), or
3. to the part that precedes as its subject ("the brows are raised and drawn together").

A pair of a part and an action that has no entry in movements.toml is no claim. Words such as "smile" and codes such as
AU12 are claims by themselves. What follows "as if", "about to" and the like is not claimed. The rules are heuristic:
they were chosen so that an expression that they do not understand gives no claim rather than a wrong one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

from emocap_pretrain.captions.grammar.action_units import Degree
from emocap_pretrain.checking.items import SentenceItem, find_items, item_at, normalized
from emocap_pretrain.checking.movements import CODES, MOVEMENTS, SAID_BY


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """States that a movement of the face is visible, or that it is not.

    Attributes:
        movement: Name of the movement (a key of `MOVEMENTS`).
        side: "left" or "right" from the subject's point of view, "one" for an unnamed one of them, "both", or "" if the
            sentence does not say.
        degree: Stated intensity, or None.
        negated: Whether the sentence says that the movement is not visible.
        words: The words that make the claim, in lower case.
    """

    movement: str
    side: str = ""
    degree: Degree | None = None
    negated: bool = False
    words: str = ""

    @property
    def region(self) -> str:
        return MOVEMENTS[self.movement].region

    @property
    def units(self) -> tuple[int, ...]:
        """The FACS numbers of the action units that may cause the movement."""
        return MOVEMENTS[self.movement].units


@lru_cache(maxsize=1 << 16)
def find_claims(sentence: str) -> tuple[Claim, ...]:
    """Returns the claims of a sentence about movements of the face, in the order of their words.

    >>> [(claim.movement, claim.side) for claim in find_claims("A raised left eyebrow, without a smile.")]
    [('brows_raised', 'left'), ('lip_corners_raised', '')]
    """
    items = find_items(normalized(sentence))
    silent, negated = _hypothetical(items), _negated(items)
    found: dict[tuple[str, str, bool], Claim] = {}
    for at, claim in _raw_claims(items):
        if at in silent:
            continue
        softened = _softened(items, at)
        claimed = replace(
            claim, negated=at in negated and not softened, degree=Degree.LOW if softened else claim.degree
        )
        key = (claimed.movement, claimed.side, claimed.negated)
        earlier = found.get(key)
        if earlier is None or earlier.degree is None:
            found[key] = claimed if earlier is None else replace(earlier, degree=claimed.degree)
    return tuple(found.values())


_LETTER_DEGREES = {"a": Degree.LOW, "b": Degree.LOW, "c": Degree.MID, "d": Degree.HIGH, "e": Degree.HIGH}
"""The degree of each letter of intensity of FACS, as in AU12B."""


def _raw_claims(items: Sequence[SentenceItem]) -> Iterator[tuple[int, Claim]]:
    """Yields the index of the item that makes each claim, and the claim before negation is considered."""
    for at, item in enumerate(items):
        if item.is_a("code"):
            unit, letters = item.names["code"]
            if movement := CODES.get(int(unit)):
                side = "left" if "l" in letters else "right" if "r" in letters else ""
                stated = next((_LETTER_DEGREES[each] for each in letters if each in _LETTER_DEGREES), None)
                degree = stated or _degree(items, at)
                yield at, Claim(movement=movement, side=side, degree=degree, words=f"au{unit}{letters}")
        elif item.is_a("direct"):
            side = _side(items, at, at)
            yield at, Claim(movement=item.names["direct"][0], side=side, degree=_degree(items, at), words=item.text)
        elif item.actions:
            for part in _parts_of(items, at):
                words = f"{items[part].text} {item.text}" if part < at else f"{item.text} {items[part].text}"
                for movement in islice(_movements(items[part], item), 1):
                    yield (
                        at,
                        Claim(movement=movement, side=_side(items, part, at), degree=_degree(items, at), words=words),
                    )


def _movements(part: SentenceItem, action: SentenceItem) -> Iterator[str]:
    for name in action.actions:
        if movement := SAID_BY.get((part.part or "", name)):
            yield movement


_BETWEEN = ("light", "adverb", "degree", "side")  # What may lie between an attribute and its noun.
_LEVEL_NOUNS = frozenset({"intensity", "level", "strength"})
_UNKNOWN_BETWEEN = 2  # So many unknown words may lie between a verb or attribute and its part ("a sceptical eyebrow").


def _parts_of(items: Sequence[SentenceItem], at: int) -> Sequence[int]:
    """Returns the indices of the parts of the face to which an action is attached."""
    item = items[at]
    ahead = items[at + 1] if at + 1 < len(items) else None
    if ahead is not None and item.is_a("degree") and (ahead.is_a("direct") or ahead.text in _LEVEL_NOUNS):
        return ()  # "a wide smile", "at low intensity"
    following, has_object = _following(items, at)
    if following is not None:
        return (following,)
    if has_object and item.is_a("verb") and not _passive(items, at):
        return ()  # "raises a question"
    noun = not re.search(r"(ed|wn|ut|pt)$", item.text)
    after = _after_preposition(items, at)
    if noun and after is not None and items[at + 1].text in {"of", "in", "to"} and _fits(items, after, at):
        return (after,)
    before = _preceding(items, at)
    if not before and after is not None and _fits(items, after, at):
        return (after,)
    return before


def _fits(items: Sequence[SentenceItem], part: int, action: int) -> bool:
    return next(_movements(items[part], items[action]), None) is not None


def _following(items: Sequence[SentenceItem], at: int) -> tuple[int | None, bool]:
    """Returns the part that follows an action as its noun or object, and whether there is another object."""
    unknown, article, crossed = 0, False, False
    for place, item in enumerate(items[at + 1 :], at + 1):
        if item.part:
            return place, False
        if item.is_a("join", "comma"):
            if not _joins_attributes(items, place):
                break
            crossed = True
        elif not (item.actions or item.is_a(*_BETWEEN, "word")) or (item.is_a("light") and crossed):
            break
        article = article or item.is_a("light")
        unknown += item.is_a("word")
        if unknown > _UNKNOWN_BETWEEN:
            break
    return None, article or unknown > 0


def _joins_attributes(items: Sequence[SentenceItem], place: int) -> bool:
    """Returns whether another attribute follows a comma or "and", as in "raised and slightly furrowed brows"."""
    ahead = next((each for each in items[place + 1 :] if not each.is_a("degree", "adverb")), None)
    return ahead is not None and bool(ahead.actions)


def _passive(items: Sequence[SentenceItem], at: int) -> bool:
    """Returns whether the action is a participle whose subject precedes it, as in "eyebrows raised in a question"."""
    if not re.search(r"(ed|en|t|wn)$", items[at].text):
        return False
    before = next((each for each in reversed(items[:at]) if not each.is_a("adverb", "degree", "negation")), None)
    return before is not None and (before.part is not None or before.is_a("copula", "join") or bool(before.actions))


def _after_preposition(items: Sequence[SentenceItem], at: int) -> int | None:
    """Returns the part after a preposition that follows an action, as in "a furrow appears between the brows"."""
    governed = False
    for place in range(at + 1, min(at + 7, len(items))):
        item = items[place]
        if governed and item.part:
            return place
        governed = governed or item.is_a("preposition")
        if not item.is_a("preposition", *_BETWEEN, *(() if governed else ("copula",)), "word"):
            return None
    return None


def _preceding(items: Sequence[SentenceItem], at: int) -> Sequence[int]:
    """Returns the subject of an action: the nearest part before it without a preposition, and what is joined to it.

    A part after a preposition is the subject only if it is the only one that fits.
    """
    governed: list[int] = []
    for place in range(at - 1, -1, -1):
        item = items[place]
        if not item.part:
            continue
        if _governed(items, place):
            governed.append(place)
        elif _fits(items, place, at):
            return _joined(items, place, at)
        else:
            # The subject itself does not fit, so nothing before it does, unless it is one of a list of subjects.
            joined = [each for each in _joined(items, place, at) if _fits(items, each, at)]
            return joined or [each for each in governed if _fits(items, each, at)][:1]
    return [each for each in governed if _fits(items, each, at)][:1]


def _governed(items: Sequence[SentenceItem], place: int) -> bool:
    for item in reversed(items[:place]):
        if item.is_a("preposition"):
            return True
        if not (item.actions or item.is_a(*_BETWEEN)):
            return False
    return False


def _joined(items: Sequence[SentenceItem], place: int, at: int) -> Sequence[int]:
    """Returns the part at `place`, and before it those that are joined to it by commas and "and"."""
    found = [place]
    for before in range(place - 1, -1, -1):
        item = items[before]
        if item.part:
            if _fits(items, before, at):
                found.insert(0, before)
        elif not item.is_a("light", "comma", "join", "side"):
            break
    return found


def _degree(items: Sequence[SentenceItem], at: int) -> Degree | None:
    """Returns the degree that is stated directly before or after an action, in it, or as "at strong intensity"."""
    for item in reversed(items[max(0, at - 4) : at]):
        if item.is_a("degree"):
            return Degree(item.names["degree"][0])
        if not item.is_a("adverb", "side", "light"):
            break
    for word in items[at].text.split()[:-1] if items[at].actions else ():
        inner = item_at(word, 0)
        if inner.is_a("degree"):
            return Degree(inner.names["degree"][0])
    for place, item in enumerate(items[at + 1 : at + 6], at + 1):
        level = item.is_a("degree")
        if level and (place == at + 1 or (place + 1 < len(items) and items[place + 1].text in _LEVEL_NOUNS)):
            return None if _belongs_ahead(items, place) else Degree(item.names["degree"][0])
        if not (level or item.is_a("end", "comma", "code", "adverb", "light") or item.text == "at"):
            break
    return None


def _belongs_ahead(items: Sequence[SentenceItem], place: int) -> bool:
    """Returns whether a word of degree belongs to what follows: "raised slightly parted" does not occur, lists do."""
    ahead = items[place + 1] if place + 1 < len(items) else None
    return ahead is not None and (bool(ahead.actions) or ahead.part is not None)


_OTHER_SIDE = {"viewer_left": "right", "viewer_right": "left"}


def _side(items: Sequence[SentenceItem], part: int, at: int) -> str:
    """Returns the side that is stated for a part whose action is the item `at`; "" if none is."""
    inside = re.findall(r"\b(left|right|both|one|each)\b", items[part].text)
    if inside:
        return "both" if len(set(inside)) > 1 or inside[0] == "each" else inside[0]
    for item in reversed(items[max(0, part - 5) : part]):
        if item.is_a("side"):
            return _named(item)
        if not (item.actions or item.is_a("light", "degree", "adverb", "word")):
            break
    return _side_after(items, part) or _side_after(items, at) or _side_first(items)


def _side_after(items: Sequence[SentenceItem], place: int) -> str:
    """Returns a side such as that of "on the left side", which follows the item directly."""
    after = items[place + 1 : place + 5]
    if after and (after[0].text in {"on", "to", "at"} or after[0].is_a("copula")):
        for item in after[1:]:
            if item.is_a("side") and (after[0].is_a("preposition") or _named(item) == "one"):
                return _named(item)
            if not item.is_a("light", "adverb"):
                break
    return ""


def _side_first(items: Sequence[SentenceItem]) -> str:
    """Returns the side with which a sentence begins, as in "on the left side, the eyebrow is raised"."""
    if not items or items[0].text not in {"on", "to", "at"}:
        return ""
    comma = next((place for place, item in enumerate(items) if item.is_a("comma")), 0)
    named = [_named(item) for item in items[:comma] if item.is_a("side")]
    return named[0] if named and not any(item.part for item in items[:comma]) else ""


def _named(item: SentenceItem) -> str:
    name = item.names["side"][0]
    return _OTHER_SIDE.get(name, name)


def _ends_clause(item: SentenceItem) -> bool:
    return item.is_a("end", "stop")


def _hypothetical(items: Sequence[SentenceItem]) -> set[int]:
    """Returns the indices of the items that are not claimed: those after "as if" and the like, in the same clause."""
    found = set[int]()
    inside = False
    for at, item in enumerate(items):
        if item.is_a("hypothetical"):
            inside = True
        elif _ends_clause(item) or item.is_a("comma"):
            inside = False
        if inside:
            found.add(at)
    return found


def _negated(items: Sequence[SentenceItem]) -> set[int]:
    """Returns the indices of the items in the scope of a negation."""
    found = set[int]()
    for at, item in enumerate(items):
        kinds = item.names.get("negation", ())
        if "void" in kinds:
            continue
        scope = set(_scope(items, at)) if "before" in kinds else set[int]()
        found |= scope
        if kinds and not scope:  # "is not visible", or "is not" at the end of a clause
            for place in range(at - 1, -1, -1):
                if _ends_clause(items[place]) or items[place].is_a("comma"):
                    break
                found.add(place)
    return found


def _scope(items: Sequence[SentenceItem], at: int) -> Iterator[int]:
    """Yields the indices that a negation negates: up to the end of the clause, and through a list with "or"."""
    end = next((place for place in range(at + 1, len(items)) if _ends_clause(items[place])), len(items))
    listed = any(item.text in {"or", "nor"} for item in items[at + 1 : end])
    for place in range(at + 1, end):
        item = items[place]
        ahead = items[place + 1] if place + 1 < end else None
        if (item.is_a("comma") and not listed) or item.text.startswith(("no ", "without ")):
            return
        if item.text == "and" and ahead is not None and ahead.is_a("light", "copula", "side", "part", "negation"):
            return
        yield place


def _softened(items: Sequence[SentenceItem], at: int) -> bool:
    """Returns whether the claim is one like "not fully closed": a weak movement rather than none."""
    for place in range(at - 1, max(-1, at - 3), -1):
        if items[place].names.get("degree", ("",))[0] == "high" and items[place].is_a("degree"):
            return place > 0 and items[place - 1].text == "not"
    return False


def claim_values(sentence: str) -> tuple[tuple[str, str, bool], ...]:
    """Returns the movement, the side and the negation of each claim, by which captions of one image are compared."""
    return tuple((claim.movement, claim.side, claim.negated) for claim in find_claims(sentence))
