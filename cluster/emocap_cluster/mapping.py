"""Applies a function to many items on the workers of a Ray cluster, with Ray Data.

A worker is a process that first prepares the function, for example loads a model, and then applies it to one item after
another. If a worker or its node dies, Ray Data starts another worker and repeats the unfinished items. So the function
may be called more than once for an item, and must do the same each time.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cloudpickle
import ray.data
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from emocap_cluster.errors import NoCluster, WorkerFailed
from emocap_cluster.placement import Node

Item = TypeVar("Item")
Result = TypeVar("Result")

CORES_OF_A_WORKER = 4  # Used on a cluster without GPUs, if the caller gives no number of workers.
_MOST_BLOCKS = 4096  # Largest number of blocks. Ray Data yields the results of a block together.


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """Holds the number of workers, and the cores and GPUs of each."""

    workers: int
    cores: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[Node], *, workers: int | None, use_gpus: bool) -> "WorkerResources":
        """Divides a cluster among workers.

        Args:
            nodes: The nodes of the cluster. Only those that are alive and not draining are used.
            workers: Number of workers. With None there is one worker for each GPU, or, without GPUs, one for each
                `CORES_OF_A_WORKER` cores of a node.
            use_gpus: Whether each worker gets a GPU, if the cluster has GPUs.

        Raises:
            NoCluster: If the cluster has no usable cores, or fewer GPUs (without GPUs: fewer cores) than workers.
        """
        usable = [node for node in nodes if node.alive and not node.draining]
        gpus = sum(node.gpus for node in usable) if use_gpus else 0
        cores = sum(node.cpus for node in usable)
        devices, name = (gpus, "GPUs") if gpus else (cores, "cores")
        if not devices or (workers or 1) > devices:
            raise NoCluster(f"the cluster has {devices} {name} for {workers or 1} workers: give fewer workers.")
        if gpus:
            return cls(workers or gpus, 1, 1)
        if workers is not None:
            return cls(workers, max(1, min(cores // workers, max(node.cpus for node in usable))), 0)
        each = min(CORES_OF_A_WORKER, max(node.cpus for node in usable))
        return cls(max(1, sum(node.cpus // each for node in usable)), each, 0)


class _Worker:
    """Applies the function to items. Ray Data constructs one object in each worker, and calls it for each row.

    An error is returned and not raised, because Ray Data would start the worker again several times after an error, and
    wrap the error into others.
    """

    def __init__(self, start: bytes, env: Mapping[str, str]) -> None:
        logging.getLogger().setLevel(logging.WARNING)  # Ray sets INFO, with which every library would print messages.
        os.environ.update(env)
        self._act: Callable[[Any], Any] | None = None
        self._failure = b""
        try:
            self._act = cloudpickle.loads(start)()
        except Exception as error:  # noqa: BLE001 - the driver raises it
            self._failure = _pickled(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._act is None:
            return {"result": b"", "error": self._failure}
        try:
            return {"result": cloudpickle.dumps(self._act(cloudpickle.loads(row["item"]))), "error": b""}
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return {"result": b"", "error": _pickled(error)}


def _pickled(error: Exception) -> bytes:
    try:
        return cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - an error may hold any value
        return cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))


def map_items(
    start: Callable[[], Callable[[Item], Result]],
    items: Iterator[Item],
    resources: WorkerResources,
    *,
    env: Mapping[str, str],
) -> Iterator[Result]:
    """Yields the results of all items in the order in which they are finished. Ray must be connected (`cluster`).

    Args:
        start: Called once in each worker. It returns the function that is applied to the items. `start` and the items
            are pickled.
        items: The items.
        resources: The workers.
        env: Environment variables of the workers. They may be secret, because Ray never displays them.

    Raises:
        WorkerFailed: If `start` or the function raises an error, which is then `cause`; or if Ray cannot run the
            workers.
    """
    rows = [{"item": cloudpickle.dumps(item)} for item in items]
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.log_internal_stack_trace_to_stdout = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # It prints its plan, and errors that are raised below.
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
        _Worker,  # pyright: ignore[reportArgumentType] - Ray Data also takes a class
        fn_constructor_args=(cloudpickle.dumps(start), dict(env)),
        concurrency=min(resources.workers, len(rows)),
        num_cpus=resources.cores,
        num_gpus=resources.gpus,
    )
    try:
        for row in data.iter_rows():
            if row["error"]:
                cause: Exception = cloudpickle.loads(row["error"])
                raise WorkerFailed(str(cause) or type(cause).__name__, cause=cause) from cause
            yield cloudpickle.loads(row["result"])
    except (RayError, SystemException) as error:
        raise WorkerFailed(f"a worker failed: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
