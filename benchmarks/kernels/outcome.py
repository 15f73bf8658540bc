"""Runs a call that may fail, and keeps the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from emocap_kernels.errors import NotSupportedError

from benchmarks.harness.rounds import Skipped

Result = TypeVar("Result")
OUT_OF_MEMORY = "out of memory"


class UnableError(Exception):
    """A contender cannot run. The message says why, and what would help."""


def attempt(call: Callable[[], Result]) -> Result | Skipped:
    """Returns the result of `call`, or the reason why there is none."""
    try:
        return call()
    except (torch.OutOfMemoryError, MemoryError):
        reason = OUT_OF_MEMORY
    except (UnableError, NotSupportedError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a peer may raise anything, and the record holds the message
        reason = _first_line(error)
    # After the handler, the traceback and the tensors that its frames held are freed.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return Skipped(reason)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    # torch has no exception type for a CPU without enough memory.
    if "can't allocate memory" in text or "not enough memory" in text:
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:200]
