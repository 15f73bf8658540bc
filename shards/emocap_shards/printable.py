"""Makes text of unknown origin (keys, captions, labels, messages of servers) safe to print: it cannot control a
terminal.
"""


def printable(text: str, *, lines: bool = False) -> str:
    """Returns the text with a replacement character for everything that could control a terminal.

    This covers characters that move the cursor, change colours or the direction of text, make links, or are invisible.

    Args:
        text: Any text.
        lines: Keeps line feeds, for a text that may have several lines. Without it the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else " " if letter.isspace() else "\ufffd"
        for letter in text
    )


def short(value: object, letters: int = 80) -> str:
    """Returns `repr(value)`; a long one is shown without its middle, so that a message that contains it stays
    one line.
    """
    text = repr(value)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}...{text[-(letters // 4) :]} ({len(text):,} characters)"
