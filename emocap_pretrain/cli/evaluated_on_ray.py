"""Runs the tasks of `emocap evaluate` on the ranks of a Ray cluster.

The process of the command is the driver. It opens the model and checks the options before Ray starts anything, sends
the model to the ranks, and gets their results back, so the files of the command are written where it was started. If a
rank dies, the driver starts all ranks again, by the rules of a training run (decision 15).
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emocap_pretrain import run
from emocap_pretrain.cli.evaluated_model import ComputedResults, Evaluation, EvaluationRequest, PreparedModel, prepare
from emocap_pretrain.errors import ConfigError, LostContact
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.ranks.runtime import Runtime, launched
from emocap_pretrain.record import ResultRecord

if TYPE_CHECKING:
    from emocap_cluster.placement import Node, ResourceRequest

REPORT_S = 10.0  # Time for a rank that failed to report it, before another rank reports that it has lost contact.

log = logging.getLogger(__name__)


class _Lines:
    """Shows the driver's lines on stderr, because `--json` prints the results alone on stdout.

    It implements the protocol `ProgressDisplay` of `emocap_cluster.supervise`.
    """

    def say(self, line: str) -> None:
        log.info("%s", line)

    def show_progress(self, step: int, steps: int, note: str) -> None:
        """Does nothing, because the ranks of an evaluation report no steps."""


def evaluated_on_ray(request: EvaluationRequest, device: str, ranks: int | None) -> Evaluation:
    """Opens the model, runs the tasks on ranks of a Ray cluster, and returns the model with its results.

    Args:
        request: What is evaluated.
        device: "cpu", "cuda", or "auto", which is "cuda" if the cluster has GPUs.
        ranks: Number of ranks. With None there is one for each GPU, or, without GPUs, one for each node and at least 2.

    Raises:
        ConfigError: If a launcher has started this process as a rank; if the cluster has fewer GPUs than ranks, or none
            for `device` "cuda"; or as `evaluated_model.evaluated` does, also if a rank has raised the error.
        CheckpointError, ShardsError: If the model or the dataset cannot be read, before Ray is joined or started.
        NoCluster: If there is no cluster, or if it has ended.
        RankFailed: If the ranks have failed, and were not started again.
    """
    from emocap_cluster.cluster import connected
    from emocap_cluster.errors import RankFailed
    from emocap_cluster.restarts import RestartBudget
    from emocap_cluster.supervise import Job, supervise

    from emocap_pretrain.ranks.join import use_threads

    if launched():
        raise ConfigError("--ray starts the ranks itself: leave it out under torchrun or srun.")
    settings = request.cluster
    use_threads(settings, Rank())  # The driver may draw attention maps, which a single process draws with as many.
    prepared = prepare(request)
    with connected(run.RANK_ENVIRONMENT | run.chosen(run.OPEN)) as cluster:
        job = Job(
            function=partial(_on_rank, prepared, request, str(Path.cwd())),
            request=_resources(cluster.nodes(), device, ranks, spread=settings.placement == "spread"),
            restarts=RestartBudget(settings.max_restarts, settings.max_preemptions),
            patience_s=settings.patience_s,
            timeout_s=settings.group_timeout_s,
            env=run.chosen(run.SECRET),
            can_save=False,
        )
        try:
            found = supervise(job, cluster, ResultRecord(), _Lines()).value
        except RankFailed as failed:
            # Every rank has raised this error, and the user corrects it, so no rank is named.
            if isinstance(failed.cause, ConfigError):
                raise failed.cause from failed
            raise
    return Evaluation.of(request, prepared, found)


def _resources(nodes: "Sequence[Node]", device: str, ranks: int | None, *, spread: bool) -> "ResourceRequest":
    """Returns the devices that the job requests. After the loss of a node it continues with any number of ranks.

    Raises:
        ConfigError: If the cluster has too few GPUs.
    """
    from emocap_cluster.placement import ResourceRequest

    gpus = sum(node.gpus for node in nodes if node.alive)
    if device == "cuda" and not gpus:
        raise ConfigError("--device cuda: the cluster has no GPU; leave the option out, or give cpu.")
    on_gpu = device != "cpu" and gpus > 0
    if on_gpu and ranks and ranks > gpus:
        raise ConfigError(f"--ranks {ranks}: the cluster has {gpus} GPUs, one for each rank; give fewer ranks.")
    return ResourceRequest(ranks, least=1, most=sys.maxsize, on_gpu=on_gpu, spread=spread)


def _on_rank(
    prepared: PreparedModel, request: EvaluationRequest, folder: str, runtime: Runtime
) -> ComputedResults | None:
    """Runs the tasks as one rank, and returns the results on rank 0. Ray calls this in a process on the rank's host.

    The arguments arrive as a pickle. Ray passes an error back to the driver, which decides about a restart.
    """
    with run.on_ray_rank(prepared.config):
        from emocap_pretrain.cli.evaluated_model import computed
        from emocap_pretrain.ranks.join import joined, lost_contact

        # Ray starts a rank in another folder. On a host without this one, only absolute paths and URLs can be read.
        with suppress(OSError):
            os.chdir(folder)
        with joined(request.cluster, runtime) as world:
            try:
                found = computed(prepared, request, world.patient("evaluation"), world.device)
            except Exception as error:
                # The error of the rank that failed is the one to report. Once Ray knows it, Ray ends this rank too.
                if isinstance(error, LostContact) or lost_contact(error):
                    time.sleep(REPORT_S)
                raise
            return found if world.is_main else None
