"""Finds ranks that are lost or hang, and ends the processes of all ranks, because none can continue without the others.

Five classes share this work:

- `Heartbeat` is a rank's report of its position: the step and phase in which its training thread is. Each rank writes
  one every second into the job's store, torch's `TCPStore` on rank 0's host.
- `HeartbeatExchange` writes and reads heartbeats in a thread.
- `FailureDetector` decides which ranks have failed or hang. It has no I/O.
- `Diagnosis` says why the job cannot continue.
- `Watchdog` prints and stores a diagnosis in another thread, and ends the process with exit code 70.

`watch_ranks` starts both threads on one rank.

The modules are best read in the order `heartbeat`, `detector`, `exchange`, `watchdog` (decision 30). docs/health.md
lists the faults, the message for each of them, and the time until it is found.
"""

from emocap_pretrain.health.liveness.detector import Diagnosis, FailureDetector
from emocap_pretrain.health.liveness.exchange import HeartbeatExchange
from emocap_pretrain.health.liveness.heartbeat import Heartbeat
from emocap_pretrain.health.liveness.watchdog import Watchdog, watch_ranks

__all__ = ["Diagnosis", "FailureDetector", "Heartbeat", "HeartbeatExchange", "Watchdog", "watch_ranks"]
