"""Tests what Ray Train itself may do after a failure. test_supervise.py tests attempts on a real Ray."""

import pytest
from emocap_cluster.ranks import NO_RETRIES
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError


def died(*, preempted: bool) -> WorkerGroupError:
    actor = RayActorError("a", "The actor died because its node has died.", preempted=preempted)
    return WorkerGroupError("failed", {0: RuntimeError("gloo"), 1: WorkerHealthCheckFailedError("failed", actor)})


@pytest.mark.parametrize(
    "error",
    [died(preempted=True), died(preempted=False), ControllerError(WorkerGroupStartupTimeoutError(2))],
    ids=["a rank died with an announced node", "a rank died", "the ranks did not start"],
)
def test_ray_train_raises_an_error_to_the_driver_and_starts_no_rank_again(error: TrainingFailedError) -> None:
    assert DefaultFailurePolicy(NO_RETRIES).make_decision(error) is FailureDecision.RAISE
