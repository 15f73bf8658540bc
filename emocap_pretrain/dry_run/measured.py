"""Reads the value of `--step-seconds`: the seconds of a step, or the folder of a run that has measured its speed."""

import math
from dataclasses import dataclass

from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.wording import counted
from emocap_shards.mask import masked_url
from emocap_shards.store import open_store

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.folder import LOOKUP_RETRIES
from emocap_pretrain.run_folder.state import RunState

LEAST_S = 1e-6
ATTEMPTS = 10  # So many of the newest attempts of a run are looked through for a speed.


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """Holds what is known about the time of a step of one rank: either its seconds, or the speed of a run's ranks.

    Attributes:
        seconds: Seconds of a step on one rank alone, with the rows that a rank of the planned run has; None if a run
            gives the speed.
        run: The folder or URL of the run; empty without one.
        samples_per_s: Samples per second of each rank of this run, as it logged them last; 0 without a run.
        ranks: The number of its ranks; 0 without a run.
    """

    seconds: float | None = None
    run: str = ""
    samples_per_s: float = 0.0
    ranks: int = 0

    def of_rows(self, rows: int) -> float:
        """Returns the seconds of a step of one rank with so many rows. A run's time is proportional to the rows."""
        return rows / self.samples_per_s if self.seconds is None else self.seconds

    def words(self, rows: int) -> str:
        """Returns what `--dry-run` prints about the speed of a run; empty without a run."""
        if not self.run:
            return ""
        shared = f"; its {self.ranks} ranks waited for each other too, so this is an upper bound"
        each = f"{self.samples_per_s:.3g} samples/s on each of {self.ranks} ranks" if self.ranks > 1 else ""
        speed = each or f"{self.samples_per_s:.3g} samples/s on one rank"
        rank = f"{self.of_rows(rows):.3g} s for {counted(rows, 'row')}"
        return f"{masked_url(self.run)}: {speed}, so {rank}{shared if self.ranks > 1 else ''}"


def measured_step(text: str) -> MeasuredStep:
    """Returns what a value of `--step-seconds` says.

    Args:
        text: A number of seconds, or the folder or URL of a run that trains or has trained.

    Raises:
        ConfigError: If the text is neither, or the run has not logged its speed.
    """
    try:
        seconds = float(text)
    except ValueError:
        return _of_run(text)
    if not (LEAST_S <= seconds < math.inf):
        raise ConfigError(
            f"--step-seconds={text}: give the seconds of a step, at least {LEAST_S:g}, or a run's folder."
        )
    return MeasuredStep(seconds)


def _of_run(url: str) -> MeasuredStep:
    shown = masked_url(url)
    try:
        attempts = RunState.read(open_store(url, patience=LOOKUP_RETRIES), last=ATTEMPTS).attempts
    except (ConfigError, ShardsError) as error:
        raise ConfigError(f"--step-seconds={shown} is neither a number nor the folder of a run: {error}") from error
    for attempt in reversed(attempts):
        status = attempt.status
        if status and status.samples_per_s and status.samples_per_s > 0 and status.ranks:
            return MeasuredStep(None, url, status.samples_per_s / status.ranks, status.ranks)
    raise ConfigError(
        f"--step-seconds={shown}: this run has not logged its speed yet, which it does every tracking.every_steps "
        "steps: wait, or give a number of seconds."
    )
