"""Adapts schedule-free AdamW to stage 3 of ZeRO. It is imported only for a run with this optimizer."""

from collections.abc import Callable

from schedulefree import AdamWScheduleFree


class ScheduleFreeOfGroups(AdamWScheduleFree):
    """Is schedule-free AdamW that leaves alone the parameter groups without parameters.

    Under stage 3, DeepSpeed 0.19.8 calls `step` once for each group, and empties all other groups before that. The
    class of the library would count each of these calls as a step of all groups.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters of all groups that have some."""
        every = self.param_groups
        self.param_groups = [group for group in every if group["params"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every
