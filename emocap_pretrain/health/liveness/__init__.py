"""Finds ranks that are lost or hang, and ends the processes of the job that cannot continue without them.

Five classes share this work:

- `Heartbeat` is the position of a rank, which the rank writes into the job's store once a second.
- `HeartbeatExchange` is the thread that writes and reads heartbeats.
- `FailureDetector` judges heartbeats and times. It has no I/O.
- `Diagnosis` says why the job cannot continue.
- `Watchdog` is the thread that prints and stores a diagnosis and ends the process with exit code 70.

`watch_ranks` starts both threads on one rank.
"""

from emocap_pretrain.health.liveness.detector import Diagnosis, FailureDetector
from emocap_pretrain.health.liveness.exchange import HeartbeatExchange
from emocap_pretrain.health.liveness.heartbeat import Heartbeat
from emocap_pretrain.health.liveness.watchdog import Watchdog, watch_ranks

__all__ = ["Diagnosis", "FailureDetector", "Heartbeat", "HeartbeatExchange", "Watchdog", "watch_ranks"]
