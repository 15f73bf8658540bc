"""Makes text of unknown origin, such as keys, captions, labels and messages of servers, safe to print on a terminal."""

from collections.abc import Sequence


def printable(text: str, *, lines: bool = False) -> str:
    """Returns the text with a replacement for each character that could control a terminal.

    Such characters move the cursor, change colours or the direction of text, make links, or are invisible. Each white
    space among them is replaced by a space, and every other one by U+FFFD.

    Args:
        text: Any text.
        lines: Whether line feeds are kept. Otherwise they are replaced by spaces, so the result is one line.
    """
    # `isprintable` is false for every character that controls something, bidi controls among them, and for lone
    # surrogates.
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else " " if letter.isspace() else "\ufffd"
        for letter in text
    )


def short(value: object, letters: int = 80) -> str:
    """Returns `repr(value)` for use in messages. If it has more than `letters` characters, its middle is left out."""
    text = repr(value)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}...{text[-(letters // 4) :]} ({len(text):,} characters)"


def listed(names: Sequence[object], most: int) -> str:
    """Returns the first `most` names as one text for messages, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(short, names[:most])) + more
