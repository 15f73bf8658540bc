"""All text is plain English: no file contains a phrase of the word list in prose_words.toml."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "cluster", "docs", "emocap_pretrain", "kernels", "launch", "shards", "tests")
SUFFIXES = {".css", ".html", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
WORDS = ROOT / "tests/prose_words.toml"
# The word list holds the words, and this file has examples of them.
EXEMPT = {WORDS, Path(__file__)}

# What may lie between two words of a phrase in a docstring, in a comment or in strings that Python joins.
_GAP = r"[\s\"'#]+"
# Strings, comments and the names of tests: what Python source says to people.
_PYTHON = re.compile(
    r"""
    \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
    | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    | \#[^\n]*
    | def\ test_\w+
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Finding:
    """Words of a text that have a plainer form: where they are, what they are, and what to write instead."""

    line: int
    words: str
    write: str

    def __str__(self) -> str:
        return f'{self.line}: "{self.words}": write {self.write}'


class Checker:
    """Holds the word list of `prose_words.toml` as compiled patterns."""

    def __init__(self, rules: dict[str, Any]) -> None:
        self._rules = [
            (_phrase(rule["pattern"]), _phrase(rule.get("but", "$.")), rule["write"]) for rule in rules["words"]
        ]
        first = "|".join(rules["docstrings"]["first"])
        self._opening = re.compile(rf'^[ \t]*r?"""({first})\b[^\n]{{0,30}}', re.MULTILINE)
        self._opening_cure = rules["docstrings"]["write"]

    def findings(self, text: str, *, python: bool) -> list[Finding]:
        """All findings of a file, in the order of their lines."""
        found = list(self._words(_prose(text) if python else text))
        if python:
            opened = self._opening.finditer(text)
            found += [Finding(_line(text, match.start(1)), match[0].strip(), self._opening_cure) for match in opened]
        return sorted(found, key=lambda finding: finding.line)

    def _words(self, prose: str) -> Iterator[Finding]:
        for pattern, but, write in self._rules:
            for match in pattern.finditer(prose):
                if not but.match(prose, match.start()):
                    yield Finding(_line(prose, match.start()), " ".join(re.split(_GAP, match[0])), write)


def _phrase(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", _GAP), re.IGNORECASE)


def _prose(source: str) -> str:
    """Returns the strings, the comments and the names of tests of Python source, each in the line where it begins."""
    parts: list[str] = []
    end = 0
    for match in _PYTHON.finditer(source):
        code = source[end : match.start()]
        # A bar keeps a phrase from reaching over code. Python joins strings with nothing but blanks between them.
        parts.append("\n" * code.count("\n") + (" " if code.strip() in {"", "f", "r"} else " | "))
        parts.append(match[0].replace("_", " ") if match[0].startswith("def") else match[0])
        end = match.end()
    return "".join(parts)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _files() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path not in EXEMPT:
                yield path


def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_no_file_contains_a_phrase_of_the_word_list():
    checker = Checker(_load(WORDS))
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in _files()
        for finding in checker.findings(path.read_text(encoding="utf-8"), python=path.suffix == ".py")
    ]
    assert not found, "\n".join(["Write these plainly (tests/prose_words.toml):", *found])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"""Returns what stands there."""', ["stands"]),
        ("# The run goes\n# on.", ["goes on"]),
        ('say("it went "\n    f"on with {n}")', ["went on"]),
        ('x = "the server is away"', ["is away"]),
        ("def test_a_step_behind_the_last_one(): ...", ["behind"]),
        ('"""Of a run, its state."""', ['"""Of a run, its state."""']),
        ('    """Whether it is so."""', ['"""Whether it is so."""']),
        ('"""Reads.\n\n    Args:\n        samples: Of a source.\n    """', [": Of"]),
        ('raise ValueError("x is no number")', ["is no number"]),
    ],
)
def test_a_word_of_the_list_is_found_in_prose(text, words):
    assert [finding.words for finding in Checker(_load(WORDS)).findings(text, python=True)] == words


@pytest.mark.parametrize(
    "text",
    [
        "behind = stands + goes(on)",
        "# A server behind a proxy, and hair behind the head.",
        '"""Returns the word that "AU" stands for."""',
        'x = "there is no number; it understands; far away from it"',
        '"""Returns whether it is so."""',
        'values = {"Of": "What"}',
    ],
)
def test_code_and_correct_uses_are_not_found(text):
    assert Checker(_load(WORDS)).findings(text, python=True) == []


def test_a_finding_says_line_words_and_cure():
    (finding,) = Checker(_load(WORDS)).findings("\n\nIt goes on.", python=False)
    assert str(finding) == '3: "goes on": write continues, resumes'
