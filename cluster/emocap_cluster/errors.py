"""Defines the errors that this package raises on purpose; their base class is `ClusterError`."""

from collections.abc import Mapping


class ClusterError(Exception):
    """The base class of every error that this package raises on purpose."""


class NoCluster(ClusterError):  # noqa: N818 - a state, not a mistake of the caller
    """There is no Ray cluster to join, none could be started, it has too few devices, or it has ended."""


class RankFailed(ClusterError):  # noqa: N818
    """The job ended because its function raised an error on a rank, or because a rank's process ended.

    Args:
        message: The message for the user.
        cause: The error that the rank raised; None if its process ended without an error.
        errors: Ray's error for each rank that failed.
    """

    def __init__(
        self, message: str, *, cause: Exception | None = None, errors: Mapping[int, Exception] | None = None
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.errors = dict(errors or {})


class WorkerFailed(ClusterError):  # noqa: N818
    """A worker of `mapping.map_items` failed.

    Args:
        message: The message for the user.
        cause: The error that the worker's function raised; None if its process failed in another way.
    """

    def __init__(self, message: str, *, cause: Exception | None = None) -> None:
        super().__init__(message)
        self.cause = cause
