"""Defines `Runtime`, the interface between the training function and the launcher of its ranks.

`EnvRuntime` implements it for launchers that set the environment variables of torchrun (torchrun, deepspeed) or of
SLURM. `emocap_cluster` implements it for Ray, without importing this module.

The interface is small on purpose. The training function reads the number and the device of its rank, asks whether to
stop, and reports checkpoints and progress. Everything else that a run and its users communicate goes through the run's
folder, so that it works under every launcher (decision 17).
"""

import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from emocap_pretrain.ranks.info import Rank, RankInfo


@runtime_checkable
class Runtime(Protocol):
    """Defines which rank of the job this process is, and passes messages between the launcher and the process.

    The training thread calls all methods. None of them is a collective. A method should not wait, because the other
    ranks would then wait for this rank in their next collective.
    """

    @property
    def rank_info(self) -> RankInfo: ...

    @property
    def device(self) -> str:
        """Returns the name of this rank's torch device, such as `cuda:3` or `cpu`."""
        ...

    def should_stop(self) -> bool:
        """Returns whether this rank must end soon, for example after SIGTERM. All ranks call this at the same steps.

        The method may return different values on different ranks. `Monitor.poll` and `Monitor.exchange` combine the
        values: all ranks stop if it returns True on one rank.
        """
        ...

    def committed(self, checkpoint: str) -> None:
        """Reports that a checkpoint is committed at this URL. Every rank calls this, once for each checkpoint."""
        ...

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        """Reports that training has done `step` of `steps` steps. Only rank 0 calls this, at logged steps.

        `note` is a short text for the user, such as the loss.
        """
        ...


@dataclass(slots=True)
class EnvRuntime:
    """Implements `Runtime` from environment variables. SIGTERM or the first Ctrl-C stops training after a step.

    `from_environment` reads the variables and installs the signal handlers.
    """

    rank_info: Rank
    device: str
    _stop: Event = field(default_factory=Event)
    _bar: Any = None

    @classmethod
    def from_environment(cls, device: str = "auto", *, listen: bool = True) -> "EnvRuntime":
        """Returns the runtime of this process. Without the variables of a launcher, the process is the only rank.

        Args:
            device: "cpu", "cuda", or "auto". "auto" means CUDA if there is a CUDA device, and otherwise the CPU.
            listen: Whether SIGTERM and Ctrl-C ask the training to stop. If False, they end the process as usual. Python
                allows signal handlers only in the main thread, so other threads must pass False.
        """
        info = _rank_info(os.environ)
        # torchrun and deepspeed set RANK and the address at which ranks meet. srun sets neither.
        if "RANK" not in os.environ and _in_slurm_step(os.environ):
            _meet_as_slurm_says()
        runtime = cls(info, _device(device, info.local_rank))
        if not listen:
            return runtime

        # The handler only sets a flag: training reads it after a step, when all ranks can save together.
        def stop(number: int, _frame: object) -> None:
            runtime._stop.set()
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C ends this process at once.
                if info.rank == 0:
                    sys.stderr.write(
                        "Ctrl-C: the run is saved and stops after this step; another Ctrl-C ends it at once.\n"
                    )

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        return runtime

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def committed(self, checkpoint: str) -> None:
        """Does nothing, because torchrun, deepspeed and SLURM do not need to know of checkpoints."""

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        pause_s = 0.5 if sys.stderr.isatty() else 10.0  # In a log file each update of the bar is a new line.
        self._bar = self._bar or tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, mininterval=pause_s)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(step - self._bar.n)
        if step >= steps:
            self._bar.close()


def launched() -> bool:
    """Returns whether a launcher already started this process as one rank of a job."""
    return "RANK" in os.environ or _in_slurm_step(os.environ)


def _device(wanted: str, local_rank: int) -> str:
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    # A launcher may make only one device visible to each process. Then its number is 0 for every local rank.
    return f"cuda:{local_rank % max(1, torch.cuda.device_count())}"


def _in_slurm_step(variables: Mapping[str, str]) -> bool:
    """Returns whether srun has started this process as one of several ranks.

    Two kinds of processes have SLURM's variables, but are not ranks. In a batch script, SLURM_STEP_ID is absent or is
    not a number. If srun has started a Ray cluster, every process of Ray inherits SLURM's variables; such a process
    also has RAY_ADDRESS.
    """
    alone = variables.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "RAY_ADDRESS" in variables
    return not alone and variables.get("SLURM_STEP_ID", "").isdigit()


def _meet_as_slurm_says() -> None:
    """Sets MASTER_ADDR and MASTER_PORT, which torch needs, from SLURM's variables.

    The address is that of the first node of the SLURM step, on which rank 0 runs. The host on which srun itself runs is
    not used, because it may be a login node. A variable that is already set is kept.
    """
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ["SLURM_STEP_NODELIST"]))
    # The port depends on the number of the job, and is below the range from which the kernel takes ports for clients.
    os.environ.setdefault("MASTER_PORT", str(12_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))


def _first_host(hosts: str) -> str:
    """Returns the first host of a list in SLURM's notation, such as gpu03 of `gpu[03-05,9],login`."""
    first = re.match(r"(\[[^]]*]|[^,[])+", hosts)
    return re.sub(r"\[(\w+)[^]]*]", r"\1", first.group() if first else hosts)


def _rank_info(variables: Mapping[str, str]) -> Rank:
    # If torchrun or deepspeed runs within a step of SLURM, both sets of variables exist. Those of the ranks' own
    # launcher count.
    if "RANK" in variables:
        rank, world, local_rank = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        # Torchrun sets the first variable and DeepSpeed the second. Without both, all ranks are assumed on one host.
        local_world = variables.get("LOCAL_WORLD_SIZE") or variables.get("LOCAL_SIZE") or world
        return Rank(rank, world, local_rank, int(local_world))
    if _in_slurm_step(variables):
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
        rank, world, local_rank, node = (int(variables[name]) for name in names)
        return Rank(rank, world, local_rank, _tasks_on(node, variables["SLURM_STEP_TASKS_PER_NODE"]))
    return Rank()


def _tasks_on(node: int, layout: str) -> int:
    """Returns the number of tasks on the node with the index `node` in a SLURM step.

    `layout` lists the tasks of all nodes in SLURM's notation: `2(x3),1` means 2 tasks on each of the nodes 0, 1 and 2,
    and 1 task on node 3.
    """
    counts = (each.partition("(x") for each in layout.split(","))
    return [int(tasks) for tasks, _, times in counts for _ in range(int(times.rstrip(")") or 1))][node]
