"""Runs a job's ranks on the nodes of a Ray cluster, and starts them again after failures.

A job is a sequence of attempts (decision 15). `cluster.connected` joins or starts a Ray cluster, and
`supervise.supervise` runs a job on it: `placement` computes the number of ranks, `ranks` starts one attempt, and driver
and ranks exchange messages through the `board`. `relaunch.relaunch` runs the command of another launcher, such as
torchrun, and runs it again after failures. `supervise` and `relaunch` use the rules in `restarts` to decide what
follows the end of an attempt. `runtime` gives a rank its number and device, and connects it to the driver.

The package does not import the training code. It learns the state of a run through the protocols `SupervisedRun` and
`RelaunchedRun`, which the training code implements. torch is imported in `rendezvous` alone.
"""

import os

# Ray reads these variables when it is imported, so they are set here, before any module can import it. Values that the
# user has set are kept.
for _name, _value in {
    # Ray Train polls its workers; its default of 2 s would delay every start and end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # After this time Ray Train gives up placing the ranks, and the next attempt uses the remaining nodes. So this is
    # the time that a dead node costs.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # The driver itself polls for draining nodes, once for the job. Ray Train would start an actor for every attempt.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Keeps the node's accelerator variables unchanged; without this setting Ray prints a warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ranks put a shorter prefix before their own lines (output.py).
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    # The driver reports a rank that died, once and in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing",
}.items():
    os.environ.setdefault(_name, _value)
