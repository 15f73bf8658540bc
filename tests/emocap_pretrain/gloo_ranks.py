"""Runs ranks as processes over gloo, forked from one server process that has imported everything already.

DeepSpeed keeps the process groups that it once made, so every job gets processes of its own.
"""

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from rank_server import server

from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

Act = Callable[..., Any]


def on_gloo(ranks: int, act: Act, *arguments: Any) -> list[Any]:
    """Returns what `act(world, *arguments)` gives on every rank, in rank order."""
    context = server()
    # A store of TCP, as launchers make it: the failure detector asks it for its address.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    pipes: list[Connection] = []
    processes: list[Any] = []
    for rank in range(ranks):
        here, there = context.Pipe()
        job = (rank, ranks, store.port, there, act, arguments)
        processes.append(context.Process(target=_serve, args=job, daemon=True))
        processes[-1].start()
        there.close()
        pipes.append(here)
    try:
        return [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(pipe: Connection, rank: int) -> Any:
    try:
        value, error = pipe.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} ended without an answer") from None
    assert error is None, f"rank {rank}:\n{error}"
    return value


def _serve(rank: int, ranks: int, port: int, pipe: Connection, act: Act, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    world = RankGroup(Rank(rank, ranks, rank, ranks), "cpu", dist.group.WORLD if ranks > 1 else None)
    try:
        pipe.send((act(world, *arguments), None))
    except BaseException:  # noqa: BLE001 - it travels to the test that asked
        pipe.send((None, traceback.format_exc()))
    # Killed by the parent; ending by itself would tear down threads that DeepSpeed left running.
    pipe.poll(None)
