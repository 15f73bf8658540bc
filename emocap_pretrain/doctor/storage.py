"""Checks disks, and the stores of the datasets and of the run: access, and the speed of reading."""

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from emocap_shards.errors import ShardsError, StoreError
from emocap_shards.inspecting.wording import counted, size
from emocap_shards.manifest import MANIFEST, Manifest
from emocap_shards.mask import masked_url
from emocap_shards.store import RetryConfig, Store, open_store

from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail, ok, skipped, warn

ANSWER_S = 20.0  # For so long an operation of a store is retried, unless EMOCAP_STORE_DEADLINE_S is shorter.
LEAST_FREE = 1_000_000_000  # Bytes that a run needs on each disk in any case.
SLOW_BYTES_PER_S = 20e6
SPAN = 8 << 20
PROBE = bytes(1 << 20)
_NO_ACCESS = (
    "check the URL, the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE or the machine's role; FSSPEC_S3_ANON=true for a "
    "public bucket) and AWS_ENDPOINT_URL"
)


def check_disk(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Compares the free bytes of each disk that the run writes to with what the run needs there."""
    checkpoint = inputs.checkpoint_bytes or 0
    yield _disk("TMPDIR", Path(tempfile.gettempdir()), checkpoint, "set TMPDIR to a folder on a larger disk")
    if inputs.url is None:
        yield _disk("this folder", Path.cwd(), 0, "free some space")
    elif folder := _local(inputs.url):
        # A new checkpoint is complete before the oldest one is deleted.
        needed = (inputs.keep_last + 1) * checkpoint
        yield _disk("the run", folder, needed, "free some space, lower checkpoint.keep_last, or set another url")
    if inputs.data and inputs.data.cache_gb and any(_local(url) is None for url in inputs.datasets.values()):
        yield _cache(Path(inputs.data.cache), inputs.data.cache_gb)


def check_datasets(inputs: DoctorInputs, *, clock: Callable[[], float] = time.monotonic) -> Iterator[CheckResult]:
    """Reads the manifest and a bounded number of bytes of each dataset, and reports the speed.

    Args:
        inputs: The datasets, and the largest number of bytes to read from each.
        clock: Returns seconds; it is called before and after the bytes of a dataset are read.
    """
    if not inputs.datasets:
        tars = inputs.data is not None and inputs.data.webdataset is not None
        yield skipped("`emocap pretrain --dry-run` reads the tars of data.webdataset" if tars else "give a config")
    for key, url in inputs.datasets.items():
        try:
            yield _dataset(key, url, inputs.probe_bytes, clock)
        except ShardsError as error:
            yield fail(f"{key}: {error}", _NO_ACCESS if "://" in url else f"set {key} to a packed dataset")


def check_run_folder(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Writes, reads and deletes a small object where the run writes its checkpoints."""
    if inputs.url is None:
        yield skipped("give a config")
        return
    shown = masked_url(inputs.url)
    folder = _local(inputs.url)
    try:
        if folder:
            write_near(folder)
            yield ok("files can be written there")
        else:
            yield _write_far(_soon(inputs.url), shown)
    except (OSError, StoreError) as error:
        yield fail(f"url={shown} cannot be written: {error}", "grant write access to it, or set another url")


def _disk(name: str, folder: Path, needed: int, cure: str) -> CheckResult:
    existing = _existing(folder)
    found = os.statvfs(existing)
    free, wanted = found.f_bavail * found.f_frsize, max(needed, LEAST_FREE)
    text = f"{name}: {size(free)} free"
    if free < wanted:
        return fail(f"{text} in {existing}, where {size(wanted)} are needed", cure)
    return ok(f"{text}, {size(needed)} are needed" if needed else text)


def _cache(folder: Path, limit_gb: float) -> CheckResult:
    existing = _existing(folder)
    found = os.statvfs(existing)
    present = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else 0
    room = found.f_bavail * found.f_frsize + present
    text = f"data.cache: {size(room)} for a cache of {limit_gb:g} GB in {existing}"
    if room < limit_gb * 1e9:
        fits = int(0.9 * room / 1e9)
        return warn(text, f"free some space, or set data.cache_gb to {fits}")
    return ok(text)


def _dataset(key: str, url: str, most_bytes: int, clock: Callable[[], float]) -> CheckResult:
    store = _soon(url)
    manifest = Manifest.load(store.read(MANIFEST), url=url)
    began = clock()
    read = _read(store, manifest, most_bytes)
    rate = read / max(clock() - began, 1e-6)
    samples = rate * manifest.samples / manifest.total_bytes
    text = f"{key}: {size(read)} at {size(rate)}/s, about {counted(round(samples), 'sample')}/s"
    if rate < SLOW_BYTES_PER_S:
        slow = "use a store in the same region or on the same network, or copy the dataset to a local disk"
        return warn(text, slow if not store.is_near else "copy the dataset to a faster disk")
    return ok(text)


def _read(store: Store, manifest: Manifest, most_bytes: int) -> int:
    """Reads up to `most_bytes` bytes from the first shards, several ranges at a time, and returns how many these were.

    Raises:
        StoreError: If a shard cannot be read, or is shorter than the manifest says.
    """
    spans: list[tuple[str, int, int]] = []
    left = most_bytes
    for shard in manifest.shards:
        for start in range(0, shard.bytes, SPAN):
            end = min(start + SPAN, shard.bytes, start + left)
            if end <= start:
                break
            spans.append((shard.path, start, end))
            left -= end - start
        if left <= 0:
            break
    for (path, start, end), data in zip(spans, store.read_ranges(spans), strict=True):
        if len(data) < end - start:
            raise StoreError(f"{path!r} is shorter than its manifest says: upload the shard again.")
    return most_bytes - left


def write_near(folder: Path) -> None:
    """Writes 1 MiB into a file without a name in the folder, or in its nearest existing parent.

    Raises:
        OSError: If that is not possible, for example because the folder or a parent of it is a file.
    """
    with tempfile.TemporaryFile(dir=_existing(folder)) as file:
        file.write(PROBE)
        file.flush()
        os.fsync(file.fileno())


def _write_far(store: Store, shown: str) -> CheckResult:
    name = f"doctor-{secrets.token_hex(8)}"
    began = time.monotonic()
    store.put(name, PROBE)
    try:
        wrong = store.read(name) != PROBE
    finally:
        store.delete(name)
    took_s = time.monotonic() - began
    if wrong:
        return fail(f"url={shown} returns other bytes than were written", "check the store and the network")
    if not store.honours_conditions():
        return warn(
            f"{shown} can be written, but ignores conditions", "end an attempt of a run before you start the next one"
        )
    return ok(f"{size(len(PROBE))} written, read and deleted in {took_s:.2g} s")


def _soon(url: str) -> Store:
    return open_store(url, patience=RetryConfig.within(ANSWER_S))


def _local(url: str) -> Path | None:
    """Returns the folder of a URL; None if the URL leads to another machine."""
    text = url.removeprefix("file://").removeprefix("local://")
    return None if "://" in text else Path(text)


def _existing(folder: Path) -> Path:
    absolute = folder.expanduser().absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())
