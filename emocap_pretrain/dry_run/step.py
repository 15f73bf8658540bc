"""Estimates how long a step takes on any number of ranks, from the speed and work of one rank and from the network."""

from collections.abc import Iterable
from dataclasses import dataclass

from emocap_pretrain.dry_run.fabric import Fabric
from emocap_pretrain.dry_run.workload import Workload, gradients, vectors
from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Speed:
    """Holds the speed of a single rank without communication.

    Attributes:
        towers_s: Seconds of both towers for the rows of the rank, forward and backward.
        loss_flops_per_s: FLOP per second that the loss reaches.
        update_s: Seconds in which the optimizer updates all parameters on one rank.
    """

    towers_s: float
    loss_flops_per_s: float
    update_s: float

    @classmethod
    def of_step(cls, step_s: float, work: Workload, loss_flops_per_s: float) -> "Speed":
        """Returns the speed that follows from `step_s`, the measured time of a step on a single rank.

        The time of the loss is computed from its FLOP, and all other time is counted in `towers_s`. This includes the
        optimizer's update. So `update_s` is 0, and the forecast does not show that ZeRO makes the update shorter.

        Raises:
            ConfigError: If the computed time of the loss is longer than the step.
        """
        towers_s = step_s - work.loss_flops(1) / loss_flops_per_s
        if towers_s <= 0:
            raise ConfigError(
                f"a step of {step_s:g} s is shorter than its loss at {loss_flops_per_s / 1e12:g} TFLOP/s: "
                "give the seconds of one rank alone with its rows of the batch."
            )
        return cls(towers_s, loss_flops_per_s, 0.0)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Holds the seconds that each part of a step takes on `ranks` ranks.

    `vectors_s` (the exchange of embeddings) and `gradients_s` (the reduction of gradients) count only the time in which
    communication does not overlap with computation.
    """

    ranks: int
    towers_s: float
    loss_s: float
    update_s: float
    vectors_s: float
    gradients_s: float

    @property
    def total_s(self) -> float:
        """Returns the seconds of the whole step."""
        return self.towers_s + self.loss_s + self.update_s + self.network_s

    @property
    def network_s(self) -> float:
        """Returns the seconds of communication that do not overlap with computation."""
        return self.vectors_s + self.gradients_s


def step_time(work: Workload, ranks: int, speed: Speed, fabric: Fabric) -> StepTime:
    """Returns the time of a step, if no rank is slow or waits for data, and the network has no congestion.

    The parts of a step follow one another, except that a part of the exchange of embeddings overlaps with the loss.
    For two ranks on one machine, the computed times were 17 to 29 % shorter than the measured ones
    (docs/cluster-benchmarks.md).
    """
    loss_s = work.loss_flops(ranks) / speed.loss_flops_per_s
    vectors_s = vectors(work, ranks, fabric).seconds(fabric)
    return StepTime(
        ranks=ranks,
        towers_s=speed.towers_s,
        loss_s=loss_s,
        # With ZeRO each rank updates only its own partition.
        update_s=speed.update_s / (ranks if work.zero_stage else 1),
        vectors_s=max(0.0, vectors_s - fabric.vectors_behind_loss * loss_s),
        # No overlap is assumed: DeepSpeed has it only with `overlap_comm`, which is off by default below ZeRO stage 3.
        gradients_s=gradients(work, ranks, fabric).seconds(fabric),
    )


def efficiency(work: Workload, ranks: int, speed: Speed, fabric: Fabric) -> float:
    """Returns the efficiency of weak scaling.

    This is the time of a step on one rank, divided by the time of a step on `ranks` ranks. Each rank has the same
    number of rows in both cases. So the global batch grows with `ranks`, and the time of the loss grows too. Therefore
    the result can be below 1 even without communication.
    """
    return step_time(work, 1, speed, fabric).total_s / step_time(work, ranks, speed, fabric).total_s


def breaks_at(work: Workload, speed: Speed, fabric: Fabric, ranks: Iterable[int]) -> int | None:
    """Returns the first number in `ranks` for which `efficiency` is below 0.5; None if there is none."""
    return next((each for each in ranks if efficiency(work, each, speed, fabric) < 0.5), None)
