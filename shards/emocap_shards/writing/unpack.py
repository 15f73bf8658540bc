"""A dataset -> a folder of images, each with its annotation as a .json beside it."""

import shutil
from collections.abc import Callable
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
    """How many samples came to lie in the folder, and which were damaged and let go."""

    samples: int
    damaged: tuple[DamagedSample, ...]


def unpack(
    url: str | Path, folder: str | Path, *, skip_bad: int = 0, progress: Callable[[int], None] | None = None
) -> Unpacked:
    """Writes KEY.jpg and KEY.json of every sample; packed again with shards of the same size, they are the same bytes.

    Where the samples are not in the order of their keys, a file `order.txt` tells `pack` the order. Until all is
    there, the folder is called `FOLDER.partial`. `progress` is called after each sample with its bytes.

    Raises:
        ManifestError: If there is no dataset.
        DamagedSample: If more than `skip_bad` samples are not what they were when they were packed.
        RecordError: If the folder is there already, or a sample's key is no safe name of a file.
    """
    target = Path(folder)
    partial = target.with_name(f"{target.name}.partial")
    for path in (target, partial):
        if path.exists() and (path == partial or not path.is_dir() or any(path.iterdir())):
            raise RecordError(f"{path} is there already; choose another folder, or delete it.")
    source = DatasetSource.open([str(url)])
    partial.mkdir(parents=True)
    names, damaged = _write_all(source, partial, skip_bad, progress or (lambda _: None))
    if names != sorted(names):
        (partial / ORDER).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if target.exists():
        target.rmdir()
    shutil.move(partial, target)
    return Unpacked(len(names), tuple(damaged))


def _write_all(
    source: DatasetSource, folder: Path, skip_bad: int, progress: Callable[[int], None]
) -> tuple[list[str], list[DamagedSample]]:
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
    check_key(sample.key)
    if sample.extension not in FORMATS:
        raise RecordError(
            f"sample {sample.key!r} has the extension {sample.extension!r}, none of {', '.join(FORMATS)}."
        )
    name = f"{sample.key}.{sample.extension}"
    for path, data in ((folder / name, sample.image), (folder / f"{sample.key}.json", sample.annotation)):
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError as error:
            cure = "give them keys of their own: `emocap reshard --number-keys`"
            raise RecordError(f"two samples have the key {sample.key!r} here; {cure}.") from error
        except OSError as error:
            raise RecordError(f"{path} cannot be written ({error.strerror}); is the disk full?") from error
    return name
