"""Defines the task of a host (a process that reads a dataset) and its answer. Both are sent as JSON."""

from dataclasses import dataclass

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One pass over a dataset.

    Attributes:
        place: The folder or s3:// URL of the dataset in the format of the library that reads it.
        urls: The addresses of the shards, for a library that has no index.
        cache: An empty folder for a library that caches what it fetches; "" without a cache.
        samples: The number of samples in the dataset.
        decode: Whether images are decoded to RGB and annotations are parsed. Otherwise both are read as bytes.
        shuffle: Whether the library shuffles, with its default settings.
        workers: The number of DataLoader processes; with 0 the main process itself reads.
        delivered: Whether whole batches are sent to the main process. Otherwise only their sizes are sent.
        position: The index of the first sample of the pass in the order of the epoch.
        batches: The number of batches after which the pass ends; 0 reads to the end of the epoch.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The measurements of one pass over a dataset.

    Attributes:
        samples: The number of samples that arrived.
        seconds: The time from opening the dataset to the last batch.
        first_s: The time from opening the dataset to the first batch.
        first_at_s: The value of `time.monotonic()` at the first batch.
        cpu_s: The user and system time of the process and of all its children.
        rss_bytes: The resident memory of the process after the last batch.
        uss_bytes: The part of this memory that the process does not share with others.
        bare_uss_bytes: The unshared memory after all imports, before the dataset is opened.
    """

    samples: int
    seconds: float
    first_s: float
    first_at_s: float
    cpu_s: float
    rss_bytes: int
    uss_bytes: int
    bare_uss_bytes: int
