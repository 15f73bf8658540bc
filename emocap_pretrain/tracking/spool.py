"""Rows on their way to a tracker: kept on local disk until they arrived, sent by a thread of their own.

A tracker that is down never stops training: rows wait, and a run that is resumed on this host sends what was left.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

Row = tuple[int, int, dict[str, float]]  # (step, milliseconds since the epoch, metrics)

log = logging.getLogger(__name__)


class Spool:
    """Sends rows in order, a list at a time, and tries again until they arrive."""

    def __init__(
        self, path: Path, send: Callable[[list[Row]], None], *, after_step: int = -1, longest_pause_s: float = 30.0
    ) -> None:
        """Open the spool.

        Args:
            path: File of rows that have not arrived; what an earlier process left there is sent first.
            send: Delivers rows or raises; it is called from one thread only.
            after_step: Last step that arrived; older rows of the file are not sent again.
            longest_pause_s: Between two tries.
        """
        self._path, self._send, self._longest_pause_s = path, send, longest_pause_s
        self.last_step = after_step
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._give_up = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in unsent(path):
            if row[0] > self.last_step:
                self._rows.put(row)
                self.last_step = row[0]
        self._file = path.open("a", encoding="utf-8")
        if not _ends_in_whole_line(path):
            self._file.write("\n")
        self._thread = threading.Thread(target=self._run, name="emocap-tracking", daemon=True)
        self._thread.start()

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Keep a row and send it soon; a step at or before the last one is a replay and is left out."""
        if step <= self.last_step:
            return
        self.last_step = step
        row: Row = (step, round(time.time() * 1000), metrics)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._rows.put(row)

    def close(self, wait_s: float) -> bool:
        """Wait for what is on its way; True, and the file is gone, if all of it arrived."""
        self._rows.put(None)
        self._thread.join(wait_s)
        arrived = not self._thread.is_alive()
        self._give_up.set()
        self._file.close()
        if arrived:
            self._path.unlink(missing_ok=True)
        return arrived

    def _run(self) -> None:
        open_ = True
        while open_:
            rows, open_ = self._take()
            if rows:
                self._deliver(rows)

    def _take(self) -> tuple[list[Row], bool]:
        """All rows that wait, at least one; False once the spool is closing."""
        rows: list[Row] = []
        entry = self._rows.get()
        while entry is not None:
            rows.append(entry)
            if self._rows.empty():
                return rows, True
            entry = self._rows.get()
        return rows, False

    def _deliver(self, rows: list[Row]) -> None:
        pause_s = 1.0
        while not self._give_up.is_set():
            try:
                self._send(rows)
                return
            except Exception as error:  # noqa: BLE001 - whatever the tracker's client raises, training goes on
                log.warning("tracker does not answer (%s); rows wait in %s", _first_line(error), self._path)
            self._give_up.wait(pause_s)
            pause_s = min(self._longest_pause_s, 2 * pause_s)


def unsent(path: Path) -> list[Row]:
    """Rows in a spool file; a line that a crash cut short is left out."""
    if not path.exists():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step, milliseconds, metrics = json.loads(line)
        except ValueError:
            log.warning("%s has half a row, which is left out", path)
            continue
        rows.append((step, milliseconds, metrics))
    return rows


def _ends_in_whole_line(path: Path) -> bool:
    return path.read_bytes()[-1:] in {b"", b"\n"}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
