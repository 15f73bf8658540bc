"""Models how long a step takes on W ranks, from one rank's speed, counted work and a described fabric."""

from collections.abc import Iterable
from dataclasses import dataclass

from emocap_pretrain.dry_run.fabric import Fabric
from emocap_pretrain.dry_run.workload import Workload, gradients, vectors
from emocap_pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Speed:
    """One rank by itself: seconds of both towers for its rows, forward and backward, rate of the loss, whole update."""

    towers_s: float
    loss_flops_per_s: float
    update_s: float

    @classmethod
    def of_step(cls, step_s: float, work: Workload, loss_flops_per_s: float) -> "Speed":
        """Returns the speed from a measured step of one rank alone; everything but the loss counts as towers.

        Raises:
            ConfigError: If the loss alone would take longer.
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
    """Seconds of a step on `ranks` ranks; of what travels, only what nothing hides."""

    ranks: int
    towers_s: float
    loss_s: float
    update_s: float
    vectors_s: float
    gradients_s: float

    @property
    def total_s(self) -> float:
        return self.towers_s + self.loss_s + self.update_s + self.network_s

    @property
    def network_s(self) -> float:
        return self.vectors_s + self.gradients_s

    @property
    def largest(self) -> str:
        """The part that takes most."""
        parts = {"towers": self.towers_s, "loss": self.loss_s, "network": self.network_s, "update": self.update_s}
        return max(parts, key=lambda name: parts[name])


def step_time(work: Workload, ranks: int, speed: Speed, fabric: Fabric) -> StepTime:
    """Returns the time of a step of equal ranks, without stragglers, waiting for data or a congested network."""
    loss_s = work.loss_flops(ranks) / speed.loss_flops_per_s
    vectors_s = vectors(work, ranks, fabric).seconds(fabric)
    gradients_s = gradients(work, ranks, fabric).seconds(fabric)
    return StepTime(
        ranks=ranks,
        towers_s=speed.towers_s,
        loss_s=loss_s,
        # With ZeRO each rank updates its slice.
        update_s=speed.update_s / (ranks if work.zero_stage else 1),
        vectors_s=max(0.0, vectors_s - fabric.vectors_behind_loss * loss_s),
        gradients_s=max(0.0, gradients_s - fabric.gradients_behind_towers * speed.towers_s),
    )


def efficiency(work: Workload, ranks: int, speed: Speed, fabric: Fabric) -> float:
    """Weak scaling: samples per second of a rank among `ranks` over those of one alone, with the same rows each.

    The loss sees `ranks` times the batch then, so it is below 1 even where nothing had to travel.
    """
    return step_time(work, 1, speed, fabric).total_s / step_time(work, ranks, speed, fabric).total_s


def breaks_at(work: Workload, speed: Speed, fabric: Fabric, ranks: Iterable[int], *, least: float = 0.5) -> int | None:
    """The first number of ranks at which each does less than `least` of what it does alone."""
    return next((each for each in ranks if efficiency(work, each, speed, fabric) < least), None)
