"""Injects the faults of a drill into ranks: Python imports this module if its folder is on PYTHONPATH.

The file `$EMOCAP_DRILL/fault.json` describes the fault, for example `{"pace_s": 0.1, "do": "raise", "rank": 1,
"step": 7, "times": 1}`. Every step takes `pace_s` seconds longer. At the step `step`, the rank `rank` executes the act
`do`, at most `times` times in all attempts of the run together.
"""

import importlib.abc
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ENGINE = "emocap_pretrain.training.engine"
ROOM_BYTES = 64 << 20


class Trap(importlib.abc.MetaPathFinder):
    """Replaces the forward pass of the engine, when the engine is imported, by one with faults."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            module.Engine.forward = with_faults(module.Engine.forward)

        loader.exec_module = execute_and_change
        return spec


def with_faults(forward: Callable[..., Any]) -> Callable[..., Any]:
    def delayed(engine: Any, *arguments: Any, **named: Any) -> Any:
        order = ordered()
        time.sleep(order.get("pace_s", 0.0))
        if order.get("step") == engine.step + 1 and order.get("rank") == rank() and once_more(order):
            ACTS[order["do"]]()
        return forward(engine, *arguments, **named)

    return delayed


def ordered() -> dict[str, Any]:
    return dict(json.loads((folder() / "fault.json").read_text()))


def once_more(order: dict[str, Any]) -> bool:
    """Returns whether the act may be executed again. Each act leaves a file, by which the acts are counted."""
    for number in range(order.get("times", 1)):
        try:
            (folder() / f"fault-{order['name']}-{number}").open("x").close()
        except FileExistsError:
            continue
        return True
    return False


def rank() -> int:
    import torch.distributed as dist

    return dist.get_rank()


def folder() -> Path:
    return Path(os.environ["EMOCAP_DRILL"])


def raises() -> None:
    raise ArithmeticError("a drill's error")


def hangs() -> None:
    while True:
        time.sleep(1)


def exhausts() -> None:
    """Raises Python's MemoryError, with a limit just above the memory of this process."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + ROOM_BYTES, hard))
    try:
        bytearray(4 * ROOM_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


ACTS = {"raise": raises, "hang": hangs, "exhaust": exhausts}

if "EMOCAP_DRILL" in os.environ:
    sys.meta_path.insert(0, Trap())
