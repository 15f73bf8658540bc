"""Defines the kinds of damage that `verify` finds, and the remedy for each."""

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """Names the kinds of damage, from the dataset as a whole down to one sample."""

    MANIFEST = "damaged manifest"
    STRAY = "stray file"
    MISSING_SHARD = "missing shard"
    MISSING_INDEX = "missing index"
    UNREADABLE = "unreadable object"
    SIZE = "wrong size"
    SWAPPED = "another shard's bytes"
    SHARD_DIGEST = "wrong digest of a shard"
    INDEX_DIGEST = "wrong digest of an index"
    INDEX = "inconsistent index"
    CUT = "cut shard"
    END = "damaged end of a shard"
    HEADER = "damaged tar header"
    BYTES = "changed bytes"
    UNSTEADY = "unsteady reads"
    MEMBERS = "wrong members"
    ANNOTATION = "unusable annotation"
    IMAGE = "unusable image"
    TWICE = "sample twice"


_AGAIN = "upload or pack this shard again"
_SOURCE = "correct the source and pack it again"
CURES = {
    FaultKind.MANIFEST: "upload it again, or pack the dataset again",
    FaultKind.STRAY: "delete it, or upload the manifest that names it",
    FaultKind.MISSING_SHARD: "upload this shard again",
    FaultKind.MISSING_INDEX: "upload it again",
    FaultKind.UNREADABLE: "mend the store or the permissions, then verify again",
    FaultKind.SIZE: _AGAIN,
    FaultKind.SWAPPED: "upload the right file under this name",
    FaultKind.SHARD_DIGEST: _AGAIN,
    FaultKind.INDEX_DIGEST: "upload the index again",
    FaultKind.INDEX: "pack this shard again",
    FaultKind.CUT: _AGAIN,
    FaultKind.END: _AGAIN,
    FaultKind.HEADER: _AGAIN,
    FaultKind.BYTES: _AGAIN,
    FaultKind.UNSTEADY: "check network, disk and memory, then verify again",
    FaultKind.MEMBERS: _SOURCE,
    FaultKind.ANNOTATION: _SOURCE,
    FaultKind.IMAGE: _SOURCE,
    FaultKind.TWICE: "give every sample its own key and pack it again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Describes one difference between a dataset in its store and the dataset that was written.

    Attributes:
        kind: The kind of damage.
        shard: Path of the damaged object in the dataset.
        reason: Description of the damage.
        key: The key of the damaged sample, or "".
        lost: Number of samples that cannot be read because of this fault; no sample is counted by two faults.
        found: SHA-256 of the shard or index that was read, if the manifest says another one; otherwise "".
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
        return CURES[self.kind]

    def __str__(self) -> str:
        where = f"{self.shard} {self.key!r}" if self.key else self.shard
        return f"{where}: {self.reason}; {self.cure}."
