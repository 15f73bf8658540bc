"""What becomes of a step whose loss is no number, or far above those before it.

    <run>/skipped.json    steps whose update is left out after a roll-back, with the reason

All ranks see the same loss, so all judge alike; and the same losses lead to the same verdicts, so that a resumed run
decides as the unbroken one does.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from emocap_shards.store import Store

from emocap_pretrain.config.schema import HealthConfig
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import SKIPPED, SkippedDocument
from emocap_pretrain.run_folder.storage import Unreadable

SKIPPED_FILE = "skipped.json"
WINDOW, FEWEST = 64, 20  # Losses that a new one is compared with; before there are so many none is a spike.
FLOOR = 0.01  # Of the median: losses that hardly vary do not make a small rise a spike.
HOPELESS = 3  # A run whose last updates, so many, were left out has not succeeded.
NORMAL = 1.4826  # From the median absolute deviation to a standard deviation, where the values are normal.

Action = Literal["apply", "skip", "rollback", "stop"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a step's update, and why if it is not applied in silence."""

    action: Action = "apply"
    reason: str = ""


class Guard:
    """Judges the loss of every step; its state belongs into the checkpoint."""

    def __init__(self, settings: HealthConfig, to_skip: Mapping[int, str] | None = None) -> None:
        """Begin with no losses seen.

        Args:
            settings: What to do, and how often.
            to_skip: Steps to leave out whatever their loss is, with the reasons; they count as left out already.
        """
        self._settings = settings
        self._to_skip = dict(to_skip or {})
        self._skipped = dict(self._to_skip)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self.verdict = Verdict()

    @classmethod
    def open(cls, settings: HealthConfig, store: Store, world: RankGroup) -> "Guard":
        """With what earlier roll-backs of the run have left; a collective."""
        return cls(settings, world.run_on_main(lambda: _read(store)))

    @property
    def watches(self) -> bool:
        """Whether the loss of every step has to be read; else an error at the next logged step is enough."""
        settings = self._settings
        return settings.nonfinite != "stop" or settings.spike is not None or bool(self._to_skip)

    def judge(self, step: int, loss: float) -> Verdict:
        """What to do with the update of `step`, which has this loss on all ranks together."""
        self.verdict = self._judge(step, loss)
        if self.verdict.action == "apply" and math.isfinite(loss):
            self._losses.append(loss)
        elif self.verdict.action != "stop":
            self._skipped[step] = self.verdict.reason
        return self.verdict

    def left_out(self, step: int) -> None:
        """The engine made no update at `step`, whose loss was good: a gradient was not finite."""
        self.verdict = self._within_budget(self._settings.nonfinite, f"a gradient at step {step} is not finite")
        if self.verdict.action != "stop":
            self._skipped[step] = self.verdict.reason

    def streak(self, step: int) -> int:
        """How many updates in a row were left out, up to and including that of `step`."""
        first = step
        while first in self._skipped:
            first -= 1
        return step - first

    def require_updates(self, step: int) -> None:
        """Raises:
        TrainingError: If the updates of the last steps of a run, up to `step`, were all left out.
        """
        streak = self.streak(step)
        if streak and streak >= min(HOPELESS, step):
            raise TrainingError(
                f"the updates of the last {streak} of {step} steps were left out ({self._skipped[step]}), so the run "
                f"has not trained since step {step - streak}: begin a new one with a smaller optimizer.lr or a longer "
                "warm-up, or from an older checkpoint; those before that step are kept."
            )

    def state(self) -> dict[str, Any]:
        """A JSON value."""
        return {"losses": list(self._losses), "skipped": [[step, why] for step, why in sorted(self._skipped.items())]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._skipped = self._to_skip | {int(step): str(why) for step, why in state["skipped"]}

    def remember(self, store: Store, step: int, reason: str) -> None:
        """Leave out the update of `step` when the run comes by again; rank 0 alone calls it, before the roll-back."""
        steps = dict(sorted((_read(store) | {step: reason}).items()))
        storage.write(store, SKIPPED_FILE, SKIPPED, SkippedDocument(steps))

    def _judge(self, step: int, loss: float) -> Verdict:
        if step in self._to_skip:
            return Verdict("skip", self._to_skip[step])
        if not math.isfinite(loss):
            return self._within_budget(self._settings.nonfinite, f"loss={loss} at step {step}")
        height = self._height()
        if height is not None and loss > height:
            middle = median(self._losses)
            reason = (
                f"loss={loss:.4g} at step {step} is a spike: the median of the last {len(self._losses)} is {middle:.4g}"
            )
            return self._within_budget(self._settings.on_spike, reason)
        return Verdict()

    def _height(self) -> float | None:
        """Where a spike begins; None while too little is known, or nobody asks."""
        if self._settings.spike is None or len(self._losses) < FEWEST:
            return None
        middle = median(self._losses)
        deviation = NORMAL * median(abs(loss - middle) for loss in self._losses)
        return middle + self._settings.spike * max(deviation, FLOOR * abs(middle))

    def _within_budget(self, wanted: Literal["stop", "skip", "rollback", "log"], reason: str) -> Verdict:
        if wanted == "log":
            return Verdict("apply", reason)
        if wanted == "stop":
            return Verdict("stop", reason)
        if len(self._skipped) >= self._settings.max_skips:
            return Verdict("stop", f"{reason}, and health.max_skips={self._settings.max_skips} is used up")
        return Verdict(wanted, reason)


def _read(store: Store) -> dict[int, str]:
    """The steps to leave out.

    Raises:
        ConfigError: If they cannot be read: the run would learn from what it was told to leave out.
    """
    found = storage.read(store, SKIPPED_FILE, SKIPPED)
    if isinstance(found, Unreadable):
        raise ConfigError(f"{found}: restore it, or delete it to skip nothing.")
    return dict(found.steps) if found else {}
