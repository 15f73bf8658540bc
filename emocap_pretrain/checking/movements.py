"""Reads the words by which free English describes movements of the face, from movements.toml, which explains them.

`VOCABULARY` holds the patterns that find words in a normalized sentence (`claims.py`). `MOVEMENTS` holds what each
movement is: its region, its action units, and how a reason names it.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Describes a movement of a region of the face, or a region at rest.

    Attributes:
        name: Name of the movement, such as "brows_raised".
        region: Region of the face, as in `captions/grammar/recognition.py`.
        units: The FACS numbers of the action units that may cause the movement; empty for a region at rest, for a
            closed mouth and for open eyes.
        one: Subject of a sentence about one side, with the placeholder `{side}`.
        many: Subject of a sentence about both sides.
        state: Predicate, which follows "is" or "are".
        singular: Whether `many` takes "is".
        any_of: Names of the movements of which one is enough, if the words leave open which one is meant.
    """

    name: str
    region: str
    units: tuple[int, ...]
    one: str
    many: str
    state: str
    singular: bool = False
    any_of: tuple[str, ...] = ()

    @property
    def at_rest(self) -> bool:
        return self.name.endswith("_at_rest")

    def clause(self, side: str, *, negated: bool = False) -> str:
        """Returns a clause such as "the left eyebrow is not raised". `side` is "left", "right", "one", or another text.

        >>> MOVEMENTS["brows_raised"].clause("left")
        'the left eyebrow is raised'
        """
        sided = side in {"left", "right", "one"}
        article = "" if side == "one" else "the "
        subject = f"{article}{self.one.format(side=side)}" if sided else f"the {self.many}"
        verb = "is" if self.singular or (sided and not self.one.startswith("lids")) else "are"
        return f"{subject} {verb} {'not ' if negated else ''}{self.state}"


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Finds one expression. `kind` says what it is, such as "part" or "degree", and `name` which one."""

    kind: str
    name: str
    regex: re.Pattern[str]


_WORDS: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("movements.toml").read_text(encoding="utf-8"))

MOVEMENTS: Mapping[str, Movement] = {
    name: Movement(
        name=name,
        region=entry["region"],
        units=tuple(entry["units"]),
        one=entry["one"],
        many=entry["many"],
        state=entry["state"],
        singular=entry.get("singular", False),
        any_of=tuple(entry.get("any_of", ())),
    )
    for name, entry in _WORDS["movements"].items()
}
"""All movements by their names."""

SAID_BY: Mapping[tuple[str, str], str] = {
    tuple(pair.split()): name for name, entry in _WORDS["movements"].items() for pair in entry.get("by", ())
}
"""The name of the movement that a part of the face and an action state together."""

CODES: Mapping[int, str] = {entry["code"]: name for name, entry in _WORDS["movements"].items() if "code" in entry}
"""The name of the movement of each action unit that has a code."""


def _compiled(words: str) -> re.Pattern[str]:
    fragments: Mapping[str, str] = _WORDS["fragments"]
    for _ in range(2):  # A fragment may use another one.
        for name, fragment in fragments.items():
            words = words.replace(f"{{{name}}}", fragment)
    return re.compile(rf"(?:{re.sub(r'[(](?![?])', '(?:', words)})(?![\w'])")


def _patterns() -> Iterator[Pattern]:
    def of(kind: str, name: str, words: Sequence[str]) -> Iterator[Pattern]:
        return (Pattern(kind, name, _compiled(each)) for each in words)

    for kind, table in (("part", "parts"), ("degree", "degrees"), ("side", "sides")):
        for name, words in _WORDS[table].items():
            yield from of(kind, name, words)
    for name, forms in _WORDS["actions"].items():
        yield from of("verb", name, forms.get("verbs", ()))
        yield from of("action", name, forms.get("words", ()))
    for name, entry in _WORDS["movements"].items():
        yield from of("direct", name, entry.get("direct", ()))
    for name, words in _WORDS["negations"].items():
        yield from of("negation", name, words)
    for name, words in _WORDS["roles"].items():
        yield from of(name, name, words)
    yield from of("hypothetical", "", _WORDS["hypothetical"]["words"])
    yield from of("idiom", "", _WORDS["idioms"]["words"])


VOCABULARY: Sequence[Pattern] = tuple(_patterns())
