"""What a host is asked to do, and what it answers: plain values that travel as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One pass over a dataset.

    Args:
        place: Folder or s3:// URL of the dataset in the format of the system.
        urls: Of its shards, for a system that has no index.
        cache: An empty folder, if the system keeps what it fetched.
        samples: In the dataset.
        decode: JPEG to RGB and annotation to objects; otherwise their bytes.
        shuffle: With what the system shuffles by default.
        workers: Processes of the DataLoader; 0 reads in the process itself.
        delivered: Whole batches go to the main process; otherwise only their sizes.
        position: Of the epoch, where to begin.
        batches: After how many to stop; 0 goes on to the end of the epoch.
        decoder: "simplejpeg", or "pillow".
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
    """What a pass took.

    Attributes:
        samples: That arrived.
        seconds: From opening the dataset to the last batch.
        first_s: From opening the dataset to the first batch.
        cpu_s: User and system time of the process and all its children.
        rss_bytes: Of the process after the last batch, with `uss_bytes` its unshared part.
        bare_rss_bytes: Before the dataset was opened, all imports done; with `bare_uss_bytes`.
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
