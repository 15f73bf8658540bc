"""Measures both losses on several processes: the time compared with one process's share of the work, and the bytes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from emocap_kernels import choose_backend, choose_region_backend, contrastive_loss, region_contrastive_loss
from emocap_kernels.distributed.collectives import count_received_bytes
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds

from . import pairs, regions
from .device import PACKAGES
from .local_loss import REGION
from .outcome import UnableError
from .regions import SHARPNESS
from .size import Size
from .subject import leaf

WHAT = "loss across processes"
_TIMEOUT = timedelta(minutes=10)

# Forward and backward of a loss.
Step = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The setting of a measurement. `size` is that of the whole batch, which is divided evenly among processes."""

    loss: str
    size: Size
    processes: int
    schedule: str
    dtype: torch.dtype
    device: str
    repeats: int


def across(setting: Setting, about: Occasion) -> Measurement:
    """Starts the processes, each with one thread, and measures forward and backward on the slowest of them.

    The record has the ratio to one process's share: the time of the whole batch on one process in the same rounds
    (`alone`), divided by the number of processes. It also has the bytes that a process receives in a step, and the
    number by the formula of docs/method.md, section 6.

    Raises:
        UnableError: If the rows cannot be divided evenly, or there are fewer GPUs than processes.
    """
    size, processes = setting.size, setting.processes
    if size.rows % processes:
        raise UnableError(f"{size.rows} rows do not divide among {processes} processes.")
    if setting.device == "cuda" and torch.cuda.device_count() < processes:
        raise UnableError(f"{processes} processes need as many GPUs, and there are {torch.cuda.device_count()}.")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        spawn(_serve, (setting, folder, answer), nprocs=processes)
        found = json.loads(answer.read_text())
    share = [each / processes for each in found["alone"]]
    return measured(
        about,
        found["seconds"],
        what=WHAT,
        contender=found["backend"],
        setting={
            "loss": setting.loss,
            **asdict(size),
            "processes": processes,
            "schedule": setting.schedule,
            "dtype": str(setting.dtype).removeprefix("torch."),
        },
        unit="s",
        ratios={"over one process's share": ratios(found["seconds"], share)},
        more={
            "alone_s": spread(found["alone"]),
            "vector_bytes": found["vector_bytes"],
            "expected_bytes": found["expected_bytes"],
        },
        versions=versions(PACKAGES),
    )


def _serve(rank: int, setting: Setting, folder: str, answer: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device(setting.device, rank) if setting.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(f"{folder}/store", setting.processes),  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=setting.processes,
        timeout=_TIMEOUT,
    )
    found = _measured(setting, rank, device)
    if rank == 0:
        answer.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _measured(setting: Setting, rank: int, device: torch.device) -> dict[str, Any]:
    whole, local, columns, backend = _steps(setting, rank, device)
    with count_received_bytes() as received:
        local()
    if rank == 0:
        whole()
    calls = {
        "alone": lambda: _slowest(_timed(whole, device) if rank == 0 else 0.0, device),
        "seconds": lambda: _slowest(_timed(local, device), device),
    }
    return {
        **complete(in_rounds(calls, rounds=setting.repeats)),
        "backend": backend,
        "vector_bytes": received["vectors"],
        "expected_bytes": _expected(columns, rank, setting),
    }


def _timed(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _slowest(seconds: float, device: torch.device) -> float:
    """Returns the longest time of all processes, which then start their next task together. A collective."""
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def _steps(setting: Setting, rank: int, device: torch.device) -> tuple[Step, Step, list[int], str]:
    """Returns a step of the whole batch, a step of this process's rows, the columns of each process, the backend."""
    rows = setting.size.rows // setting.processes
    mine = slice(rank * rows, (rank + 1) * rows)
    if setting.loss != REGION.name:
        batch = pairs.draw(setting.size, setting.dtype, device)
        own = [leaf(each.detach()[mine], setting.dtype) for each in (batch.image, batch.text)]
        backend = choose_backend(batch.image, batch.text).backend

        def whole() -> object:
            loss = contrastive_loss(batch.image, batch.text, batch.scale).loss
            return torch.autograd.grad(loss, (batch.image, batch.text, batch.scale))

        def local() -> object:
            group, schedule = dist.group.WORLD, setting.schedule
            loss = contrastive_loss(own[0], own[1], batch.scale, group=group, schedule=schedule).loss  # pyright: ignore[reportArgumentType]
            return torch.autograd.grad(loss, (*own, batch.scale))

        return whole, local, [rows] * setting.processes, backend
    return _region_steps(setting, mine, device)


def _region_steps(setting: Setting, mine: slice, device: torch.device) -> tuple[Step, Step, list[int], str]:
    batch = regions.draw(setting.size, setting.dtype, device)
    chosen = (batch.owner >= mine.start) & (batch.owner < mine.stop)
    patches, sentences = (leaf(each.detach(), setting.dtype) for each in (batch.patches[mine], batch.sentences[chosen]))
    owner = batch.owner[chosen] - mine.start
    counts = torch.bincount(batch.owner // (mine.stop - mine.start), minlength=setting.processes).tolist()

    def whole() -> object:
        loss = _local_loss(batch.patches, batch.sentences, batch.owner, batch.scale)
        return torch.autograd.grad(loss, (batch.patches, batch.sentences, batch.scale))

    def local() -> object:
        settings = {"group": dist.group.WORLD, "schedule": setting.schedule}
        loss = _local_loss(patches, sentences, owner, batch.scale, **settings)
        return torch.autograd.grad(loss, (patches, sentences, batch.scale))

    return whole, local, counts, choose_region_backend(patches, sentences).backend


def _local_loss(patches: Tensor, sentences: Tensor, owner: Tensor, scale: Tensor, **settings: Any) -> Tensor:
    return region_contrastive_loss(patches, sentences, owner, scale, sharpness=SHARPNESS, **settings).loss


def _expected(columns: list[int], rank: int, setting: Setting) -> int:
    """Returns the bytes by the formula: texts of the others (twice in a ring), and gradients of own texts from each."""
    others, own = sum(columns) - columns[rank], columns[rank]
    passes = 2 if setting.schedule == "ring" else 1
    numbers = passes * others + (setting.processes - 1) * own
    return numbers * setting.size.width * setting.dtype.itemsize
