"""Defines every error that this package raises on purpose.

    ShardsError
    ├── StoreError            a store cannot be reached, refuses a request, or is full
    │   ├── NotFound          the object does not exist
    │   ├── TooLarge          the object is larger than the limit that the reader set
    │   └── ConditionFailed   the condition of a write did not hold; nothing was changed
    ├── PlanError             steps cannot be planned from the given numbers (also a ValueError)
    ├── ManifestError         no dataset can be read at a URL, or one exists where a new one would be written
    ├── RecordError           a sample, or its source, cannot be packed into shards
    ├── AnnotationError       a caption or labels do not follow the format (in a shard: `DamagedSample`)
    ├── ImageError            bytes are not a usable image (in a shard: `DamagedSample`)
    ├── FilterError           a filter file cannot be used, or does not fit the dataset
    ├── DamagedShard          a shard or its index differs from what the manifest says
    ├── DamagedSample         a sample of a shard differs from what was written
    └── BudgetSpent           more samples were quarantined than the error budget allows

A message says what went wrong, where it happened (URL, shard, key) and what to do.

Callers distinguish `NotFound`, `TooLarge` and `ConditionFailed` from other store errors, because these three describe
the object and not the store. A reader returns a `DamagedSample` in place of the sample and does not raise it, so that
the stream can leave the sample out. A reader raises `DamagedShard`, because no sample of that shard can be read.
"""


class ShardsError(Exception):
    """The base class of every error that this package raises on purpose."""


class StoreError(ShardsError):
    """A store failed: it cannot be reached, refuses a request, or is full."""


class NotFound(StoreError):  # noqa: N818 - the name of the HTTP status
    """The object does not exist; `path` is the path that was requested."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TooLarge(StoreError):  # noqa: N818
    """An object is larger than the limit that the reader set; it was not read to its end."""


class ConditionFailed(StoreError):  # noqa: N818
    """The condition of a write did not hold: the object exists, or has another version. Nothing was changed."""


class PlanError(ShardsError, ValueError):
    """Steps cannot be planned from the given numbers, for example for rank 4 of 4 ranks, which count from 0."""


class ManifestError(ShardsError):
    """No dataset can be read at a URL, or a dataset already exists where a new one would be written."""


class RecordError(ShardsError):
    """A sample, or the source that it comes from, cannot be packed into shards."""


class AnnotationError(ShardsError):
    """A caption or labels do not follow the format."""


class ImageError(ShardsError):
    """Bytes are not a usable image."""


class FilterError(ShardsError):
    """A filter file cannot be used: it is damaged, belongs to another dataset, or names what the dataset lacks."""


class DamagedShard(ShardsError):  # noqa: N818
    """A shard or its index differs from what the manifest says."""

    def __init__(self, message: str, *, shard: str = "") -> None:
        super().__init__(message)
        self.shard = shard

    @classmethod
    def at(cls, shard: str, reason: str) -> "DamagedShard":
        """Returns the error for `shard`, the path of a tar. The message contains `reason` and advice for the user."""
        cure = "run `emocap verify` on the dataset, then upload or pack this shard again"
        return cls(f"shard {shard}: {reason}; {cure}.", shard=shard)


class DamagedSample(ShardsError):  # noqa: N818
    """A sample differs from what was written.

    The constructor needs only the message. If the error is raised in a worker process of torch's DataLoader, the main
    process constructs it again from the message alone.
    """

    def __init__(self, message: str, *, shard: str = "", key: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key
        self.reason = reason

    @classmethod
    def at(cls, shard: str, key: str, reason: str) -> "DamagedSample":
        """Returns the error for the sample `key` of `shard`. The message contains `reason` and advice for the user."""
        cure = "upload or pack the shard again, or allow holes with an error budget"
        return cls(f"sample {key!r} of shard {shard}: {reason}; {cure}.", shard=shard, key=key, reason=reason)


class BudgetSpent(ShardsError):  # noqa: N818
    """More samples were quarantined than the error budget allows. A quarantined sample is left out because of damage.

    `damaged` lists all damaged samples that this process has found.
    """

    def __init__(self, message: str, *, damaged: tuple[DamagedSample, ...] = ()) -> None:
        super().__init__(message)
        self.damaged = damaged
