"""Records steps with torch's profiler on request, as traces that open in Perfetto.

<run>/profiles/7f3a.json                              which steps and ranks a request led to
<run>/profiles/step-00000121-rank-00000.json.gz       a trace; step 121 is the first in it
"""

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from emocap_shards.background import Background
from emocap_shards.store import Store
from torch.profiler import ProfilerActivity

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import PROFILE_ANSWER, ProfileAnswer, ProfileRequest

FOLDER = "profiles"

log = logging.getLogger(__name__)


def trace_path(step: int, rank: int) -> str:
    return f"{FOLDER}/step-{step:08d}-rank-{rank:05d}.json.gz"


class Profiler:
    """Of one rank. What goes wrong here is logged and costs the trace, never the training."""

    def __init__(self, store: Store, *, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._thread = Background("emocap-profile")
        self._profile: torch.profiler.profile | None = None
        self._first_step = self._last_step = -1

    @property
    def active(self) -> bool:
        return self._profile is not None

    def begin(self, request: ProfileRequest, step: int) -> None:
        """Record the steps behind `step`; while a recording is under way another request is refused."""
        if step < self._last_step:  # Equal on all ranks, also on those that do not record.
            refused = f"steps {self._first_step} to {self._last_step} are being recorded"
            self._announce(request, ProfileAnswer(refused=refused))
            return
        ranks = [each for each in request.ranks or range(self._world) if each < self._world]
        self._first_step, self._last_step = step + 1, step + request.steps
        traces = tuple(trace_path(self._first_step, rank) for rank in ranks)
        self._announce(request, ProfileAnswer((self._first_step, self._last_step), traces))
        if self._rank in ranks:
            self._safely(self._start)

    def at(self, step: int) -> None:
        """`step` steps are done."""
        if self._profile and step >= self._last_step:
            self._safely(self._stop)

    def close(self, wait_s: float) -> None:
        """Wait for what is being uploaded; a recording under way is cut short."""
        if self._profile:
            self._safely(self._stop)
        self._safely(lambda: self._thread.submit(lambda: None).result(wait_s))
        self._thread.close()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile:
            profile.stop()
            path = trace_path(self._first_step, self._rank)
            self._thread.submit(lambda: self._safely(lambda: self._upload(profile, path)))

    def _upload(self, profile: torch.profiler.profile, path: str) -> None:
        with tempfile.TemporaryDirectory(prefix="emocap-profile-") as folder:
            trace = Path(folder) / Path(path).name
            profile.export_chrome_trace(str(trace))
            self._store.put_file(path, trace)
        log.info("the trace of rank %d lies in %s/%s", self._rank, self._store.url, path)

    def _announce(self, request: ProfileRequest, answer: ProfileAnswer) -> None:
        """Rank 0 answers for all, in the thread."""
        if self._rank == 0:
            act = partial(storage.write, self._store, f"{FOLDER}/{request.id}.json", PROFILE_ANSWER, answer)
            self._thread.submit(lambda: self._safely(act))

    def _safely(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever the profiler or the store raises, training goes on
            log.warning("no profile of rank %d: %s", self._rank, str(error) or type(error).__name__)
