"""Where the ranks of a job's own cluster meet: a torch store that listens on the loopback interface alone.

torch's store listens on all interfaces of rank 0's host, asks nobody who he is, and tells each rank where the others
are: a stranger who changes an entry takes part in the job's collectives, some of which carry pickled objects.
"""

import os
import socket
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,  # pyright: ignore[reportPrivateUsage]
    _setup_torch_process_group,  # pyright: ignore[reportPrivateUsage]
    _TorchBackend,  # pyright: ignore[reportPrivateUsage]
)
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

LOOPBACK = "127.0.0.1"
# Of this process, if it is rank 0. torch has one server for each port of a process: the store that
# `init_process_group` asks for finds this one, and does not open another.
_open: list[TCPStore] = []


class LoopbackConfig(TorchConfig):
    """Ray Train's settings of torch, for ranks that are all on this host."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set the ranks up as Ray 2.60 does, but for the store."""
        port = worker_group.execute_single(0, open_store)
        worker_group.execute(_name_store, port)
        worker_group.execute(_set_torch_distributed_env_vars)
        ranks = len(worker_group)
        meetings = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=ranks,
                init_method="env://",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(ranks)
        ]
        ray.get(meetings)


def open_store() -> int:
    """Open the store in this process, which will be rank 0; returns its port."""
    listener = socket.create_server((LOOPBACK, 0))
    port: int = listener.getsockname()[1]
    descriptor = listener.detach()
    _open.append(
        TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=descriptor,
        )
    )
    return port


def _name_store(port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = LOOPBACK, str(port)
