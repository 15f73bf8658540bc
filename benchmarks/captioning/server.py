"""Starts the test server of the captioners as a process of its own, which logs every request at its arrival."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.machine import REPOSITORY

SERVER = REPOSITORY / "tests" / "caption_server.py"


@contextmanager
def served(log: Path, latency_s: float, pieces: int) -> Generator[str]:
    """Yields the URL of a server that answers every request after `latency_s` seconds, in `pieces` events."""
    command = [sys.executable, str(SERVER), str(log), "--latency-s", str(latency_s), "--pieces", str(pieces)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None, "it is a pipe"
        assert server.stdout is not None, "it is a pipe"
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def asked(log: Path) -> list[str]:
    """Returns the requests that the server has received, in their order, by their Idempotency-Keys."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["id"] for line in lines]
