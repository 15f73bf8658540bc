"""Defines the message that each rank writes into the job's store once a second.

Only the process that writes a heartbeat knows for how long its training thread has made no progress, so a heartbeat
carries seconds (`idle_s`) and no time of a clock: the clocks of two hosts may differ.
"""

from typing import NamedTuple

import orjson

from emocap_pretrain.health.position import DONE, LOST, PHASES

HEARTBEAT_S = 1.0  # The pause between two heartbeats of a rank, and between two checks of its watchdog.


class Heartbeat(NamedTuple):
    """Reports the position of a rank.

    A heartbeat is a tuple, because a tuple is quick to parse: rank 0 may read a thousand heartbeats a second. It exists
    only while a job runs, so it has no schema version.

    Attributes:
        rank: The rank that wrote the heartbeat.
        number: A counter that grows with every heartbeat of the rank.
        step: The number of steps that the rank has done.
        phase: One of `health.position.PHASES`.
        idle_s: For how many seconds the training thread has made no progress, by the rank's own clock.
        bounded: Whether a long stay in this phase is a hang.
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
        """Returns the rank's place in the program. Ranks at a greater place wait for ranks at a smaller one.

        It is the step, the phase within the step, and the number of collectives, which distinguishes ranks in the same
        phase.
        """
        order = PHASES.index(self.phase) if self.phase in PHASES else len(PHASES)
        return self.step, order, self.collectives

    @property
    def failed(self) -> bool:
        """Returns whether training ended with an error of this rank."""
        return self.ended not in {"", DONE, LOST}

    def to_json(self) -> str:
        return orjson.dumps(tuple(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Heartbeat":
        return cls(*orjson.loads(text))
