"""Reads the attributes of the persons of a benchmark from a user's copy."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from emocap_pretrain.benchmarks.attributes import AttributeLines, AttributePersons, Attributes, AttributeTable
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.reading.labels import plain
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.texts import rows, small
from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled, is_contained
from emocap_pretrain.errors import DataError

_LARGEST_FILE = 1 << 16  # Bytes of the text file of an item.


class AttributeReader:
    """Finds the attributes of items.

    A copy may lack the files of the attributes: many copies have the images and labels alone. Its items have no
    attributes, and evaluations count them.
    """

    def __init__(self, attributes: Attributes, root: Path) -> None:
        self._attributes = attributes
        self._tree = Tree(root)

    def of(self, item: Item) -> Mapping[str, str | float]:
        """Returns the attributes of an item; without those that the copy does not have, or whose value has no meaning.

        Raises:
            DataError: If a table of persons exists, and is not what the card says.
        """
        match self._attributes:
            case AttributeLines() as lines:
                found = self._in_lines(lines, item)
            case AttributeTable() | AttributePersons():
                found = self._by_person.get(plain(item.group or ""), {})
        meant = {name: self._meaning(name, text.strip()) for name, text in found.items()}
        return {name: value for name, value in meant.items() if value is not None}

    def _meaning(self, name: str, text: str) -> str | float | None:
        if codes := self._attributes.codes.get(name):
            return codes.get(text)
        return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) else text[:200] or None

    def _in_lines(self, lines: AttributeLines, item: Item) -> Mapping[str, str]:
        match = re.fullmatch(lines.pattern, item.key)
        if match is None:
            return {}
        try:
            path = filled(lines.file, match.groupdict(default=""))
        except BadPath:
            return {}
        found = self._tree.file(path) if is_contained(path) else None
        if not isinstance(found, Path):
            return {}
        try:
            text = small(found, _LARGEST_FILE).decode(errors="replace").split("\n")
        except DataError:
            return {}
        return {name: text[number - 1] for name, number in lines.lines.items() if number <= len(text)}

    @cached_property
    def _by_person(self) -> Mapping[str, Mapping[str, str]]:
        match self._attributes:
            case AttributePersons(persons=persons):
                return _turned(persons)
            case AttributeTable() as table:
                file = self._tree.file(table.file)
                return {} if isinstance(file, Problem) else _table(table, file)
            case AttributeLines():
                return {}


def _turned(persons: Mapping[str, Mapping[str, Sequence[str]]]) -> Mapping[str, Mapping[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, values in persons.items():
        for value, of_value in values.items():
            for person in of_value:
                found.setdefault(plain(person), {})[name] = value
    return found


def _table(table: AttributeTable, file: Path) -> Mapping[str, Mapping[str, str]]:
    read = rows(file, "utf-8", ",")
    _, header = next(read, (0, []))
    places = {column.strip(): number for number, column in enumerate(header)}
    if lacking := [each for each in (table.person, *table.columns.values()) if each not in places]:
        raise DataError(f"{file} has no column {lacking[0]!r}; its first row is {', '.join(header)[:200]!r}.")
    found: dict[str, Mapping[str, str]] = {}
    for _, cells in read:
        if len(cells) == len(header):
            of_person = {name: cells[places[column]] for name, column in table.columns.items()}
            found[plain(cells[places[table.person]])] = of_person
    return found
