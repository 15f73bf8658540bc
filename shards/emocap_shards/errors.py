"""Every error that this package raises on purpose.

    ShardsError
    ├── StoreError            a store did not do what it was asked
    │   ├── NotFound          there is no such object
    │   ├── TooLarge          an object is larger than the limit that the reader set
    │   └── ConditionFailed   somebody else wrote first: nothing was changed
    ├── PlanError             numbers that no plan can follow (also a ValueError)
    ├── ManifestError         no whole dataset stands at this URL
    ├── RecordError           a sample that may not enter a shard
    ├── AnnotationError       a caption or labels that break the format (the reader wraps it)
    ├── ImageError            bytes that are no usable image (the reader wraps it)
    ├── DamagedShard          a shard or its index is not what the manifest says
    ├── DamagedSample         one sample of a shard is not what it was when it was written
    └── BudgetSpent           more samples were quarantined than the error budget allows

A message says what went wrong, where (URL, shard, key) and what to do.
"""


class ShardsError(Exception):
    """The root: `except ShardsError` catches all of the tree."""


class StoreError(ShardsError):
    """A store did not do what it was asked: unreachable, refused, full."""


class NotFound(StoreError):  # noqa: N818 - the word for it, as in HTTP
    """There is no such object; `path` is the one that was asked for."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TooLarge(StoreError):  # noqa: N818
    """An object is larger than the reader expects; it was not read to its end."""


class ConditionFailed(StoreError):  # noqa: N818
    """A conditional write lost: the object exists, or is not the version that was read. Nothing was changed."""


class PlanError(ShardsError, ValueError):
    """Numbers that no plan can follow, such as rank 4 of 4."""


class ManifestError(ShardsError):
    """No whole dataset stands at this URL."""


class RecordError(ShardsError):
    """A sample that may not enter a shard."""


class AnnotationError(ShardsError):
    """A caption or labels that break the format."""


class ImageError(ShardsError):
    """Bytes that are no usable image."""


class DamagedShard(ShardsError):  # noqa: N818
    """A shard or its index is not what the manifest says."""

    def __init__(self, message: str, *, shard: str = "") -> None:
        super().__init__(message)
        self.shard = shard

    @classmethod
    def at(cls, shard: str, reason: str) -> "DamagedShard":
        cure = "run `emocap verify` on the dataset, then upload or pack this shard again"
        return cls(f"shard {shard}: {reason}; {cure}.", shard=shard)


class DamagedSample(ShardsError):  # noqa: N818
    """One sample is not what it was when it was written.

    The message alone is enough to build one, so that a DataLoader can raise it again in another process.
    """

    def __init__(self, message: str, *, shard: str = "", key: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key
        self.reason = reason

    @classmethod
    def at(cls, shard: str, key: str, reason: str) -> "DamagedSample":
        cure = "upload or pack the shard again, or allow holes with an error budget"
        return cls(f"sample {key!r} of shard {shard}: {reason}; {cure}.", shard=shard, key=key, reason=reason)


class BudgetSpent(ShardsError):  # noqa: N818
    """More samples were quarantined than the error budget allows; `damaged` are all that are known here."""

    def __init__(self, message: str, *, damaged: tuple[DamagedSample, ...] = ()) -> None:
        super().__init__(message)
        self.damaged = damaged
