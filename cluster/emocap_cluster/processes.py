"""A launcher's command and every process that comes of it on this host, orphans included. Linux."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Self

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class Family:
    """The command as a process of its own session, and its descendants.

    A launcher that is killed leaves its ranks behind. They come to this process, not to init, so they are always found
    among its descendants, and nobody has to guess by name whose they are.
    """

    def __init__(self, command: Sequence[str]) -> None:
        _adopt(orphans=True)
        self._before = {each.pid for each in psutil.Process().children(recursive=True)}
        self._leader = subprocess.Popen(command, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error nothing is left of the family; else what still lives is no business of ours."""
        if kind is not None:
            self.end()
        _adopt(orphans=False)

    def wait(self, timeout_s: float) -> int | None:
        """The command's exit code as a shell gives it (128 + signal); None if it still runs."""
        self._bury()
        try:
            code = self._leader.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code < 0 else code

    def members(self) -> list[psutil.Process]:
        """All that live."""
        found = psutil.Process().children(recursive=True)
        return [each for each in found if each.pid not in self._before and _lives(each)]

    def ranks(self) -> list[psutil.Process]:
        """Processes that a launcher made ranks of a job; the loader processes below them are not among them."""
        of_a_rank = {each.pid: _is_of_a_rank(each) for each in self.members()}
        return [each for each in self.members() if of_a_rank.get(each.pid) and not of_a_rank.get(_parent(each))]

    def end_ranks(self, grace_s: float) -> int:
        """Ask the ranks that live to save, and end those that take longer, with their own; how many there were."""
        ranks = self.ranks()
        theirs = [child for rank in ranks for child in _children(rank)]
        tell(ranks, signal.SIGTERM)
        psutil.wait_procs(ranks, timeout=grace_s)
        _kill([*ranks, *theirs])
        return len(ranks)

    def end(self) -> None:
        """Everything, at once."""
        _kill(self.members())
        self._leader.wait()

    def _bury(self) -> None:
        """Orphans that have ended wait for their new parent."""
        for child in psutil.Process().children():
            with suppress(psutil.Error, ChildProcessError):
                if child.pid not in {self._leader.pid, *self._before} and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)


def _adopt(*, orphans: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(orphans))


def tell(processes: Iterable[psutil.Process], number: int) -> None:
    """Send all of them a signal, one right after the other; those that are gone need none."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def _kill(processes: Sequence[psutil.Process]) -> None:
    tell(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=5.0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_of_a_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "RANK" in process.environ()
    return False


def _parent(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return process.ppid()
    return 0
