"""Measures the global or the local loss of one batch that is divided among several processes.

There are two results. The first one is the time of a step, and its ratio to an ideal time. The ideal time is the time
that one process alone needs for the whole batch, divided by the number of processes. The second result is the number of
bytes that a process receives in a step. It is counted, and also computed by the formula of docs/method.md, section 6.

`across` starts the processes (`_serve`), which join one process group of torch. The times of all processes and of rank
0 alone are measured alternately.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from emocap_kernels.distributed.collectives import count_received_bytes
from torch.multiprocessing.spawn import spawn

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds, seconds_of

from .device import PACKAGES, UnableError, dtype_name
from .subject import BOTH, Call, Size, call_of
from .subjects import PLAIN, SUBJECTS

WHAT = "loss across processes"
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSetting:
    """The setting of a measurement.

    `loss` is "global" or "region". `size` is that of the whole batch, which is divided evenly among the processes.
    `schedule` says how the processes exchange the vectors of their texts. `repeats` is the number of readings.
    """

    loss: str
    size: Size
    processes: int
    schedule: str
    dtype: torch.dtype
    device: torch.device
    repeats: int


def across(setting: RankSetting, about: Occasion) -> Measurement:
    """Starts the processes, each with one thread, and measures the time of forward and backward on the slowest one.

    The record also contains the time that rank 0 alone needs for the whole batch (`alone_s`), and the ratio of the
    measured time to an ideal time, which is `alone_s` divided by the number of processes. And it contains the number of
    bytes that a process receives in a step: the counted number (`vector_bytes`), and the number by the formula of
    docs/method.md, section 6 (`expected_bytes`).

    Raises:
        UnableError: If the rows cannot be divided evenly, or there are fewer GPUs than processes.
    """
    size, processes = setting.size, setting.processes
    if size.rows % processes:
        raise UnableError(f"{size.rows} rows do not divide among {processes} processes.")
    if setting.device.type == "cuda" and torch.cuda.device_count() < processes:
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
            "dtype": dtype_name(setting.dtype),
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


def _serve(rank: int, setting: RankSetting, folder: str, answer: Path) -> None:
    """Runs in each process: joins the process group and measures. Rank 0 writes the results to the file `answer`."""
    torch.set_num_threads(1)
    on_gpu = setting.device.type == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
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


def _measured(setting: RankSetting, rank: int, device: torch.device) -> dict[str, Any]:
    """Returns the results of the measurement by name.

    `alone` is the list of the times of rank 0 for the whole batch, and `seconds` that of the times of the slowest rank
    for its share of the batch. `vector_bytes` is the counted number of bytes that this rank receives in a step, and
    `expected_bytes` is this number by the formula (`_expected`). `backend` is the backend that our loss chooses.
    """
    batch = SUBJECTS[setting.loss].draw(setting.size, setting.dtype, device)
    rows = setting.size.rows // setting.processes
    share = batch.share(slice(rank * rows, (rank + 1) * rows))
    settings = {"group": dist.group.WORLD, "schedule": setting.schedule}
    whole = call_of(lambda each: each.loss(), batch, PLAIN, BOTH)
    local = call_of(lambda each: each.loss(**settings), share, PLAIN, BOTH)
    with count_received_bytes() as received:
        local()
    if rank == 0:
        whole()
    calls: dict[str, Callable[[], float]] = {
        "alone": lambda: _slowest(_timed(whole, device) if rank == 0 else 0.0, device),
        "seconds": lambda: _slowest(_timed(local, device), device),
    }
    texts, own = (len(each.leaves(PLAIN)[1]) for each in (batch, share))
    return {
        **complete(in_rounds(calls, rounds=setting.repeats)),
        "backend": share.backend,
        "vector_bytes": received["vectors"],
        "expected_bytes": _expected(texts - own, own, setting),
    }


def _timed(step: Call, device: torch.device) -> float:
    """Returns the seconds of a step. On a GPU the time ends when the device has finished the step."""

    def finished() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds_of(finished)


def _slowest(seconds: float, device: torch.device) -> float:
    """Returns the longest of the times of all processes.

    This is a collective: all processes must call it. Afterwards they start their next task together.
    """
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def _expected(others: int, own: int, setting: RankSetting) -> int:
    """Returns the bytes that a process receives in a step, by the formula of docs/method.md, section 6.

    The process receives the text vectors of the other processes: twice with the schedule `ring`, and otherwise once.
    From each other process it also receives the gradients of its own texts. `own` is the number of its own texts, and
    `others` that of all other processes together.
    """
    passes = 2 if setting.schedule == "ring" else 1
    numbers = passes * others + (setting.processes - 1) * own
    return numbers * setting.size.width * setting.dtype.itemsize
