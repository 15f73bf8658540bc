"""How long a store is waited for, and how much is asked of it at once."""

import os
from dataclasses import dataclass, fields

from emocap_shards.errors import StoreError

DEADLINE = "EMOCAP_STORE_DEADLINE_S"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """When to try again, and when to give up.

    Args:
        deadline_s: For how long one request is repeated, from its first attempt on; 0 tries once.
        first_wait_s: The longest first pause; it doubles with every attempt, and each pause is a random share of it
            (full jitter, Brooker 2015), so that a thousand readers do not come back at once.
        longest_wait_s: Where the doubling ends.
        connect_timeout_s: For a connection to open.
        read_timeout_s: For the next byte to come.
        slowest_bytes_per_s: A request whose bytes travel slower than this is given up and made again: a server can
            stall where no timeout of the HTTP library looks, as before it says "100 Continue".
    """

    deadline_s: float = 900.0
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    slowest_bytes_per_s: float = 65536.0

    def __post_init__(self) -> None:
        _refuse_below(self, 0)

    def attempt_s(self, size_bytes: int) -> float:
        """How long one request that carries so many bytes may take."""
        return self.connect_timeout_s + self.read_timeout_s + size_bytes / max(1.0, self.slowest_bytes_per_s)

    @classmethod
    def of_environment(cls) -> "RetryConfig":
        """The defaults, with the deadline of EMOCAP_STORE_DEADLINE_S when that is set."""
        text = os.environ.get(DEADLINE)
        if text is None:
            return cls()
        try:
            return cls(deadline_s=float(text))
        except ValueError as error:
            raise StoreError(f"{DEADLINE}={text!r} is no number of seconds; write it like 900.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """What one process asks of one store at the same time.

    Args:
        in_flight: Requests; the others wait for their turn.
        part_bytes: A longer range, or file, travels in parts of this size; S3 wants at least 5 MiB.
        parts_in_flight: Parts of files in memory at the same time, in each direction.
    """

    in_flight: int = 32
    part_bytes: int = 8 << 20
    parts_in_flight: int = 8

    def __post_init__(self) -> None:
        _refuse_below(self, 1)


def _refuse_below(limits: RetryConfig | TransferConfig, least: int) -> None:
    for field in fields(limits):
        value = getattr(limits, field.name)
        if not value >= least:
            raise StoreError(f"{field.name}={value} is too small; give {least} or more.")
