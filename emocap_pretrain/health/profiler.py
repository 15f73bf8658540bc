"""Records steps with torch's profiler on request, as traces that open in Perfetto.

<run>/profiles/7f3a.json                              the steps and traces of a request
<run>/profiles/step-00000121-rank-00000.json.gz       a trace; step 121 is the first in it

A user's request arrives as a file in the run's folder. Rank 0 reads it, the monitor broadcasts it, and all ranks call
`Profiler.start` after the same step. Rank 0 stores an answer before the traces exist. The answer lists the paths at
which the traces will be stored, or says why the request is refused.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from emocap_shards.background import Background
from emocap_shards.store import Store
from torch.profiler import ProfilerActivity

from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import PROFILE_ANSWER, ProfileAnswer, ProfileRequest

FOLDER = "profiles"

log = logging.getLogger(__name__)


def trace_path(step: int, rank: int) -> str:
    """Returns the path of a rank's trace in the run's folder; `step` is the first step of the trace."""
    return f"{FOLDER}/step-{step:08d}-rank-{rank:05d}.json.gz"


class Profiler:
    """Records and uploads the traces of one rank. Errors are logged and do not end training, but the trace is lost.

    All ranks call `start` with the same arguments. Therefore all ranks accept or refuse the same requests. Only the
    ranks that a request names record a trace; a request without ranks names all of them.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._thread = Background("emocap-profile")  # It exports and uploads, while the next steps are trained.
        self._profile: torch.profiler.profile | None = None
        self._first_step = self._last_step = -1

    @property
    def recording(self) -> bool:
        """Returns whether this rank records now."""
        return self._profile is not None

    def start(self, request: ProfileRequest, step: int) -> None:
        """Begins to record the requested number of steps, from step `step` + 1 on.

        If a recording is in progress, or if the request names a rank that the run does not have, it is refused.
        """
        # All ranks know the steps of the recording, also those that do not record, so all refuse the same requests.
        if refused := self._refusal(request, step):
            self._store_answer(request, ProfileAnswer(refused=refused))
            return
        ranks = request.ranks or range(self._world_size)
        self._first_step, self._last_step = step + 1, step + request.steps
        traces = tuple(trace_path(self._first_step, rank) for rank in ranks)
        self._store_answer(request, ProfileAnswer((self._first_step, self._last_step), traces))
        if self._rank in ranks:
            self._log_errors(self._start)

    def stop_after(self, step: int) -> None:
        """Stops the recording if its last step is `step` or an earlier one, and uploads the trace in a thread."""
        if self._profile and step >= self._last_step:
            self._log_errors(self._stop)

    def close(self, wait_s: float) -> None:
        """Stops a recording that is not complete, and waits at most `wait_s` seconds for the uploads of traces."""
        if self._profile:
            self._log_errors(self._stop)
        # The thread works in order: once an empty task at the end of its queue is done, all uploads are.
        self._log_errors(lambda: self._thread.submit(lambda: None).result(wait_s))
        self._thread.close()

    def _refusal(self, request: ProfileRequest, step: int) -> str:
        """Returns why a request that comes after `step` is refused; an empty text if it is accepted."""
        if step < self._last_step:
            steps = f"{self._first_step} to {self._last_step}"
            return f"steps {steps} are being recorded; repeat the command after these steps"
        # A command that asked only for ranks that do not exist would otherwise succeed without a trace.
        if missing := [rank for rank in request.ranks or () if rank >= self._world_size]:
            return f"rank {missing[0]} does not exist; the last rank of the run is {self._world_size - 1}"
        return ""

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
            self._thread.submit(lambda: self._log_errors(lambda: self._upload(profile, path)))

    def _upload(self, profile: torch.profiler.profile, path: str) -> None:
        with tempfile.TemporaryDirectory(prefix="emocap-profile-") as folder:
            trace = Path(folder) / Path(path).name  # The ending .gz makes torch compress the file.
            profile.export_chrome_trace(str(trace))
            self._store.put_file(path, trace)
        log.info("the trace of rank %d is stored as %s/%s", self._rank, self._store.url, path)

    def _store_answer(self, request: ProfileRequest, answer: ProfileAnswer) -> None:
        """Stores the answer to a request, in the profiler's thread. Only rank 0 stores it."""
        if self._rank == 0:
            act = partial(storage.write, self._store, f"{FOLDER}/{request.id}.json", PROFILE_ANSWER, answer)
            self._thread.submit(lambda: self._log_errors(act))

    def _log_errors(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever the profiler or the store raises, training continues
            log.warning("the profile of rank %d failed: %s", self._rank, str(error) or type(error).__name__)
