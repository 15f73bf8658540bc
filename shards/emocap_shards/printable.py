"""Makes text of unknown origin, such as keys, captions, labels and messages of servers, safe to print on a terminal."""


def printable(text: str, *, lines: bool = False) -> str:
    """Returns the text without the characters that could control a terminal.

    These are characters that move the cursor, change colours or the direction of text, make links, or are invisible.
    White space becomes a space, and the others become U+FFFD.

    Args:
        text: Any text.
        lines: Whether line feeds are kept. Without them the result is one line.
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
    """Returns `repr(value)`. A result of more than `letters` characters is shown without its middle, for use in
    messages.
    """
    text = repr(value)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}...{text[-(letters // 4) :]} ({len(text):,} characters)"
