"""Formats the forecast of `--dry-run`: the assumptions, the time of a step, and how often to save.

`Outlook` computes the time of a step with `workload.py` and `step.py`, and the interval between saves with
`failures.py`. docs/cluster-benchmarks.md explains each row of the output.
"""

import math
from dataclasses import dataclass

from emocap_shards.inspecting.wording import counted, size

from emocap_pretrain.dry_run.fabric import FABRICS, Fabric
from emocap_pretrain.dry_run.failures import FailureModel, daly, goodput
from emocap_pretrain.dry_run.measured import MeasuredStep
from emocap_pretrain.dry_run.step import Speed, StepTime, breaks_at, efficiency, step_time
from emocap_pretrain.dry_run.workload import FLOAT, Workload, gradients, vectors

DAY_S = 86400.0
MTBF_DAYS = 30.0  # The default of `--node-mtbf-days`.
RESTART_S = 180.0  # The assumed time from a failure to the next new step.
# The assumed rates of copies from the device to the host, and from a rank to the store.
COPIED_BYTES_PER_S, STORED_BYTES_PER_S = 10e9, 200e6
# The numbers of ranks at which the forecast looks for an efficiency below 0.5.
SCALES = (8, 16, 32, 64, 128, 256, 512, 1024)

UNKNOWN_STEP = (
    "unknown here: give --step-seconds, which is the metric time/step_s in MLflow of a run on one rank, or the folder "
    "of a run, such as --step-seconds runs/faces"
)

Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Holds the assumptions of a forecast that the user can give. A value that the user has not given is None.

    Attributes:
        fabric: The network.
        step: The measured time of a step on a single rank.
        node_mtbf_days: Mean time between failures of one node.
        price: Price of one device for an hour, in any currency.
    """

    fabric: Fabric | None = None
    step: MeasuredStep | None = None
    node_mtbf_days: float | None = None
    price: float | None = None

    @property
    def asked(self) -> bool:
        """Returns whether the user has given one of the values that are not the price.

        If so, `--dry-run` prints the forecast of failures also for a job on one node.
        """
        return any(given is not None for given in (self.fabric, self.step, self.node_mtbf_days))

    @property
    def mtbf_days(self) -> float:
        """Returns the mean number of days between failures of one node, with a default if the user has not given it."""
        return MTBF_DAYS if self.node_mtbf_days is None else self.node_mtbf_days

    def fabric_for(self, *, on_gpu: bool) -> Fabric:
        """Returns the network, with a default if the user has not given it."""
        return self.fabric or FABRICS["ib400" if on_gpu else "gloo"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Forecasts the time of a step and the best interval between saves.

    Attributes:
        work: The amount of computation and communication of one rank in a step.
        state_bytes: Size of the optimizer's state of all ranks together.
        ranks: World size.
        every_steps: Steps between two checkpoints.
        fabric: The network.
        assumed: The assumptions of the user.
        speed: Speed of a single rank; None if it is unknown. Then no time of a step is forecast.
    """

    work: Workload
    state_bytes: int
    ranks: int
    every_steps: int
    fabric: Fabric
    assumed: Assumptions
    speed: Speed | None

    @property
    def failure_model(self) -> FailureModel:
        """Returns the failure model of the job, with the times of a save on rank 0.

        Rank 0 saves the most bytes: the weights and its share of the optimizer's state.
        """
        # All ranks save at the same time, so the rank with the most bytes decides how long a save takes.
        most = self.work.parameters * FLOAT + self.state_bytes / self.ranks
        return FailureModel(
            node_mtbf_s=self.assumed.mtbf_days * DAY_S,
            nodes=self.fabric.nodes(self.ranks),
            stall_s=most / COPIED_BYTES_PER_S,
            commit_s=most / STORED_BYTES_PER_S,
            restart_s=RESTART_S,
        )

    def rows(self) -> list[Row]:
        """Returns the rows that `--dry-run` prints, each as a name and a text.

        The rows about
        failures are left out for a job on one node, unless the user has given one of the `Assumptions`: the network,
        the measured time of a step, or the mean time between failures.
        """
        head = ("forecast", f"a model, not a measurement: {self.fabric.words}")
        words = self.assumed.step.words(self.work.rows) if self.assumed.step else ""
        step = step_time(self.work, self.ranks, self.speed, self.fabric) if self.speed else None
        rows = [
            head,
            *([("measured", words)] if words else []),
            ("step", self._step(step) if step else UNKNOWN_STEP),
            ("network", self._network()),
        ]
        if self.speed:
            rows.append(("weak scaling", self._weak_scaling(self.speed)))
        if self.failure_model.nodes > 1 or self.assumed.asked:
            rows += self._failure_rows(step.total_s if step else None)
        return rows

    def _failure_rows(self, step_s: float | None) -> list[Row]:
        rows = [("failures", self._failures()), ("save", self._save_every(step_s))]
        return rows if step_s is None else [*rows, ("goodput", self._goodput(step_s))]

    def _step(self, step: StepTime) -> str:
        rate = self.ranks * self.work.rows / step.total_s
        parts = {"towers": step.towers_s, "loss": step.loss_s, "network": step.network_s}
        shares = ", ".join(f"{name} {part / step.total_s:.0%}" for name, part in parts.items())
        return f"{duration(step.total_s)}, {rate:,.0f} samples/s; {shares}"

    def _network(self) -> str:
        if self.ranks == 1:
            return "none, because there is one rank"
        texts, weights = (each(self.work, self.ranks, self.fabric).bytes for each in (vectors, gradients))
        return f"{f'vectors {size(texts)}, ' if texts else ''}gradients {size(weights)} to each rank a step"

    def _weak_scaling(self, speed: Speed) -> str:
        kept = efficiency(self.work, self.ranks, speed, self.fabric)
        broken = breaks_at(self.work, speed, self.fabric, SCALES)
        beyond = f"below 50% from {broken:,} ranks" if broken else f"above 50% up to {SCALES[-1]:,} ranks"
        return f"{kept:.0%} of the speed of a rank alone; {beyond}"

    def _failures(self) -> str:
        model, days = self.failure_model, f"{self.assumed.mtbf_days:g} days"
        nodes = f"{model.nodes} node{'s' if model.nodes > 1 else ''}"
        return f"one in {duration(model.mtbf_s)} of this job: {nodes}, each one in {days}"

    def _save_every(self, step_s: float | None) -> str:
        best_s = daly(self.failure_model)
        steps = f", {counted(max(1, round(best_s / step_s)), 'step')}" if step_s else ""
        return f"best every {duration(best_s)}{steps}, if a save stalls {duration(self.failure_model.stall_s)}"

    def _goodput(self, step_s: float) -> str:
        share = goodput(self.failure_model, self.every_steps * step_s)
        commit, restart = duration(self.failure_model.commit_s), duration(RESTART_S)
        return f"{share:.2%} saving every {counted(self.every_steps, 'step')}; commit {commit}, restart {restart}"


def duration(seconds: float) -> str:
    """Returns a time as a text in days, h, min, s or ms; "never" if it is infinite.

    The unit is the largest one in which the time is at least 2, or ms if there is none.

    >>> [duration(seconds) for seconds in (0.05, 90, 130, 3600)]
    ['50 ms', '90 s', '2.2 min', '60 min']
    """
    if math.isinf(seconds):
        return "never"
    for unit, length in (("days", DAY_S), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length:
            return f"{digits(seconds / length)} {unit}"
    return f"{digits(seconds * 1e3)} ms"


def digits(value: float) -> str:
    """Returns a number with two significant digits, or as a whole number if it is 10 or more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
