"""Nodes, ranks, placement, restarts."""

import os

# Ray reads these when it is imported, so they stand here, before any module can do that. What the person has set wins.
for _name, _value in {
    # Ray Train polls its workers; its default of 2 s is felt at every start and end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ranks that are not placed by then are tried again, on the nodes that are left: a dead node costs this much.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # The driver looks for drains itself: one poll for the job, where Ray Train starts an actor for every attempt.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Accelerator variables stay as the node has them; Ray asks for this to be said.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ranks name their own lines, in fewer columns.
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    # Who died is told once, with the rank, in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing",
}.items():
    os.environ.setdefault(_name, _value)
