"""Formats the call stacks of the threads of this process, or of another process on this host (read with py-spy).

A rank that hangs prints its own stacks, because its watchdog thread still runs. A process that sends no heartbeats may
be frozen as a whole, so another process must read its stacks from outside.
"""

import shutil
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import psutil

PY_SPY_S = 15  # The longest wait for py-spy.
MAX_CALLS_IN_LINE, MAX_CALLS = 3, 12
# Threads that watch the others are left out, because they are busy with watching.
WATCHING_THREADS = frozenset({"emocap-heartbeat", "emocap-watchdog", "emocap-status", "emocap-before-exit"})


def of_this_process(first: int) -> str:
    """Returns a text with the innermost calls of all threads of this process.

    The threads in `WATCHING_THREADS`, such as the watchdog, are left out. Within each thread, the newest call comes
    last.

    Args:
        first: The identifier of the thread that comes first in the text.
    """
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented, in spite of its name
    threads = sorted(threading.enumerate(), key=lambda thread: (thread.ident != first, thread.name))
    shown = [thread for thread in threads if thread.ident in frames and thread.name not in WATCHING_THREADS]
    return "\n".join(
        f"Thread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident or 0])[-MAX_CALLS:])}"
        for thread in shown
    )


def of_thread(identifier: int) -> str:
    """Returns the innermost calls of a thread of this process in one line."""
    frame = sys._current_frames().get(identifier)  # pyright: ignore[reportPrivateUsage]
    return in_one_line(traceback.extract_stack(frame)) if frame else "the thread has ended"


def in_one_line(calls: traceback.StackSummary) -> str:
    """Returns the innermost few of `calls` in one line. The newest call comes first."""
    calls = traceback.StackSummary.from_list(calls[-MAX_CALLS_IN_LINE:])
    return " < ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in reversed(calls))


def of_process(pid: int) -> str:
    """Returns the stacks of another process on this host, or a text that says why they cannot be read."""
    try:
        state = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return f"process {pid} is gone."
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None or state == psutil.STATUS_ZOMBIE:
        return f"process {pid} is {state}."
    # By default py-spy stops the process while it reads, and it would wait without end for a process that is stopped.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PY_SPY_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return f"process {pid} is {state}; py-spy cannot read its stacks: {error}"
    # The threads follow the command line, which is left out because it may hold secrets.
    return f"process {pid} is {state}:\n{done.stdout[max(0, done.stdout.find('Thread ')) :]}"
