"""Reads the commands and the outputs that a page of the documentation shows."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?P<skip>^ *<!-- not run: [^\n]+ -->\n)?^(?P<indent> *)```(?P<language>[a-z]+)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_PROMPT = "$ "


@dataclass(frozen=True)
class Shown:
    """Holds a command or a program of a page.

    Attributes:
        language: "bash" or "console" for a command, and "python" for a program.
        text: The command, without the prompt and with its continuation lines, or the program.
        output: The lines after the command of a block "console".
        line: The line of the page, for messages.
    """

    language: str
    text: str
    output: tuple[str, ...]
    line: int

    @property
    def words(self) -> list[str]:
        """Returns the words of the command. A comment after it is left out."""
        return shlex.split(self.text, comments=True)


def pages() -> list[Path]:
    """Returns README.md and all pages below docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_on(
    page: Path, languages: frozenset[str] = frozenset({"bash", "console"}), *, skipping: bool = False
) -> Iterator[Shown]:
    """Yields the commands and programs of a page in their order.

    With `skipping`, blocks after the comment `<!-- not run: REASON -->` are left out.
    """
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        language, line = block["language"], text.count("\n", 0, block.start()) + 2
        if language not in languages or (skipping and block["skip"]):
            continue
        if language == "python":
            yield Shown(language, block["text"], (), line)
            continue
        body = re.sub(rf"^{block['indent']}", "", block["text"], flags=re.MULTILINE)
        yield from _commands(language, body, line)


def _commands(language: str, body: str, line: int) -> Iterator[Shown]:
    """Yields the commands of a block. In a block "console", lines without a prompt are the output."""
    joined = re.sub(r"\\\n", "", body)
    if language == "bash":
        for each in joined.splitlines():
            if each.strip() and not each.startswith("#"):
                yield Shown(language, each, (), line)
        return
    command, output = "", list[str]()
    for each in joined.splitlines():
        if each.startswith(_PROMPT):
            if command:
                yield Shown(language, command, tuple(output), line)
            command, output = each.removeprefix(_PROMPT), []
        else:
            output.append(each)
    if command:
        yield Shown(language, command, tuple(output), line)
