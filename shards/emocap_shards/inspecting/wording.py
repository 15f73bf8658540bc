"""Formats numbers and lines for people."""

import shlex
import textwrap
from collections.abc import Sequence

from emocap_shards.inspecting.counters import Counts

WIDTH = 80  # Columns of a usual terminal.


def wrapped(text: str, first: str = "", further: str | None = None) -> list[str]:
    """Breaks a text into lines of at most 80 characters. A word that is longer than a line, such as a URL, is kept.

    A text that may contain secrets is masked before, because a mask would not find the parts of a secret.

    Args:
        text: The text. If it fits into one line, it is not changed.
        first: What the first line begins with.
        further: What the other lines begin with; by default as many blanks as `first` has characters.

    >>> [len(line) for line in wrapped("word " * 20, "data  ")]
    [75, 35]
    """
    if len(first) + len(text) <= WIDTH:
        return [(first + text).rstrip()]
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_lines(words: Sequence[str], first: str) -> list[str]:
    """Returns a shell command that can be copied, in lines of at most 80 characters that end in a backslash.

    It is broken before options only, so a command with long paths may have a longer line.

    Args:
        words: The words of the command, without quotes.
        first: What the first line begins with. The other lines begin with two blanks more than it has characters.

    >>> command_lines(["emocap", "pack", "a b", "out", "--label", "x" * 60], "next  ")[0]
    "next  emocap pack 'a b' out \\\\"
    """
    parts: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    lines = [first + shlex.join(parts[0])]
    for part in map(shlex.join, parts[1:]):
        if len(lines[-1]) + len(part) + len("  \\") <= WIDTH:
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(" " * (len(first) + 2) + part)
    return lines


def number(value: float) -> str:
    """Formats an integer with all digits, and another number with three significant digits."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, with an "s" unless the number is 1.

    >>> counted(1, "sample"), counted(1024, "sample")
    ('1 sample', '1,024 samples')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(part: float, whole: float) -> str:
    """Formats `part / whole` in percent.

    The text is "-" if `whole` is 0. A share between 0 and 0.1 % becomes "< 0.1 %", and one between 99.9 % and 100 %
    becomes "> 99.9 %".
    """
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < share < 100 else f"{share:.3g} %"


def share_repeated(counts: Counts) -> str:
    """Formats the share of the texts that repeat an earlier text.

    If the counter has dropped texts to limit its memory, the share is an upper bound, and the result begins with "≤".
    The result "< 0.1 %" gets no "≤", because it says already that the share is smaller.
    """
    share = percent(counts.repeats, counts.total)
    if not counts.short or share.startswith("<"):
        return share
    return "≤ 100 %" if share.startswith(">") else f"≤ {share}"


def share_once(counts: Counts) -> str:
    """Formats the share of the distinct texts that occurred exactly once.

    The result is "-" if the counter has dropped texts to limit its memory, because the share is then unknown.
    """
    return "-" if counts.short else percent(counts.once, counts.distinct)


def size(number_bytes: float) -> str:
    """Formats a number of bytes in decimal units up to TB, with three significant digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number_bytes) < 999.5:  # A number that rounds to 1,000 is shown as 1 of the next unit.
            return f"{number_bytes:.3g} {unit}"
        number_bytes /= 1000
    return f"{number_bytes:.3g} TB" if abs(number_bytes) < 999.5 else f"{number_bytes:,.0f} TB"
