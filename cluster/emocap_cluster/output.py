"""Puts the number of a rank before each line of the rank, so that the terminal shows which rank wrote the line."""

import io
import sys
from typing import IO


def name_lines(rank: int) -> None:
    """Makes each line that Python code of this process writes begin with a prefix such as `[rank 3]`.

    Compiled libraries and faulthandler write directly to the file descriptor. Their lines have no prefix, are not
    delayed, and are not lost in a crash.
    """
    sys.stdout = Named(sys.stdout, f"[rank {rank}] ")
    sys.stderr = Named(sys.stderr, f"[rank {rank}] ")


class Named(io.TextIOBase):
    """A text stream that writes complete lines to `target`, each after the prefix `name`.

    An incomplete line is held back until its end is written, even if the stream is flushed in the meantime.
    """

    def __init__(self, target: IO[str], name: str) -> None:
        self._target = target
        self._name = name
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._target.write("".join(f"{self._name}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        self._target.flush()

    def fileno(self) -> int:
        # faulthandler writes the stacks of a rank that hangs to this descriptor.
        return self._target.fileno()

    def writable(self) -> bool:
        return True
