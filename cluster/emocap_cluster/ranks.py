"""Run one function on every rank of a job, with Ray Train as the control plane."""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

# Ray Train polls its workers; its default of 2 s is felt at the start and the end of short jobs.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Accelerator variables stay as the node has them; Ray asks for this to be said.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

from emocap_cluster.errors import NoCluster, RankFailed
from emocap_cluster.runtime import RayRuntime

ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What all nodes of the cluster have together."""

    cpus: int
    gpus: int


@contextmanager
def connected(env: Mapping[str, str]) -> Generator[Resources]:
    """Join the cluster of `RAY_ADDRESS` or of this host, or start one on this host for as long as the block lasts.

    Args:
        env: Environment variables for the ranks.

    Raises:
        NoCluster: If Ray can neither be joined nor started.
    """
    _refuse_silence(os.environ.get("RAY_ADDRESS", ""))
    # That a new cluster asks for a token is how it should be, and no warning.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # No rank reacts to Ray's drain signal yet, and its watcher prints an error at every start.
    watcher = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    try:
        ray.init(
            runtime_env={"env_vars": {**env, **watcher}},
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        raise NoCluster(
            f"Ray {f'at RAY_ADDRESS={address} cannot be joined' if address else 'cannot be started here'}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        found = ray.cluster_resources()
        yield Resources(cpus=int(found.get("CPU", 0)), gpus=int(found.get("GPU", 0)))
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Ray tries an address for minutes where nobody answers; an address without a port, such as `auto`, is its own."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise NoCluster(f"nobody answers at RAY_ADDRESS={address} ({error}): correct it, or unset it.") from error


def on_every_rank(
    function: Callable[[RayRuntime], None], *, ranks: int, on_gpu: bool, resources: Resources, timeout_s: int
) -> None:
    """Call `function` once on each of `ranks` processes, with the torch process group made, and wait for all.

    Args:
        function: Picklable; what it returns is dropped.
        ranks: Processes of the job.
        on_gpu: Whether each rank holds one GPU; else each holds its share of the CPUs, at most one.
        resources: What `connected` found.
        timeout_s: Longest wait in a collective.

    Raises:
        NoCluster: If the cluster is too small.
        RankFailed: If a rank raised or died; the first error that a rank raised is its cause.
    """
    held = {"GPU": 1.0} if on_gpu else {"CPU": min(1.0, resources.cpus / ranks)}
    if on_gpu and ranks > resources.gpus:
        raise NoCluster(f"{ranks} ranks need {ranks} GPUs and the cluster has {resources.gpus}; set cluster.ranks.")
    backend = "nccl" if on_gpu else "gloo"
    with tempfile.TemporaryDirectory(prefix="emocap-ray-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            partial(_act, function),
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu=on_gpu, resources_per_worker=held),
            torch_config=ray.train.torch.TorchConfig(backend=backend, timeout_s=timeout_s),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _failure(error) from error


def _act(function: Callable[[RayRuntime], None]) -> None:
    # What a rank raises reaches the driver whole, as the cause of the failure; not every rank need print it too.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    function(RayRuntime())


def _failure(error: TrainingFailedError) -> RankFailed:
    """The failure of a rank without the framework's frames around it.

    When one rank raises, the others fail in their next collective: an error of our own packages says more than theirs.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = {rank: _unwrapped(each) for rank, each in sorted(failures.items())}
    if not causes:
        return RankFailed(f"Ray Train could not run the job: {str(error).splitlines()[-1]}")
    rank, cause = next(
        ((rank, cause) for rank, cause in causes.items() if type(cause).__module__.startswith("emocap_")),
        next(iter(causes.items())),
    )
    return RankFailed(f"rank {rank} failed: {cause}", cause=cause)


def _unwrapped(error: Exception) -> Exception:
    inner = getattr(error, "cause", None) or error.__cause__ or getattr(error, "_base_exc", None)
    return _unwrapped(inner) if isinstance(inner, Exception) else error
