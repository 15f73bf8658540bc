"""Summarises labels: the counts of the values of text labels, and the distribution of numeric labels."""

import re
from collections.abc import Mapping

from emocap_shards.annotation import Labels
from emocap_shards.inspecting.counters import Counts, NumberCounter, Spread, TextCounter

MOST_NAMES = 200
_MOST_VALUES = 10_000
_TOP_VALUES = 40
_VALUE_CHARACTERS = 100


class LabelCounter:
    """Summarises up to 200 text labels and up to 200 numeric labels, each under its name.

    Values of further labels are only counted, in `names_left_out`.
    """

    def __init__(self) -> None:
        self._texts: dict[str, TextCounter] = {}
        self._numbers: dict[str, NumberCounter] = {}
        self.names_left_out = 0

    def add(self, labels: Labels) -> None:
        for name, label in labels.items():
            if isinstance(label, str):
                self._add_text(name, label)
            else:
                self._add_number(name, label)

    def texts(self) -> Mapping[str, Counts]:
        """Returns the counts of the values of each text label, sorted by name."""
        return {name: tally.counts(_TOP_VALUES) for name, tally in sorted(self._texts.items(), key=_natural)}

    def numbers(self) -> Mapping[str, Spread]:
        """Returns the distribution of each numeric label, sorted by name."""
        return {name: numbers.spread() for name, numbers in sorted(self._numbers.items(), key=_natural)}

    def _add_text(self, name: str, label: str) -> None:
        if name in self._texts or len(self._texts) < MOST_NAMES:
            self._texts.setdefault(name, TextCounter(_MOST_VALUES)).add([label[:_VALUE_CHARACTERS]])
        else:
            self.names_left_out += 1

    def _add_number(self, name: str, label: float) -> None:
        if name in self._numbers or len(self._numbers) < MOST_NAMES:
            self._numbers.setdefault(name, NumberCounter()).add([label])
        else:
            self.names_left_out += 1


def _natural(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Returns a sorting key that puts AU2 before AU10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", item[0])]
