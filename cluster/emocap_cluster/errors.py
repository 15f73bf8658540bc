"""Defines the errors that this package raises on purpose.

ClusterError ├── NoCluster      there is no Ray to join, none could be started, or it has too few devices └── RankFailed
the function raised on a rank, or the rank's process has ended
"""

from collections.abc import Mapping


class ClusterError(Exception):
    """The root of the tree."""


class NoCluster(ClusterError):  # noqa: N818 - a state, not a mistake of the caller
    """There is no cluster that could run the job."""


class RankFailed(ClusterError):  # noqa: N818
    """The job ended because a rank failed.

    Args:
        message: The message for the user.
        cause: The error that the rank raised; None if its process has ended.
        errors: Ray's error for each rank that failed.
    """

    def __init__(
        self, message: str, *, cause: Exception | None = None, errors: Mapping[int, Exception] | None = None
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.errors = dict(errors or {})
