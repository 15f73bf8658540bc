"""Finds ranks that are lost or hang, and ends the processes of all ranks, because none can continue without the others.

Five classes share this work:

- `Heartbeat` is a rank's report of its position. Each rank writes one into the job's store every second.
- `HeartbeatExchange` is the thread that writes and reads heartbeats.
- `FailureDetector` decides which ranks have failed or hang. It has no I/O.
- `Diagnosis` says why the job cannot continue.
- `Watchdog` is the thread that prints and stores a diagnosis and ends the process with exit code 70.

`watch_ranks` starts both threads on one rank.

A newcomer reads `heartbeat`, `detector`, `exchange` and `watchdog` in this order (decision 30). docs/health.md lists
which fault is found by which message, and after how long.
"""

from emocap_pretrain.health.liveness.detector import Diagnosis, FailureDetector
from emocap_pretrain.health.liveness.exchange import HeartbeatExchange
from emocap_pretrain.health.liveness.heartbeat import Heartbeat
from emocap_pretrain.health.liveness.watchdog import Watchdog, watch_ranks

__all__ = ["Diagnosis", "FailureDetector", "Heartbeat", "HeartbeatExchange", "Watchdog", "watch_ranks"]
