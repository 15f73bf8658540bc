"""Defines the kinds of damage that `verify` finds, and the remedy for each."""

from dataclasses import dataclass
from enum import StrEnum

_AGAIN = "upload or pack this shard again"
_SOURCE = "correct the source and pack it again"


class FaultKind(StrEnum):
    """Lists the kinds of damage. A kind concerns a dataset, a shard, the index of a shard, or a sample.

    The value of a kind is a text for users, such as "wrong size". `cure` says what the user should do.
    """

    cure: str

    MANIFEST = "damaged manifest", "upload it again, or pack the dataset again"
    STRAY = "stray file", "delete it, or upload the manifest that names it"
    MISSING_SHARD = "missing shard", "upload this shard again"
    MISSING_INDEX = "missing index", "upload it again"
    UNREADABLE = "unreadable object", "repair the store or its permissions, then verify again"
    SIZE = "wrong size", _AGAIN
    SWAPPED = "another shard's bytes", "upload the right file under this name"
    SHARD_DIGEST = "wrong digest of a shard", _AGAIN
    INDEX_DIGEST = "wrong digest of an index", "upload the index again"
    INDEX = "inconsistent index", "pack this shard again"
    CUT = "cut shard", _AGAIN
    END = "damaged end of a shard", _AGAIN
    HEADER = "damaged tar header", _AGAIN
    BYTES = "changed bytes", _AGAIN
    UNSTEADY = "unsteady reads", "check network, disk and memory, then verify again"
    MEMBERS = "wrong members", _SOURCE
    ANNOTATION = "unusable annotation", _SOURCE
    IMAGE = "unusable image", _SOURCE
    TWICE = "sample twice", "give every sample its own key and pack it again"

    # The value of a member is its name alone, so that it is a plain text in JSON and stays itself when it is pickled.
    def __new__(cls, name: str, cure: str) -> "FaultKind":
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.cure = cure
        return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Describes one difference between a dataset in its store and the dataset that was written.

    Attributes:
        kind: The kind of damage.
        shard: Path of the damaged object in the dataset.
        reason: Description of the damage.
        key: The key of the damaged sample, or "".
        lost: Number of samples that cannot be read because of this fault. A sample is counted in one fault only.
        found: SHA-256 of the shard or index that was read, if it is not the one in the manifest; otherwise "".
    """

    kind: FaultKind
    shard: str
    reason: str
    key: str = ""
    lost: int = 0
    found: str = ""

    @property
    def cure(self) -> str:
        """Returns what the user should do about this kind of damage."""
        return self.kind.cure

    def __str__(self) -> str:
        where = f"{self.shard} {self.key!r}" if self.key else self.shard
        return f"{where}: {self.reason}; {self.cure}."
