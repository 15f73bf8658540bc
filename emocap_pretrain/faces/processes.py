"""Runs `mediapipe_program.py` in several processes, in an environment of their own."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Generic, Self, TypeVar

import numpy as np
from emocap_shards.mask import masked

from emocap_pretrain.bulk.pictures import Cropper
from emocap_pretrain.errors import DataError
from emocap_pretrain.faces import mediapipe_program
from emocap_pretrain.faces.environment import IsolatedEnvironment
from emocap_pretrain.inference.embedder import Crop

MEDIAPIPE = IsolatedEnvironment("mediapipe", Path(__file__).with_name("mediapipe_packages.txt"), newest_python=12)
_PROGRAM = mediapipe_program.__file__
_LAST_BYTES = 2000  # Of what a process printed before it ended.

Answer = TypeVar("Answer")


def program_digest() -> str:
    """Returns a digest of the program, of its packages with their versions, and of the version of Python."""
    return hashlib.sha256(MEDIAPIPE.digest().encode() + Path(_PROGRAM).read_bytes()).hexdigest()


def program(*arguments: str) -> list[str]:
    """Returns the command that starts the program; the environment is made first if there is none.

    Raises:
        ConfigError: If the environment cannot be made (`IsolatedEnvironment.python`).
    """
    # -I: neither the current folder nor variables of the user's environment decide what is imported.
    return [str(MEDIAPIPE.python(lambda _: None)), "-I", _PROGRAM, *arguments]


class ImageProcess(Generic[Answer]):
    """Asks one process about one image at a time."""

    def __init__(self, command: Sequence[str], read: Callable[[Callable[[int], bytes]], Answer]) -> None:
        """Starts the process, and waits until its model is loaded.

        Args:
            command: The command.
            read: Reads one answer. Its argument returns the next bytes of the answers, exactly as many as asked for.

        Raises:
            DataError: If the process ends before.
        """
        self._read = read
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        self._take(len(mediapipe_program.READY))

    def ask(self, image: Crop) -> Answer:
        """Returns the answer to an image.

        Raises:
            DataError: If the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(mediapipe_program.SIZE.pack(*image.shape[:2]))
            self._process.stdin.write(np.ascontiguousarray(image))
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # A ValueError if the process has failed before, and is closed.
            raise self._failure() from error
        return self._read(self._take)

    def _take(self, size: int) -> bytes:
        assert self._process.stdout is not None
        taken = self._process.stdout.read(size)
        if len(taken) != size:
            raise self._failure()
        return taken

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


class WholeImage:
    """Implements `Cropper`: images are read as they are."""

    def square(self, image: Crop) -> Crop:
        return image


class ImageProcesses(Generic[Answer]):
    """Asks several processes about many images."""

    def __init__(
        self, command: Sequence[str], read: Callable[[Callable[[int], bytes]], Answer], processes: int
    ) -> None:
        """Starts the processes (`ImageProcess`).

        Raises:
            DataError: If one of them ends at its start.
        """
        self._idle: SimpleQueue[ImageProcess[Answer]] = SimpleQueue()
        with ExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(processes, "emocap-faces"))
            starting = [self._threads.submit(ImageProcess, command, read) for _ in range(processes)]
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
        """Returns what leaves images as they are, for scorers of `bulk`."""
        return WholeImage()

    def ask(self, images: Sequence[Crop]) -> list[Answer]:
        """Returns the answer to each image.

        Raises:
            DataError: If a process has ended.
        """
        return list(self._threads.map(self._ask, images))

    def _ask(self, image: Crop) -> Answer:
        process = self._idle.get()
        try:
            return process.ask(image)
        finally:
            self._idle.put(process)


def _end(starting: "Future[ImageProcess[Answer]]") -> None:
    if starting.exception() is None:
        starting.result().close()
