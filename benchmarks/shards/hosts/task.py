"""Defines the tasks and answers of a host: plain values that are sent as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Describes one pass over a dataset.

    Args:
        place: Folder or s3:// URL of the dataset in the format of the system.
        urls: Addresses of its shards, for a system that has no index.
        cache: An empty folder, if the system caches what it has fetched.
        samples: Number of samples in the dataset.
        decode: Whether images are decoded to RGB and annotations to objects; otherwise bytes are read.
        shuffle: Whether the system shuffles with its defaults.
        workers: Processes of the DataLoader; 0 reads in the process itself.
        delivered: Whether whole batches are sent to the main process; otherwise only their sizes.
        position: Sample of the epoch at which to begin.
        batches: Number of batches after which to stop; 0 reads to the end of the epoch.
        decoder: "simplejpeg" or "pillow".
    """

    place: str
    urls: tuple[str, ...] = ()
    cache: str = ""
    samples: int = 0
    decode: bool = True
    shuffle: bool = True
    workers: int = 1
    delivered: bool = False
    position: int = 0
    batches: int = 0
    decoder: str = "simplejpeg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Holds the measurements of a pass.

    Attributes:
        samples: Number of samples that arrived.
        seconds: Time from opening the dataset to the last batch.
        first_s: Time from opening the dataset to the first batch.
        cpu_s: User and system time of the process and all its children.
        rss_bytes: Resident memory of the process after the last batch; `uss_bytes` is its unshared part.
        bare_rss_bytes: Resident memory after all imports, before the dataset is opened; also `bare_uss_bytes`.
        moments: `time.monotonic()` after the imports ("imported") and at the first batch ("first").
    """

    samples: int
    seconds: float
    first_s: float
    cpu_s: float
    rss_bytes: int
    uss_bytes: int
    bare_rss_bytes: int
    bare_uss_bytes: int
    moments: Mapping[str, float] = field(default_factory=dict[str, float])
