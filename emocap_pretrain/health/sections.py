"""Measures the parts of a step: data, forward, loss, backward, update, and saving after those that save."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch.profiler import record_function

SECTIONS = ("data", "forward", "loss", "backward", "update", "saving")
HOSTS = frozenset({"data", "saving"})  # What matters of these is how long the host is held up.
UNREAD_EVENTS = 4096  # Pairs of CUDA events that wait for a reading at most; those that are over are added up then.

Pair = tuple[torch.cuda.Event, torch.cuda.Event]


def _nobody_listens(_name: str) -> None: ...


@dataclass(slots=True)
class Sections:
    """Seconds that pass in named sections of a step.

    On a GPU a section is timed by events on its stream, so nothing waits for the device before `read`. "data" and
    "saving" are the host's own waiting and are timed by its clock everywhere. `entered` hears the name of each section
    at its begin; `recorded` puts sections into the trace of torch's profiler, which costs as much as all the rest.
    """

    device: str
    entered: Callable[[str], None] = _nobody_listens
    recorded: bool = False
    _seconds: dict[str, float] = field(default_factory=dict[str, float])
    _pairs: dict[str, list[Pair]] = field(default_factory=dict[str, list[Pair]])
    _steps: int = 0

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Time in here is time of the section `name`; sections do not nest. "update" ends a step."""
        self.entered(name)
        on_device = self.device.startswith("cuda") and name not in HOSTS
        with (
            record_function(name) if self.recorded else nullcontext(),
            self._on_device(name) if on_device else self._on_host(name),
        ):
            yield
        self._steps += name == "update"

    def read(self) -> dict[str, float]:
        """Seconds for each step since the last reading, by section; waits for the device. 0 without a step."""
        for name, pairs in self._pairs.items():
            self._add_up(name, pairs)
        steps = self._steps or 1
        seconds = {name: self._seconds.get(name, 0.0) / steps for name in SECTIONS}
        self._seconds, self._steps = {}, 0
        return seconds

    @contextmanager
    def _on_host(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def _on_device(self, name: str) -> Generator[None]:
        before, behind = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        yield
        behind.record()
        pairs = self._pairs.setdefault(name, [])
        pairs.append((before, behind))
        if len(pairs) >= UNREAD_EVENTS:
            self._add_up(name, pairs)

    def _add_up(self, name: str, pairs: list[Pair]) -> None:
        """Into seconds; the last pair's end means that all are over."""
        if pairs:
            pairs[-1][1].synchronize()
        milliseconds = sum(before.elapsed_time(behind) for before, behind in pairs)
        self._seconds[name] = self._seconds.get(name, 0.0) + milliseconds / 1000
        pairs.clear()
