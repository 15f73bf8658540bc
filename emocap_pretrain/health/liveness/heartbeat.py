"""Defines the message that each rank writes into the job's store once a second.

A heartbeat contains for how many seconds the training thread of its rank has made no progress (`idle_s`). The rank
measures this time itself. A heartbeat contains no time of day, because the clocks of two hosts may differ.
"""

from typing import NamedTuple

import orjson

from emocap_pretrain.health.position import DONE, LOST, PHASES

HEARTBEAT_S = 1.0  # The pause between two heartbeats of a rank, and between two checks of its watchdog.


class Heartbeat(NamedTuple):
    """Reports the position of a rank in the program.

    A heartbeat is a tuple, because a tuple is quick to parse: rank 0 may read a thousand heartbeats a second.
    Heartbeats exist only while a job runs, so they have no schema version.

    Attributes:
        rank: The rank that wrote the heartbeat.
        number: A counter that grows with every heartbeat of the rank.
        step: The number of steps that the rank has done.
        phase: The phase of the training thread, one of `health.position.PHASES`.
        idle_s: For how many seconds the training thread has not entered a new phase, by the rank's own clock.
        bounded: Whether a long stay at this position is a hang.
        collectives: The number of collectives that the rank has begun.
        ended: Empty while training continues; then `DONE`, `LOST` or the message of an error.
    """

    rank: int
    number: int
    step: int
    phase: str
    idle_s: float
    bounded: bool
    collectives: int = 0
    ended: str = ""

    @property
    def place(self) -> tuple[int, int, int]:
        """Returns the rank's position in the program as a tuple, which is greater for a rank that is further ahead.

        The tuple has the step, the index of the phase in `PHASES`, and the number of collectives. The last number
        distinguishes ranks that are in the same phase of the same step.
        """
        order = PHASES.index(self.phase) if self.phase in PHASES else len(PHASES)
        return self.step, order, self.collectives

    @property
    def failed(self) -> bool:
        """Returns whether training on this rank has ended with an error of its own, and not because of another rank."""
        return self.ended not in {"", DONE, LOST}

    def to_json(self) -> str:
        return orjson.dumps(tuple(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Heartbeat":
        return cls(*orjson.loads(text))
