"""Finds the landmarks of the faces in images, with processes of `find_mesh.py` in an environment of their own."""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Self

import numpy as np
import pyarrow as pa
from emocap_shards.mask import masked
from jaxtyping import Float32

from emocap_pretrain.bulk.compute import Advance, PartComputation, Work, computed_part
from emocap_pretrain.bulk.pictures import Cropper
from emocap_pretrain.bulk.scorers import Columns, Field, vector_field
from emocap_pretrain.errors import DataError
from emocap_pretrain.faces import find_mesh
from emocap_pretrain.faces.environment import IsolatedEnvironment
from emocap_pretrain.inference.embedder import Crop

MESH = IsolatedEnvironment("mediapipe", Path(__file__).with_name("mesh_environment.txt"), newest_python=12)
_PROGRAM = find_mesh.__file__
_LAST_BYTES = 2000  # Of what a process printed before it ended.


class MeshProcess:
    """Finds landmarks with one process, one image at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts the process, and waits until its model is loaded.

        Raises:
            DataError: If the process ends before.
        """
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        if self._output.read(len(find_mesh.READY)) != find_mesh.READY:
            raise self._failure()

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def find(self, image: Crop) -> Float32[np.ndarray, " answer"]:
        """Returns the answer to an image, as `find_mesh.py` describes it.

        Raises:
            DataError: If the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(find_mesh.SIZE.pack(*image.shape[:2]))
            self._process.stdin.write(np.ascontiguousarray(image))
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # A ValueError if the process has failed before, and is closed.
            raise self._failure() from error
        size = 4 * (2 + 3 * find_mesh.POINTS)
        answer = self._output.read(size)
        if len(answer) != size:
            raise self._failure()
        return np.frombuffer(answer, np.float32)

    def _failure(self) -> DataError:
        self._process.kill()
        status = self._process.wait()
        self._errors.seek(0, 2)
        self._errors.seek(max(0, self._errors.tell() - _LAST_BYTES))
        lines = masked(self._errors.read().decode(errors="replace")).splitlines() or ["it printed nothing"]
        self.close()
        cure = "start the same command again; it resumes"
        return DataError(f"the process that finds landmarks has ended (status {status}: {lines[-1].strip()}): {cure}.")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):  # What was not sent to an ended process cannot be flushed.
                if stream is not None:
                    stream.close()


class _WholeImage:
    """Reads images as they are."""

    def square(self, image: Crop) -> Crop:
        return image


class LandmarkScorer:
    """Implements `bulk.scorers.Scorer`: the columns `landmarks`, `passes` and `spread` (`find_mesh.py`)."""

    def __init__(self, command: Sequence[str], processes: int) -> None:
        """Starts the processes.

        Raises:
            DataError: If one of them ends at its start.
        """
        self._idle: SimpleQueue[MeshProcess] = SimpleQueue()
        with ExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(processes, "emocap-landmarks"))
            starting = [self._threads.submit(MeshProcess, command) for _ in range(processes)]
            for each in starting:
                stack.callback(_end, each)
            for each in starting:
                self._idle.put(each.result())
            self._all = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._all.close()

    @property
    def cropper(self) -> Cropper:
        return _WholeImage()

    @property
    def fields(self) -> Sequence[Field]:
        return [
            vector_field("landmarks", 3 * find_mesh.POINTS),
            pa.field("passes", pa.int32()),
            pa.field("spread", pa.float32()),
        ]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        answers = np.stack(list(self._threads.map(self._find, crops)))
        return {"landmarks": answers[:, 2:], "passes": answers[:, 0].astype(np.int32), "spread": answers[:, 1]}

    def _find(self, image: Crop) -> Float32[np.ndarray, " answer"]:
        process = self._idle.get()
        try:
            return process.find(image)
        finally:
            self._idle.put(process)


def _end(starting: "Future[MeshProcess]") -> None:
    if starting.exception() is None:
        starting.result().close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkComputation(PartComputation):
    """Computes parts of landmarks.

    Attributes:
        processes: Number of processes that find landmarks, each with one thread.
    """

    processes: int

    def scorer(self) -> LandmarkScorer:
        """Starts the processes; the environment is made first if there is none.

        Raises:
            ConfigError: If the environment cannot be made (`IsolatedEnvironment.python`).
            DataError: If a process ends at its start.
        """
        # -I: neither the current folder nor variables of the user's environment decide what is imported.
        return LandmarkScorer([str(MESH.python(lambda _: None)), "-I", _PROGRAM], self.processes)

    def started(self) -> Callable[[Work], Advance]:
        """Starts the processes, and returns the function that computes one part (`map_items`)."""
        return partial(computed_part, self, self.scorer())
