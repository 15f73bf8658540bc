"""Defines what the training function must know of the machine, and reads it from the environment.

`Runtime` is the seam between training and orchestration. Launchers that set torchrun's variables (deepspeed, torchrun)
or SLURM's are served here; the Ray form lives in `emocap_cluster` and matches by shape.
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
    """Says which rank of the job this process is, and passes messages between the job and the process."""

    @property
    def rank_info(self) -> RankInfo: ...

    @property
    def device(self) -> str:
        """This rank's device in torch's words, such as `cuda:3` or `cpu`."""
        ...

    def should_stop(self) -> bool:
        """Returns whether this rank must end soon (SIGTERM, drain). The loop asks all ranks at the same steps."""
        ...

    def committed(self, checkpoint: str) -> None:
        """A checkpoint is whole at this URL. Every rank says so."""
        ...

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        """Alive, at `step` of `steps`; `note` is a few words for a person. Called by rank 0 alone."""
        ...


@dataclass(slots=True)
class EnvRuntime:
    """The rank that environment variables name; SIGTERM or the first Ctrl-C stops the loop at the end of a step."""

    rank_info: Rank
    device: str
    _stop: Event = field(default_factory=Event)
    _bar: Any = None

    @classmethod
    def from_environment(cls, device: str = "auto", *, listen: bool = True) -> "EnvRuntime":
        """The rank that a launcher made of this process.

        Args:
            device: `cpu`, `cuda`, or `auto` for CUDA where there is any.
            listen: Whether SIGTERM and Ctrl-C ask to stop; else they end the process as usual.
        """
        info = _rank_info(os.environ)
        if "RANK" not in os.environ and _in_slurm_step(os.environ):
            _meet_as_slurm_says()
        runtime = cls(info, _device(device, info.local_rank))
        if not listen:
            return runtime

        def stop(number: int, _frame: object) -> None:
            runtime._stop.set()
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C ends this process at once.
                if info.rank == 0:
                    sys.stderr.write("Ctrl-C: the run is saved and stops after this step; once more ends it at once.\n")

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        return runtime

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def committed(self, checkpoint: str) -> None:
        """Nobody outside this process waits for the news."""

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        pause_s = 0.5 if sys.stderr.isatty() else 10.0  # A log gets a line now and then, not a moving bar.
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
    # A launcher may show each process its own device only; then there is one, whatever the local rank.
    return f"cuda:{local_rank % max(1, torch.cuda.device_count())}"


def _in_slurm_step(variables: Mapping[str, str]) -> bool:
    """Returns whether srun has started this process as one of several; a batch script has a different kind of step id.

    What Ray runs inherits them too where srun started Ray's nodes, and is no rank: then `RAY_ADDRESS` is there.
    """
    alone = variables.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "RAY_ADDRESS" in variables
    return not alone and variables.get("SLURM_STEP_ID", "").isdigit()


def _meet_as_slurm_says() -> None:
    """Torch asks for an address and a port: rank 0 is on the step's first node, and the job's number makes a port.

    Where srun itself runs, which its own variables tell, may be a login node.
    """
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ["SLURM_STEP_NODELIST"]))
    # Below the range from which the kernel gives ports to clients.
    os.environ.setdefault("MASTER_PORT", str(12_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))


def _first_host(hosts: str) -> str:
    """`gpu[03-05,9],login` begins with gpu03."""
    first = re.match(r"(\[[^]]*]|[^,[])+", hosts)
    return re.sub(r"\[(\w+)[^]]*]", r"\1", first.group() if first else hosts)


def _rank_info(variables: Mapping[str, str]) -> Rank:
    if "RANK" in variables:
        rank, world, local_rank = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        # Torchrun's word, DeepSpeed's word; what has neither is taken to have all ranks on one host.
        local_world = variables.get("LOCAL_WORLD_SIZE") or variables.get("LOCAL_SIZE") or world
        return Rank(rank, world, local_rank, int(local_world))
    if _in_slurm_step(variables):
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
        rank, world, local_rank, node = (int(variables[name]) for name in names)
        return Rank(rank, world, local_rank, _tasks_on(node, variables["SLURM_STEP_TASKS_PER_NODE"]))
    return Rank()


def _tasks_on(node: int, layout: str) -> int:
    """`2(x3),1` is 2 tasks on each of nodes 0, 1 and 2, and 1 task on node 3."""
    counts = (each.partition("(x") for each in layout.split(","))
    return [int(tasks) for tasks, _, times in counts for _ in range(int(times.rstrip(")") or 1))][node]
