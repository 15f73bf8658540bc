"""A pool of gloo ranks for the whole test session. Starting ranks for every test would cost seconds each."""

from __future__ import annotations

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
from rank_server import server

LARGEST = 4
Job = Callable[[Any, int, Any], Any]


def _serve(rank: int, store_path: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    # The losses see two ranks on each machine.
    os.environ["EMOCAP_NODE"] = str(rank // 2)
    store = dist.FileStore(store_path, LARGEST)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=LARGEST, timeout=timedelta(seconds=60))
    groups = {size: dist.new_group(list(range(size))) for size in range(1, LARGEST + 1)}
    while True:
        job, size, payload = pickle.loads(pipe.recv_bytes())
        if job is None:
            break
        try:
            answer: tuple[Any, str | None] = (job(groups[size], rank, payload), None)
        except Exception:  # noqa: BLE001  (the test that started the job gets it)
            answer = (None, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


class RankPool:
    """Starts `LARGEST` processes once, and runs a function of (group, rank, payload) on one of them per payload."""

    def __init__(self) -> None:
        context = server()
        self._folder = tempfile.TemporaryDirectory()
        store_path = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(LARGEST):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store_path, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, job: Job, payloads: list[Any]) -> list[Any]:
        """Runs `job` on as many ranks as there are payloads, and returns their answers in rank order.

        Raises:
            RuntimeError: If a rank failed. The message holds the traceback of every rank that did.
        """
        answers = self.try_run(job, payloads)
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [value for value, _ in answers]

    def try_run(self, job: Job, payloads: list[Any]) -> list[tuple[Any, str | None]]:
        """Returns (answer, None), or (None, traceback), of every rank."""
        pipes = self._pipes[: len(payloads)]
        for pipe, payload in zip(pipes, payloads, strict=True):
            pipe.send_bytes(pickle.dumps((job, len(payloads), payload)))
        return [pickle.loads(pipe.recv_bytes()) for pipe in pipes]

    def close(self) -> None:
        """Ends all ranks."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((None, 0, None)))
        for process in self._processes:
            process.join(timeout=10)
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()
