"""Measures how long the sections of a step take: data, forward, loss, backward, update and saving.

Sections serve three purposes. Their times are metrics. They appear in the traces of the profiler. Their names are also
phases of the rank's position (`health/position.py`), which tells the other ranks what this rank is doing.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch.profiler import record_function

SECTIONS: tuple[str, ...] = ("data", "forward", "loss", "backward", "update", "saving")
# In these sections the host works or waits, while the device may be idle.
HOST_SECTIONS = frozenset({"data", "saving"})
# Once a section has this many pairs of CUDA events, their times are added up, without waiting for the next `read`. So
# the number of events is bounded if steps are logged rarely.
MAX_PENDING_PAIRS = 4096

EventPair = tuple[torch.cuda.Event, torch.cuda.Event]


def _ignore(_name: str) -> None: ...


@dataclass(slots=True)
class SectionTimer:
    """Measures the seconds that the named sections of a step take on one rank.

    On a GPU a section is timed by CUDA events on the current stream, because the host only queues the work: the host's
    clock would measure the time of the queueing. The sections "data" and "saving" are measured by the host's clock on
    every device. The timer waits for the device only in `read`, and once in every `MAX_PENDING_PAIRS` uses of a
    section.

    Attributes:
        device: The name of the rank's torch device, such as `cuda:3` or `cpu`.
        on_enter: A function that is called with the name of each section when the section begins.
        record: Whether sections appear in the trace of torch's profiler. The default is False, because an entry in the
            trace costs more time than the measurement of the section.
    """

    device: str
    on_enter: Callable[[str], None] = _ignore
    record: bool = False
    _seconds: dict[str, float] = field(default_factory=dict[str, float])
    _pairs: dict[str, list[EventPair]] = field(default_factory=dict[str, list[EventPair]])
    _steps: int = 0

    @contextmanager
    def measure(self, name: str) -> Generator[None]:
        """Adds the time of the `with` block to the section `name`. The section "update" ends a step.

        Sections must not be nested, because the inner time would count twice. The time of a block that raises an error
        is not counted.
        """
        self.on_enter(name)
        on_device = self.device.startswith("cuda") and name not in HOST_SECTIONS
        with (
            record_function(name) if self.record else nullcontext(),
            self._time_on_device(name) if on_device else self._time_on_host(name),
        ):
            yield
        self._steps += name == "update"

    def read(self) -> dict[str, float]:
        """Returns how many seconds each section has taken per step, as a mean over the steps since the last call.

        The sections are in the order of `SECTIONS`. The call waits for the device. If no step has ended since the last
        call, there is no mean, and the values are the sums of the seconds since then.
        """
        for name, pairs in self._pairs.items():
            self._add_up(name, pairs)
        steps = self._steps or 1
        seconds = {name: self._seconds.get(name, 0.0) / steps for name in SECTIONS}
        self._seconds, self._steps = {}, 0
        return seconds

    @contextmanager
    def _time_on_host(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def _time_on_device(self, name: str) -> Generator[None]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        pairs = self._pairs.setdefault(name, [])
        pairs.append((begin, end))
        if len(pairs) >= MAX_PENDING_PAIRS:
            self._add_up(name, pairs)

    def _add_up(self, name: str, pairs: list[EventPair]) -> None:
        """Adds the time between the two events of each pair to `_seconds`, and drops the pairs."""
        if pairs:
            pairs[-1][1].synchronize()  # Events of a stream happen in order, so all earlier ones have happened too.
        milliseconds = sum(begin.elapsed_time(end) for begin, end in pairs)
        self._seconds[name] = self._seconds.get(name, 0.0) + milliseconds / 1000
        pairs.clear()
