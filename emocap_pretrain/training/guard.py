"""Decides what happens if the loss of a step is not finite, or far above the losses of the steps before it.

Depending on the settings, the update of the step is made or left out, the run returns to its newest checkpoint
(a roll-back), or the run ends.

    <run>/skipped.json    steps whose update is left out after a roll-back, with the reason

The loss is equal on all ranks, so all ranks reach the same verdict without communication. The verdict depends on the
settings, the last losses, and the steps whose updates were left out before. Checkpoints store these losses and steps,
so a resumed run decides like a run that was never interrupted.

A roll-back takes two attempts. In the first one, `Session.enforce` adds the step to `skipped.json` and raises
`RolledBack`. The driver then starts the second attempt, which resumes from the newest checkpoint. Its guard reads
`skipped.json` and leaves out the update of that step, even if the loss is good this time.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from emocap_shards.store import Store
from torch import Tensor

from emocap_pretrain.config.schema import HealthConfig
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import SKIPPED, SkippedDocument
from emocap_pretrain.run_folder.storage import Unreadable

SKIPPED_FILE = "skipped.json"
# A loss is compared with the last 64 losses; with fewer than 20 losses none is a spike. A few spikes among the 64
# losses hardly change their median and their median absolute deviation.
WINDOW, FEWEST = 64, 20
FLOOR = 0.01  # Smallest deviation as a share of the median, so that a small rise of a flat curve is not a spike.
HOPELESS = 3  # A run has failed if this many updates before its end were left out.
NORMAL = 1.4826  # The standard deviation of a normal distribution, in median absolute deviations.

Action = Literal["apply", "skip", "rollback", "stop"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Holds the decision about the update of a step.

    Attributes:
        action: "apply" makes the update. "skip" leaves it out. "rollback" also returns the run to its newest
            checkpoint. "stop" ends the run.
        reason: The reason for the action, for the log; empty if the loss is good. A spike that is only logged
            (`health.on_spike=log`) has the action "apply" and a reason.
    """

    action: Action = "apply"
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Returns whether the update is made."""
        return self.action == "apply"


class Guard:
    """Judges the loss of every step (the loss guard). Its state is a part of the checkpoint.

    The loop calls `judge` for each step in order, between `Engine.forward` and `Engine.update` or `Engine.discard`:

        guard = Guard(HealthConfig(nonfinite="skip"))
        guard.judge(1, 2.31).action  # "apply"
        guard.judge(2, math.nan).action  # "skip"
    """

    def __init__(self, settings: HealthConfig, to_skip: Mapping[int, str] | None = None) -> None:
        """Creates a guard that has not seen any loss yet.

        Args:
            settings: The action for a loss that is not finite, the action for a spike, and the number of updates that
                may be left out.
            to_skip: The steps whose update is left out whatever their loss is, with the reasons. They count towards
                the number of updates that are left out.
        """
        self._settings = settings
        self._to_skip = dict(to_skip or {})
        # All updates that are left out, of this attempt and of earlier ones. Its length is compared with `max_skips`.
        self._skipped = dict(self._to_skip)
        # The last steps in a row whose update the loss scale of fp16 has left out. They do not count as failures.
        self._overflowed: list[int] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)

    @classmethod
    def open(cls, settings: HealthConfig, store: Store, world: RankGroup) -> "Guard":
        """Returns a guard that leaves out the updates listed in `skipped.json`. This is a collective."""
        return cls(settings, world.run_on_main(lambda: _read(store)))

    def judge(self, step: int, loss: Tensor | float) -> Verdict:
        """Returns the verdict on the update of `step`.

        The value of the loss is read in three cases: if `health.nonfinite` is not "stop", if `health.spike` is set, or
        if `skipped.json` lists a step. In all other cases it is not read, because the host would have to wait for the
        device. The action is then "apply", and a loss that is not finite ends the run at the next logged step.

        Args:
            step: The number of the step, from 1 on: the value of `Engine.step` after the step.
            loss: The loss of the global batch, equal on all ranks; a tensor may be on the device.
        """
        settings = self._settings
        if settings.nonfinite == "stop" and settings.spike is None and not self._to_skip:
            return Verdict()
        value = float(loss)
        verdict = self._judge(step, value)
        # Only losses whose update is made enter the window. Otherwise spikes that are left out would become the norm.
        if verdict.applies and math.isfinite(value):
            self._losses.append(value)
        elif verdict.action != "stop":
            self._skipped[step] = verdict.reason
        return verdict

    def update_failed(self, step: int) -> Verdict | None:
        """Returns the verdict on a step whose gradient was not finite although its loss was finite.

        The engine has already left out the update of this step. Returns None if `health.nonfinite` is "stop", because
        the next logged step then ends the run.
        """
        if self._settings.nonfinite == "stop":
            return None
        verdict = self._within_budget(self._settings.nonfinite, f"a gradient at step {step} is not finite")
        if verdict.action != "stop":
            self._skipped[step] = verdict.reason
        return verdict

    def overflowed(self, step: int) -> None:
        """Records that the update of `step` was left out because a gradient overflowed in fp16.

        That is how the loss scale is found, so it does not count towards `health.max_skips`.
        """
        self._overflowed = [*self._overflowed, step] if self.streak(step - 1) else [step]

    def streak(self, step: int) -> int:
        """Returns the number of consecutive updates that were left out, counted backwards from `step`.

        So `step - streak(step)` is the last step whose update was made, and the weights have not changed since then.
        """
        first = step
        while first in self._skipped or first in self._overflowed:
            first -= 1
        return step - first

    def require_updates(self, step: int) -> None:
        """Checks, at the end of a run, that its last updates were made.

        Raises:
            TrainingError: If the updates of the last three steps (`HOPELESS`), up to `step`, were all left out. In a
                run with fewer steps, the error is raised if the updates of all its steps were left out.
        """
        streak = self.streak(step)
        if streak and streak >= min(HOPELESS, step):
            reason = self._skipped.get(step, "a gradient overflowed in fp16")
            raise TrainingError(
                f"the updates of the last {streak} of {step} steps were left out ({reason}), so the run "
                f"has not trained since step {step - streak}: begin a new run with a smaller optimizer.lr or a longer "
                "warm-up, or from an older checkpoint; the checkpoints before that step are kept."
            )

    def state(self) -> dict[str, Any]:
        """Returns the state as a JSON value, which a checkpoint stores."""
        skipped = [[step, why] for step, why in sorted(self._skipped.items())]
        return {"losses": list(self._losses), "skipped": skipped, "overflowed": list(self._overflowed)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a state that the method `state` has returned."""
        # `skipped.json` may hold steps that are newer than the checkpoint, so both lists are merged.
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._skipped = self._to_skip | {int(step): str(why) for step, why in state["skipped"]}
        self._overflowed = [int(step) for step in state.get("overflowed", ())]

    def remember(self, store: Store, step: int, reason: str) -> None:
        """Adds `step` to `skipped.json`, so that all later attempts leave out its update.

        Only rank 0 calls this, before a roll-back. `reason` says why the update is left out.
        """
        # The steps of earlier roll-backs are kept: every later replay must leave them out too.
        steps = dict(sorted((_read(store) | {step: reason}).items()))
        storage.write(store, SKIPPED_FILE, SKIPPED, SkippedDocument(steps))

    def _judge(self, step: int, loss: float) -> Verdict:
        if step in self._to_skip:
            return Verdict("skip", self._to_skip[step])
        # This comes first, because NaN is not greater than any limit and so would not be a spike.
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
        """Returns the limit above which a loss is a spike.

        It is None if `health.spike` is not set, or if fewer than `FEWEST` losses are known.
        """
        if self._settings.spike is None or len(self._losses) < FEWEST:
            return None
        # `NORMAL` turns the median absolute deviation into an estimate of the standard deviation. `FLOOR` keeps the
        # limit above the median if all losses are nearly equal.
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
    """Returns the steps whose updates are left out, with the reasons. Without `skipped.json` there are none.

    Raises:
        ConfigError: If `skipped.json` exists and cannot be read. Without its content, the run would make updates that
            it must leave out.
    """
    found = storage.read(store, SKIPPED_FILE, SKIPPED)
    if isinstance(found, Unreadable):
        raise ConfigError(f"{found}: restore it, or delete it to skip nothing.")
    return dict(found.steps) if found else {}
