"""What this package raises on purpose.

ClusterError
├── NoCluster      no Ray to join, none could be started, or it has too few devices
└── RankFailed     the function raised on a rank, or the rank is gone
"""

from collections.abc import Mapping


class ClusterError(Exception):
    """Root of the tree."""


class NoCluster(ClusterError):  # noqa: N818 - a state, not a fault of the caller
    """There is no cluster that could take the job."""


class RankFailed(ClusterError):  # noqa: N818
    """The job ended because a rank did.

    Args:
        message: For a person.
        cause: What the rank raised; None if its process is gone.
        errors: What Ray knows of each rank that failed.
    """

    def __init__(
        self, message: str, *, cause: Exception | None = None, errors: Mapping[int, Exception] | None = None
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.errors = dict(errors or {})
