"""Puts the number of a rank before each of its lines, so that the driver's terminal shows which rank has
written them.
"""

import io
import sys
from typing import IO


def name_lines(rank: int) -> None:
    """Makes each line that Python code of this process writes begin with, for example, `[rank 3]`.

    Compiled libraries and faulthandler write directly to the descriptor. Their lines have no prefix, are not delayed,
    and are not lost in a crash.
    """
    sys.stdout = Named(sys.stdout, f"[rank {rank}] ")
    sys.stderr = Named(sys.stderr, f"[rank {rank}] ")


class Named(io.TextIOBase):
    """Writes complete lines to `target`, each after `name`; an incomplete line waits for its end."""

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
        return self._target.fileno()

    def writable(self) -> bool:
        return True
