"""What this package raises on purpose.

ClusterError
├── NoCluster      no Ray to join and none could be started
└── RankFailed     the function raised on a rank, or the rank is gone
"""


class ClusterError(Exception):
    """Root of the tree."""


class NoCluster(ClusterError):  # noqa: N818 - a state, not a fault of the caller
    """There is no cluster that could take the job."""


class RankFailed(ClusterError):  # noqa: N818
    """The job ended because a rank did; `cause` is what the rank raised, None if its process is gone."""

    def __init__(self, message: str, *, cause: Exception | None = None) -> None:
        super().__init__(message)
        self.cause = cause
