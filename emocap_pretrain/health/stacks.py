"""What threads are doing: those of this process, and by py-spy those of another process on this host."""

import shutil
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import psutil

PY_SPY_S = 15
INNERMOST, SHOWN = 3, 12
# Threads that look after the others; they are at their own work while they are asked.
OURS = frozenset({"emocap-beat", "emocap-watchdog", "emocap-status", "emocap-last-word"})


def own(first: int) -> str:
    """The innermost calls of all threads, first those of the thread with this number; the newest call comes last."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented, in spite of its name
    threads = sorted(threading.enumerate(), key=lambda thread: (thread.ident != first, thread.name))
    shown = [thread for thread in threads if thread.ident in frames and thread.name not in OURS]
    return "\n".join(
        f"Thread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident or 0])[-SHOWN:])}"
        for thread in shown
    )


def of_thread(number: int) -> str:
    """The innermost calls of a thread of this process, in one line."""
    frame = sys._current_frames().get(number)  # pyright: ignore[reportPrivateUsage]
    return innermost(traceback.extract_stack(frame)) if frame else "nowhere"


def innermost(calls: traceback.StackSummary) -> str:
    """The last few of these calls, in one line, the newest first."""
    calls = traceback.StackSummary.from_list(calls[-INNERMOST:])
    return " < ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in reversed(calls))


def of_process(pid: int) -> str:
    """The stacks of another process of this host, or why there are none."""
    try:
        state = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return f"process {pid} is gone."
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None or state == psutil.STATUS_ZOMBIE:
        return f"process {pid} is {state}."
    # A process that is stopped cannot be stopped by py-spy, which would wait for it.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PY_SPY_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return f"process {pid} is {state}; py-spy cannot look into it: {error}"
    # Before the threads stands the command line, where people write what nobody else should read.
    return f"process {pid} is {state}:\n{done.stdout[max(0, done.stdout.find('Thread ')) :]}"
