"""Sets up the rendezvous of torch for a job that has started its own cluster: a store that listens on the loopback
interface alone.

By default torch's store listens on all interfaces of rank 0's host and does not authenticate its clients. The store
tells each rank the addresses of the others. A stranger who changes an entry can join the job's collectives, some of
which transfer pickled objects.

This module is not used if the ranks run on several hosts, because all hosts must then reach the store
(docs/security.md).
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
# The store of this process, if it is rank 0. torch has one server for each port in a process, so the store of
# `init_process_group` uses this server and does not open another.
_open: list[TCPStore] = []


class LoopbackConfig(TorchConfig):
    """Makes Ray Train set up torch for ranks that are all on this host, with a rendezvous on the loopback interface."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Sets up the process groups of the ranks as Ray 2.60 does, but with the store of `open_store`.

        Ray Train calls this in its controller, once for each attempt, before the function of the ranks begins.
        """
        # The store must exist before a rank looks for it. So rank 0 opens it first, and then all ranks learn its port.
        port = worker_group.execute_single(0, open_store)
        worker_group.execute(_name_store, port)
        worker_group.execute(_set_torch_distributed_env_vars)
        ranks = len(worker_group)
        # `init_process_group` is a collective: it returns only after all ranks have called it. So it is started on
        # every rank before the first result is awaited.
        pending = [
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
        ray.get(pending)


def open_store() -> int:
    """Opens the store in this process, which will be rank 0, and returns its port."""
    # The kernel chooses a free port. After `detach` the store owns the socket; otherwise the socket would be closed
    # when `listener` is freed.
    listener = socket.create_server((LOOPBACK, 0))
    port: int = listener.getsockname()[1]
    descriptor = listener.detach()
    _open.append(
        TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            # The other ranks connect later, so the constructor must not wait for them.
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=descriptor,
        )
    )
    return port


def _name_store(port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = LOOPBACK, str(port)
