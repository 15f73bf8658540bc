"""The message that each rank writes into the job's store once a second."""

from typing import NamedTuple

import orjson

from emocap_pretrain.health.position import DONE, LOST, PHASES

HEARTBEAT_S = 1.0


class Heartbeat(NamedTuple):
    """The position of a rank. It is a tuple because rank 0 of a large job parses a thousand of them each second.

    Attributes:
        rank: The rank that wrote it.
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
        """Returns how far the rank is in the program; ranks at a later place wait for ranks at an earlier one."""
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
