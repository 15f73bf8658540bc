"""Runs a launcher's command, and finds every process that the command has started on this host, including orphans.

It works on Linux only.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Self, TypeVar

import psutil

T = TypeVar("T")
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class ProcessTree:
    """Runs a command in a session of its own, and finds all descendants of the command.

    If a launcher is killed, its ranks become orphans. This process then adopts them instead of init, so that they
    remain among its descendants. The processes of the command are therefore known without a search by name.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # This comes first, so that no orphan of the command is missed.
        _adopt_orphans(enabled=True)
        # The children that exist already are not the command's.
        self._before = {each.pid for each in psutil.Process().children(recursive=True)}
        # In a session of its own the command does not get the Ctrl-C of the terminal. The caller sends signals to the
        # ranks, and not to the launcher (decision 15).
        self._leader = subprocess.Popen(command, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Kills all processes of the command if the `with` block raised an error; otherwise leaves them running."""
        if kind is not None:
            self.end()
        _adopt_orphans(enabled=False)

    def wait(self, timeout_s: float) -> int | None:
        """Returns the command's exit code as a shell reports it (128 + signal), or None if it still runs after
        `timeout_s` seconds.
        """
        self._reap()
        try:
            code = self._leader.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code < 0 else code

    def members(self) -> list[psutil.Process]:
        """Returns all processes of the command that still run."""
        found = psutil.Process().children(recursive=True)
        alive = (each for each in found if _tried(each.status, psutil.STATUS_ZOMBIE) != psutil.STATUS_ZOMBIE)
        return [each for each in alive if each.pid not in self._before]

    def ranks(self) -> list[psutil.Process]:
        """Returns the processes of the job's ranks (those with the variable RANK), without the loader processes that
        they started.
        """
        # Loader processes inherit RANK from their rank. So a process is a rank if it has RANK and its parent has not.
        of_a_rank = {each.pid: "RANK" in _tried(each.environ, {}) for each in self.members()}
        found = (each for each in self.members() if of_a_rank.get(each.pid))
        return [each for each in found if not of_a_rank.get(_tried(each.ppid, 0))]

    def end_ranks(self, grace_s: float) -> int:
        """Sends SIGTERM to the running ranks so that they save, and kills them and their children after `grace_s`
        seconds.

        Returns the number of ranks that were running.
        """
        ranks = self.ranks()
        # The children are collected first: after the end of a rank nothing shows which processes it had started.
        theirs = [child for rank in ranks for child in _tried(partial(rank.children, recursive=True), [])]
        send_signal(ranks, signal.SIGTERM)
        psutil.wait_procs(ranks, timeout=grace_s)
        _kill([*ranks, *theirs])
        return len(ranks)

    def end(self) -> None:
        """Kills all processes of the command at once."""
        _kill(self.members())
        self._leader.wait()

    def _reap(self) -> None:
        """Collects the exit codes of adopted orphans, which would otherwise remain as zombies."""
        for child in psutil.Process().children():
            with suppress(psutil.Error, ChildProcessError):
                # `wait` collects the exit code of the command itself.
                if child.pid not in {self._leader.pid, *self._before} and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)


def _adopt_orphans(*, enabled: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(enabled))


def send_signal(processes: Iterable[psutil.Process], number: int) -> None:
    """Sends a signal to the processes, one right after the other. Processes that have ended are ignored."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def _kill(processes: Sequence[psutil.Process]) -> None:
    send_signal(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=5.0)


def _tried(ask: Callable[[], T], default: T) -> T:
    """Returns the result of `ask`, which queries psutil about a process.

    Returns `default` if psutil raises an error, because the process has ended or this user may not examine it.
    """
    with suppress(psutil.Error):
        return ask()
    return default
