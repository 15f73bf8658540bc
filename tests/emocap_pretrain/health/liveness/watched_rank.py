"""Runs one rank of a job in which RANK has a fault at step 3: `watched_rank.py CONFIG_JSON FAULT RANK [WAIT_S]`.

WAIT_S is the timeout of collectives. Its default is that of the config.
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from emocap_shards.store import open_store

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import EmocapError
from emocap_pretrain.health.monitor import Monitor
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.run_folder.attempts import Attempt

FAULT_STEP = 3


def cause_fault(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "sleep":
        time.sleep(3600)
    if kind == "collective":
        dist.barrier()
    if kind == "error":
        raise ValueError("a picture without pixels")


def step(monitor: Monitor, kind: str | None) -> None:
    total = torch.ones(100)
    with monitor.timer.measure("data"):
        time.sleep(0.01)
    with monitor.timer.measure("forward"):
        if kind:
            cause_fault(kind)
    with monitor.timer.measure("loss"):
        dist.all_reduce(total)
    with monitor.timer.measure("backward"):
        dist.all_reduce(total)
    with monitor.timer.measure("update"):
        pass


def train(config: Config, world: RankGroup, attempt: Attempt, kind: str, victim: int) -> None:
    limits = config.cluster
    with Monitor(
        world, attempt, name=config.name, steps=config.steps, timeout_s=limits.timeout_s, silence_s=limits.silence_s
    ) as monitor:
        for number in range(config.steps):
            monitor.enter("training", number)
            mine = number == FAULT_STEP and world.rank == victim
            step(monitor, kind if mine else None)
            monitor.enter("training", number + 1)
            if monitor.exchange({"loss": 1.0 / (number + 1)}).stop:
                break


def main() -> None:
    config, kind, victim = Config.model_validate_json(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    runtime = EnvRuntime.from_environment("cpu")
    if sys.argv[4:]:
        dist.init_process_group("gloo", timeout=timedelta(seconds=float(sys.argv[4])))
    with joined(config.cluster, runtime) as world:
        store = open_store(config.url)
        number = world.run_on_main(lambda: Attempt.begin(store, ranks=world.world_size).number)
        try:
            train(config, world, Attempt(store, number), kind, victim)
        except (EmocapError, ValueError) as error:
            sys.stderr.write(f"error: rank {world.rank}: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
