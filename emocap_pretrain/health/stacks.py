"""What threads are doing: of this process by faulthandler, of another one on this host by py-spy."""

import faulthandler
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import psutil

PY_SPY_S = 15
INNERMOST = 3


def own() -> str:
    """The stacks of all threads, newest call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def training_thread() -> str:
    """The innermost calls of the main thread, in one line."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # pyright: ignore[reportPrivateUsage]
    calls = traceback.extract_stack(frame)[-INNERMOST:] if frame else []
    return " < ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in reversed(calls))


def of_process(pid: int) -> str:
    """The stacks of another process of this host, or why there are none."""
    if not psutil.pid_exists(pid):
        return f"process {pid} is gone"
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        return f"process {pid} is {psutil.Process(pid).status()}; with py-spy installed its stacks would stand here"
    # A process that is stopped cannot be stopped by py-spy, which would wait for it.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PY_SPY_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return f"py-spy cannot look into process {pid}: {error}"
    return done.stdout
