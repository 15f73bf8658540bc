"""A rank's lines carry its number, so that the driver's terminal shows who speaks."""

import io
import sys
from typing import IO


def name_lines(rank: int) -> None:
    """From now on each line that Python code of this process writes begins with `[rank 3]`.

    What compiled libraries and faulthandler write goes past it, and is neither held back nor lost in a crash.
    """
    sys.stdout = Named(sys.stdout, f"[rank {rank}] ")
    sys.stderr = Named(sys.stderr, f"[rank {rank}] ")


class Named(io.TextIOBase):
    """Writes whole lines to `target`, each behind `name`; the start of a line waits for its end."""

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
