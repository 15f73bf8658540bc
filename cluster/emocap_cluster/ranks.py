"""Runs one attempt: calls a function on every rank of a job, under Ray Train.

`start` runs in the driver and returns at once. In a thread of the driver, `_fit` starts Ray Train and blocks until all
ranks have ended; `_failure` turns Ray Train's errors into a `RankFailed`. In the process of each rank, `_act` makes the
preparations and then calls the job's function. Decision 15 says why an attempt is one `fit` of Ray Train.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from emocap_cluster.causes import end_of_process, unwrapped
from emocap_cluster.errors import RankFailed
from emocap_cluster.output import name_lines
from emocap_cluster.placement import Placement
from emocap_cluster.rendezvous import LoopbackConfig
from emocap_cluster.runtime import RayRuntime

Function = Callable[[RayRuntime], Any]

# Retries are decided in supervise.py, because the next attempt may have another number of ranks. Ray Train counts
# failed ranks, failures of its controller, and announced losses of nodes; by default it sets no limit to the last two.
NO_RETRIES = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)


def start(
    function: Function, *, placement: Placement, board: Any, env: Mapping[str, str], timeout_s: int, on_loopback: bool
) -> Future[Any]:
    """Calls `function` once on each rank, with the torch process group initialised.

    The returned future is done when all ranks have ended. Its result is what `function` has returned on rank 0. It
    raises `RankFailed` if a rank raised an error or died.

    Args:
        function: A picklable function, whose results are picklable too.
        placement: Number of ranks, and the resources that each rank holds.
        board: The actor through which the driver asks the ranks to stop.
        env: Environment variables of the ranks. They may be secret: they are sent together with the function, and Ray's
            dashboard does not show them.
        timeout_s: Longest wait in a collective.
        on_loopback: Whether all ranks are on this host and must not listen on other interfaces.
    """
    future: Future[Any] = Future()
    act = partial(_fit, partial(_act, function, board, dict(env)), placement, _torch(placement, timeout_s, on_loopback))

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - the future raises it where the result is requested
            future.set_exception(error)

    # In the main thread Ray Train would handle SIGINT, and end the ranks without a checkpoint. The thread is a daemon,
    # so a driver that gives up does not wait for it.
    threading.Thread(target=run, name="attempt", daemon=True).start()
    return future


# Each of these two callbacks starts an actor, which is a process, for every attempt. The cleaner requests Ray's State
# API every second, which does not exist in a cluster without a dashboard. It also leaks the devices of a rank that dies
# while it is started; `Cluster.release` frees them in every case (decision 19). The other one serves Ray Data, which no
# rank uses.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)


class _Trainer(TorchTrainer):
    """Ray Train's trainer without the default callbacks in `_UNUSED`, which start actors that no rank needs.

    It overrides a private method, because Ray 2.60 has no setting for its default callbacks.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, _UNUSED)]


def _torch(placement: Placement, timeout_s: int, on_loopback: bool) -> TorchConfig:
    config = LoopbackConfig if on_loopback else TorchConfig
    return config(backend="nccl" if placement.on_gpu else "gloo", timeout_s=timeout_s)


def _fit(function: Callable[[], Any], placement: Placement, torch_config: TorchConfig) -> Any:
    # Ray Train stores only files of its own here. Checkpoints go to the run's folder, past Ray Train.
    with tempfile.TemporaryDirectory(prefix="emocap-ray-") as folder:
        trainer = _Trainer(
            function,
            scaling_config=ScalingConfig(
                num_workers=placement.ranks,
                use_gpu=placement.on_gpu,
                resources_per_worker=placement.held,
                placement_strategy=placement.strategy,
            ),
            torch_config=torch_config,
            run_config=RunConfig(
                storage_path=folder,
                failure_config=NO_RETRIES,
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise _failure(error) from error
        except RayActorError as error:
            _, message = end_of_process(str(error))
            raise RankFailed(f"Ray Train's controller has ended: {message}") from error


def _act(function: Function, board: Any, env: Mapping[str, str]) -> Any:
    # An error of a rank reaches the driver as the cause of the failure, so the rank does not need to print it.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.WARNING)  # Ray sets INFO, with which every library would print messages.
    # The variables come with the function and not in Ray's runtime environment, which its dashboard shows.
    os.environ.update(env)
    name_lines(ray.train.get_context().get_world_rank())
    return function(RayRuntime(board))


def _failure(error: TrainingFailedError) -> RankFailed:
    # Ray Train raises one of two classes: one with the errors of ranks, or one with the error of its controller.
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if failures:
        return RankFailed("ranks failed", errors={rank: unwrapped(each) for rank, each in failures.items()})
    reason = getattr(error, "controller_failure", error)
    # Ray Train raises the error itself, or one with its traceback as text, depending on the phase of the start.
    if isinstance(reason, RayActorError) or "ActorDiedError" in str(reason):
        _, message = end_of_process(str(reason))
        return RankFailed(f"a rank ended while Ray started it: {message}")
    return RankFailed(f"Ray could not start the ranks: {_last_line(reason)}")


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
