"""Writes a dataset as a folder of images, each with its annotation in a .json file of the same name."""

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.decode import FORMATS
from emocap_shards.errors import DamagedSample, RecordError
from emocap_shards.sample import Encoded
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.prepare import check_key
from emocap_shards.writing.sources.folder import ORDER


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Reports the number of samples in the new folder, and the damaged samples that were left out."""

    samples: int
    damaged: tuple[DamagedSample, ...]


def unpack(
    url: str | Path, folder: str | Path, *, skip_bad: int = 0, progress: Callable[[int], None] | None = None
) -> Unpacked:
    """Writes two files for every sample, such as KEY.jpg and KEY.json.

    If the folder is packed again with shards of the same size, the new shards have the same bytes as those of the
    dataset, unless damaged samples were left out. If the samples are not in the order of their keys, a file `order.txt`
    tells `pack` their order. Until all files are written, the folder is called `FOLDER.partial`.

    Args:
        url: The dataset.
        folder: The new folder; it must be absent or empty.
        skip_bad: Number of damaged samples that may be left out.
        progress: Called after each sample with the size of its image in bytes.

    Raises:
        ManifestError: If there is no dataset.
        DamagedSample: If more than `skip_bad` samples are damaged.
        RecordError: If `folder` is not empty, if `FOLDER.partial` exists, if two samples have the same key, if the key
            or the extension of a sample is not allowed, or if a file or folder cannot be written.
    """
    target = Path(folder)
    partial = target.with_name(f"{target.name}.partial")
    # What an interrupted call has left is not continued: the user has to delete it.
    for path in (target, partial):
        with _disk(path):
            if path.exists() and (path == partial or not path.is_dir() or any(path.iterdir())):
                raise RecordError(f"{path} exists already; choose another folder, or delete it.")
    source = DatasetSource.open([str(url)])
    with _disk(partial):
        partial.mkdir(parents=True)
    names, damaged = _write_all(source, partial, skip_bad, progress or (lambda _: None))
    with _disk(target):
        if names != sorted(names):
            (partial / ORDER).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        if target.exists():
            # It is empty, as was checked above.
            target.rmdir()
        # The folder gets its name last, so a folder of this name is complete.
        shutil.move(partial, target)
    return Unpacked(len(names), tuple(damaged))


@contextmanager
def _disk(path: Path) -> Generator[None]:
    """Turns an error of the local disk into a `RecordError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path} cannot be written ({error.strerror or error}); is the disk full?") from error


def _write_all(
    source: DatasetSource, folder: Path, skip_bad: int, progress: Callable[[int], None]
) -> tuple[list[str], list[DamagedSample]]:
    """Writes all samples. Returns the names of the images in order, and the damaged samples."""
    names: list[str] = []
    damaged: list[DamagedSample] = []
    for sample in source.encoded():
        if isinstance(sample, DamagedSample):
            damaged.append(sample)
            if len(damaged) > skip_bad:
                raise sample
        else:
            names.append(_write(sample, folder))
            progress(len(sample.image))
    return names, damaged


def _write(sample: Encoded, folder: Path) -> str:
    """Writes the two files of a sample, and returns the name of the image."""
    check_key(sample.key)
    if sample.extension not in FORMATS:
        raise RecordError(
            f"sample {sample.key!r} has the extension {sample.extension!r}, which is not one of {', '.join(FORMATS)}."
        )
    name = f"{sample.key}.{sample.extension}"
    for path, data in ((folder / name, sample.image), (folder / f"{sample.key}.json", sample.annotation)):
        with _disk(path):
            try:
                file = path.open("xb")
            except FileExistsError as error:
                cure = "give each sample its own key: `emocap reshard --number-keys`"
                raise RecordError(f"two samples have the key {sample.key!r} here; {cure}.") from error
            with file:
                file.write(data)
    return name
