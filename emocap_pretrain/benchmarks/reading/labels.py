"""Turns what the files of a copy say about an item into the labels of the item."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from emocap_pretrain.benchmarks.card import (
    CaptionTarget,
    ClassTarget,
    NumbersTarget,
    QuestionTarget,
    Target,
    UnitsTarget,
)
from emocap_pretrain.benchmarks.item import Item, Media, Question
from emocap_pretrain.benchmarks.layouts import VoteRule
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.errors import ConfigError

Value = str | tuple[str, ...]
"""The content of a cell, or of a list of a record."""

_WHOLE = re.compile(r"[+-]?\d+(\.0*)?([eE][+-]?\d{1,2})?")
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
_BETWEEN_UNITS = re.compile(r"[\s,;]+")
_UNIT = re.compile(r"(?:AU)?0*([1-9]\d?)", re.IGNORECASE)


def plain(code: str) -> str:
    """Returns a code in the form in which codes are compared.

    >>> [plain(code) for code in (" 3.0000000e+00", "07", "Sadly_Fearful", "sadly fearful")]
    ['3', '7', 'sadly fearful', 'sadly fearful']
    """
    text = code.strip()
    if _WHOLE.fullmatch(text) and (number := float(text)).is_integer():
        return str(int(number))
    return _BETWEEN_WORDS.sub(" ", text.casefold()).strip()


@dataclass(frozen=True, slots=True)
class Labels:
    """Holds the labels of one item. The fields are those of `Item`."""

    class_name: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[int, bool] = field(default_factory=dict)
    caption: str | None = None
    question: Question | None = None

    def item(self, key: str, media: Media, group: str | None = None) -> Item:
        """Returns the item with these labels."""
        return Item(
            key,
            media,
            class_name=self.class_name,
            numbers=self.numbers,
            units=self.units,
            caption=self.caption,
            question=self.question,
            group=group,
        )


class Codes:
    """Knows the class of each code of a layout, and the codes that are left out."""

    def __init__(self, codes: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        """Raises a `ConfigError` if equal codes have different classes, or if a code has a class and is left out."""
        self._classes = _by_plain_code(codes)
        self._left_out = _by_plain_code(left_out)
        if both := sorted(set(self._classes) & set(self._left_out)):
            raise ConfigError(f"The code {both[0]!r} is both the code of a class and left out.")

    def class_of(self, code: str, place: str) -> str | Problem:
        """Returns the name of the class of a code, or a problem if the code is unknown or left out.

        Args:
            code: The text in the file of labels. Case and blanks do not matter (`plain`).
            place: The file and line, for the problem.
        """
        form = plain(code)
        if form in self._classes:
            return self._classes[form]
        return self.left_out(code, place) or Problem("unknown class code", f"{place}: {code.strip()[:80]!r}")

    def left_out(self, code: str, place: str) -> Problem | None:
        """Returns the problem of an item whose code is left out on purpose; None for another code.

        The arguments are those of `class_of`.
        """
        reason = self._left_out.get(plain(code))
        return None if reason is None else Problem(f"left out: {reason}", place)


class LabelReader:
    """Reads the labels of one target."""

    def __init__(self, target: Target, codes: Codes) -> None:
        self._target = target
        self._codes = codes

    def labels(self, values: Mapping[str, Value], place: str) -> Labels | Problem:
        """Returns the labels of an item, or the problem.

        Args:
            values: The values by what they hold: `class`, the names of the numbers, `units`, `caption`, or `question`,
                `options` and `answer`.
            place: The file, or the file and the row, for the problem.
        """
        target = self._target
        if isinstance(target, ClassTarget):
            found = self._codes.class_of(_text(values, "class"), place)
            return found if isinstance(found, Problem) else Labels(class_name=found, caption=_caption(values))
        if isinstance(target, NumbersTarget):
            numbers = _numbers(target, values, place)
            return numbers if isinstance(numbers, Problem) else Labels(numbers=numbers)
        if isinstance(target, UnitsTarget):
            units = self._units(target, values, place)
            return units if isinstance(units, Problem) else Labels(units=units, caption=_caption(values))
        if isinstance(target, CaptionTarget):
            caption = _caption(values)
            return Problem("empty caption", place) if caption is None else Labels(caption=caption)
        question = _question(target, values, place)
        return question if isinstance(question, Problem) else Labels(question=question)

    def _units(self, target: UnitsTarget, values: Mapping[str, Value], place: str) -> dict[int, bool] | Problem:
        stated = values.get("units", "")
        names = stated if isinstance(stated, tuple) else _BETWEEN_UNITS.split(stated.strip())
        shown = dict.fromkeys(target.units, False)
        for name in filter(None, names):
            unit = _UNIT.fullmatch(name.strip())
            if unit is not None and int(unit[1]) in shown:
                shown[int(unit[1])] = True
            elif unit is None or self._codes.left_out(unit[1], place) is None:
                return Problem("unknown action unit", f"{place}: {name[:80]!r}")
        return shown


def class_by_votes(votes: Mapping[str, int], rule: VoteRule) -> str | None:
    """Returns the code that wins by the rule (`VoteRule`), or None if no code has enough votes."""
    counted = {code: number for code, number in votes.items() if number > 1} if rule == "majority" else dict(votes)
    if not counted or max(counted.values()) == 0:
        return None
    code = max(counted, key=lambda each: counted[each])
    return None if rule == "majority" and 2 * counted[code] <= sum(counted.values()) else code


def vote_labels(codes: Codes, votes: Mapping[str, str], rule: VoteRule, place: str) -> Labels | Problem:
    """Returns the class that the votes give, or the problem. `votes` holds the cells of the votes by their codes."""
    if not all(re.fullmatch(r"\s*\d{1,6}\s*", text) for text in votes.values()):
        return Problem("votes are not whole numbers", place)
    code = class_by_votes({name: int(text) for name, text in votes.items()}, rule)
    if code is None:
        return Problem("left out: no class has enough votes", place)
    found = codes.class_of(code, place)
    return found if isinstance(found, Problem) else Labels(class_name=found)


def _by_plain_code(codes: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for code, name in codes.items():
        if found.setdefault(plain(code), name) != name:
            raise ConfigError(f"The code {code!r} belongs to {name!r} and, in another form, to {found[plain(code)]!r}.")
    return found


def _text(values: Mapping[str, Value], name: str) -> str:
    value = values.get(name, "")
    return value if isinstance(value, str) else ", ".join(value)


def _caption(values: Mapping[str, Value]) -> str | None:
    return _text(values, "caption").strip() or None


def _numbers(target: NumbersTarget, values: Mapping[str, Value], place: str) -> dict[str, float] | Problem:
    found: dict[str, float] = {}
    for name in target.names:
        try:
            number = float(_text(values, name))
        except ValueError:
            return Problem("not a number", f"{place}: {name}")
        if number in target.invalid:
            continue
        number /= target.divisor
        if not math.isfinite(number):
            return Problem("not a number", f"{place}: {name}")
        if not target.lowest <= number <= target.highest:
            return Problem("number out of range", f"{place}: {name}={number:g}")
        found[name] = number
    return found or Problem("left out: no valid number", place)


def _question(target: QuestionTarget, values: Mapping[str, Value], place: str) -> Question | Problem:
    options = values.get("options", ())
    text = _text(values, "question").strip()
    if not text:
        return Problem("empty question", place)
    if isinstance(options, str) or len(options) < 2:
        return Problem("fewer than two answers", place)
    if len({plain(option) for option in options}) < len(options):
        return Problem("the same answer twice", place)
    right = _right_answer(_text(values, "answer").strip(), options) if "answer" in values else target.right
    if right is None or not 0 <= right < len(options):
        return Problem("the right answer is not among the answers", place)
    if target.right is not None and right != target.right:
        return Problem("the right answer is at another position", f"{place}: {right}")
    return Question(text, options, right)


def _right_answer(answer: str, options: tuple[str, ...]) -> int | None:
    """Returns the position of the right answer, counted from 0; None if the file gives it in no known form.

    The file gives it as the answer itself, as a number from 0, or as a letter from A.
    """
    if answer in options:
        return options.index(answer)
    if re.fullmatch(r"\d{1,3}", answer):
        return int(answer)
    return ord(answer.upper()) - ord("A") if re.fullmatch(r"[A-Za-z]", answer) else None
