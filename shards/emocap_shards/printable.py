"""Text of strangers (keys, captions, labels, messages of servers) as text: nothing of it steers a terminal."""


def printable(text: str, *, lines: bool = False) -> str:
    """The text with a replacement character for what moves a cursor, colours or turns text, links or hides.

    Args:
        text: Of whatever origin.
        lines: Keep line feeds, for a text that may have several lines; without it the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else " " if letter.isspace() else "\ufffd"
        for letter in text
    )


def short(value: object, letters: int = 80) -> str:
    """The value as `repr` writes it, without its middle where it is long: a message names it and stays one line."""
    text = repr(value)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}...{text[-(letters // 4) :]} ({len(text):,} characters)"
