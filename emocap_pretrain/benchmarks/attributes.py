"""Describes what the files of a benchmark say about the persons, such as their gender: scores are divided by it.

The attributes are labels of evaluations of subgroups (`--by`), and never a target. They are those that the authors of a
benchmark state, mostly as other people have judged them.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emocap_pretrain.benchmarks.sources import CardSection, FactSource, Text

AttributeName = Annotated[str, Field(pattern=r"^[a-z]+(_[a-z]+)*$", max_length=40)]


class _Attributes(CardSection):
    """Base class of the places of attributes.

    Attributes:
        source: Where the place and the meaning of the values were read.
        codes: The meaning of the values in the files, by the name of the attribute. Other values are ignored. An
            attribute without codes has the values of the files; those that are numbers count as numbers.
    """

    source: FactSource
    codes: dict[AttributeName, dict[Text, Text]] = Field(default={})


class AttributeLines(_Attributes):
    """Each item has a text file with one value in each line.

    Attributes:
        pattern: Regular expression of the keys of items, whose groups are used in `file`.
        file: Path of the text file, made of these groups.
        lines: The number of the line of each attribute, from 1.
    """

    kind: Literal["lines"] = "lines"
    pattern: Text
    file: Text
    lines: Annotated[dict[AttributeName, Annotated[int, Field(ge=1, le=100)]], Field(min_length=1)]

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        re.compile(pattern)
        return pattern

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.lines)


class AttributeTable(_Attributes):
    """A CSV file with a header has a row for each person.

    Attributes:
        file: Path of the file.
        person: The name of the column with the person (`Item.group`).
        columns: The name of the column of each attribute.
    """

    kind: Literal["table"] = "table"
    file: Text
    person: Text
    columns: Annotated[dict[AttributeName, Text], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)


class AttributePersons(_Attributes):
    """The card itself lists the persons.

    Attributes:
        persons: For each attribute and each of its values the persons (`Item.group`).
    """

    kind: Literal["persons"] = "persons"
    persons: Annotated[dict[AttributeName, dict[Text, tuple[Text, ...]]], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.persons)


Attributes = Annotated[AttributeLines | AttributeTable | AttributePersons, Field(discriminator="kind")]
