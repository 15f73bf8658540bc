"""A pool of gloo ranks that lives for the whole test session: starting ranks for every case would cost seconds each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LARGEST = 4
Job = Callable[[Any, int, Any], Any]


def _serve(rank: int, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    # Two ranks to a machine, as far as the losses know.
    os.environ["EMOCAP_NODE"] = str(rank // 2)
    store = dist.FileStore(meeting, LARGEST)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=LARGEST, timeout=timedelta(seconds=60))
    groups = {size: dist.new_group(list(range(size))) for size in range(1, LARGEST + 1)}
    while True:
        job, size, payload = pickle.loads(pipe.recv_bytes())
        if job is None:
            break
        try:
            answer: tuple[Any, str | None] = (job(groups[size], rank, payload), None)
        except Exception:  # noqa: BLE001  (it travels to the test that asked)
            answer = (None, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


class RankPool:
    """Runs a function of (group, rank, payload) on the first `size` ranks at once."""

    def __init__(self) -> None:
        # The server process imports torch once and forks before any thread of torch exists.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "emocap_kernels"])
        self._folder = tempfile.TemporaryDirectory()
        meeting = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(LARGEST):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, meeting, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, job: Job, payloads: list[Any]) -> list[Any]:
        """One answer for each payload; their number is the world size.

        Raises:
            RuntimeError: With the traceback of every rank that failed.
        """
        answers = self.try_run(job, payloads)
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [value for value, _ in answers]

    def try_run(self, job: Job, payloads: list[Any]) -> list[tuple[Any, str | None]]:
        pipes = self._pipes[: len(payloads)]
        for pipe, payload in zip(pipes, payloads, strict=True):
            pipe.send_bytes(pickle.dumps((job, len(payloads), payload)))
        return [pickle.loads(pipe.recv_bytes()) for pipe in pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((None, 0, None)))
        for process in self._processes:
            process.join(timeout=10)
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()
