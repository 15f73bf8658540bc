"""Defines for how long failed requests to a store are retried, and how many requests run at the same time."""

import os
from dataclasses import dataclass, fields, replace

from emocap_shards.errors import StoreError

DEADLINE = "EMOCAP_STORE_DEADLINE_S"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """Defines when a failed request is retried, and when no further attempt is made.

    Args:
        deadline_s: For how long a failed request is retried, counted from the beginning of its first attempt. If the
            first attempt took longer than `attempt_s(0)` (the time limit of a request that transfers no data), only
            `attempt_s(0)` seconds are counted for it. So a request is also retried after a long transfer that failed.
            0 means a single attempt.
        first_wait_s: Upper bound of the pause before the first retry. The bound doubles with every attempt. Each pause
            is a random fraction of the bound (full jitter, Brooker 2015), so that a thousand readers do not retry at
            the same moment.
        longest_wait_s: Largest value of the bound.
        connect_timeout_s: Longest time for opening a connection.
        read_timeout_s: Longest time until the next byte arrives.
        slowest_bytes_per_s: A request that transfers fewer bytes per second is cancelled and retried. This is needed
            because a server can stall in places that no timeout of the HTTP library covers, for example before it sends
            "100 Continue".
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
        """Returns the longest time for one attempt of a request that transfers this many bytes."""
        return self.connect_timeout_s + self.read_timeout_s + size_bytes / max(1.0, self.slowest_bytes_per_s)

    @classmethod
    def within(cls, deadline_s: float) -> "RetryConfig":
        """Returns `of_environment` with a deadline of at most so many seconds, for a user who waits for the result.

        Raises:
            StoreError: As in `of_environment`.
        """
        given = cls.of_environment()
        return replace(given, deadline_s=min(given.deadline_s, deadline_s))

    @classmethod
    def of_environment(cls) -> "RetryConfig":
        """Returns the defaults, with the deadline of EMOCAP_STORE_DEADLINE_S if that is set.

        Raises:
            StoreError: If the variable is not a number.
        """
        text = os.environ.get(DEADLINE)
        if text is None:
            return cls()
        try:
            return cls(deadline_s=float(text))
        except ValueError as error:
            raise StoreError(f"{DEADLINE}={text!r} is not a number of seconds; write it like 900.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """Limits the requests that one process makes to one store at the same time.

    Args:
        in_flight: Largest number of simultaneous requests; further requests wait.
        part_bytes: A longer range or file is transferred in parts of this size. S3 requires at least 5 MiB.
        parts_in_flight: Largest number of parts of one file that are in memory at the same time.
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
