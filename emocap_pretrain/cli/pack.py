"""Defines `emocap pack` and `emocap reshard`, which write shards, and `emocap unpack`, which writes files from shards.

`emocap_shards.writing` does the work. This module converts the options to the settings of `emocap_shards.writing`, and
shows progress and results.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer
from emocap_shards.errors import ManifestError, RecordError
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import MANIFEST, read_manifest
from emocap_shards.printable import printable
from emocap_shards.store import open_store
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.duplicates import DuplicateConfig
from emocap_shards.writing.packing import DUPLICATES, SKIPPED, PackConfig, Packed, PackProgress, described, pack
from emocap_shards.writing.prepare import EncodingConfig, Extension, PrepareConfig
from emocap_shards.writing.reshard import reshard
from emocap_shards.writing.row_source import CountedSource, Noted, RowSource
from emocap_shards.writing.selection import KeysToLeaveOut, split_of, with_keys, without_keys
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import STANDARD, TableColumns
from emocap_shards.writing.sources.frames import FrameSource
from emocap_shards.writing.sources.text_tables import TextTableConfig
from emocap_shards.writing.unpack import unpack
from tqdm import tqdm

from emocap_pretrain.captions.flat import divided
from emocap_pretrain.cli import options
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.terminal import console, errors_as_lines


def pack_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    source: Annotated[str, typer.Argument(help="The source: a folder, a table, tar files or a dataset.")],
    out: Annotated[str, typer.Argument(help="Folder or URL of the new dataset.")],
    image: options.Image = "image",
    global_: options.Global = "global",
    local: options.Local = "local",
    summary: options.Summary = "summary",
    further: options.Further = None,
    key: options.Key = "key",
    label: options.Label = None,
    label_names: options.LabelNames = None,
    captions: options.Captions = "auto",
    image_root: options.ImageRoot = None,
    image_name: options.ImageName = "",
    columns: options.Columns = None,
    delimiter: options.Delimiter = None,
    encoding: options.TextEncoding = None,
    frames: options.Frames = None,
    flat: options.Flat = False,
    image_format: options.Format = None,
    quality: options.Quality = None,
    longest_px: options.LongestPx = None,
    shortest_px: options.ShortestPx = None,
    find_duplicates: options.FindDuplicates = False,
    drop_duplicates: options.DropDuplicates = False,
    duplicate_bits: options.DuplicateBits = 12,
    shard_samples: options.ShardLimit = None,
    shard_bytes: options.ShardBytes = None,
    skip_bad: options.SkipBad = 0,
    only_keys: options.OnlyKeys = None,
    without: options.WithoutKeys = None,
    filter_: options.Filter = None,
    splits: options.Splits = None,
    split_by: options.SplitBy = None,
    number_keys: options.NumberKeys = False,
    processes: options.Processes = options.DEFAULT_PROCESSES,
    debug: options.Debug = False,
) -> None:
    """Pack images with captions, labels or both into WebDataset shards with a manifest.

    The same command resumes an interrupted pack. Images are not changed unless an option on images is given.
    """
    with errors_as_lines(debug=debug):
        others, labels = tuple(further or STANDARD.further), tuple(label or ())
        mapping = TableColumns(
            image, global_, local, summary, others, key, labels, captions, label_names or {}, image_name
        )
        names = tuple(name.strip() for name in columns.split(",")) if columns else ()
        text_table = TextTableConfig(delimiter, names, encoding)
        search = find_duplicates or drop_duplicates
        image_encoding = _encoding(image_format, quality, longest_px, shortest_px)
        pack_options = PackConfig(
            size=_shard_size(shard_samples, shard_bytes),
            recipe=PrepareConfig(image_encoding, fingerprints=search, captions=divided if flat else None),
            duplicates=DuplicateConfig(duplicate_bits, drop_duplicates) if search else None,
            number_keys=number_keys,
            skip_bad=skip_bad,
        )
        _refuse_inside(source, out)
        listed = KeysToLeaveOut(_listed(without) if without else frozenset())
        opened = open_source(source, mapping, image_root=image_root, text_table=text_table)
        rows = _selected(_filtered(opened, filter_) if filter_ else opened, only_keys, listed)
        for url, part in _parts(out, rows, splits, split_by).items():
            chosen = FrameSource(part, frames) if frames else part
            with Bar("packing", chosen.total if isinstance(chosen, CountedSource) else None) as bar:
                packed = pack(chosen, url, pack_options, processes=processes, progress=bar.show)
            _summarise(url, packed, bar, dropped=drop_duplicates)
        if listed.absent:
            some = ", ".join(map(repr, sorted(listed.absent)[:5]))
            console.print(
                printable(
                    f"warning: --without-keys lists {counted(len(listed.absent), 'key')} that no row has: {some}."
                ),
                markup=False,
            )


def reshard_command(
    urls: Annotated[list[str], typer.Argument(help="One or more datasets, followed by the new one.")],
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Shuffle with this seed.", min=0)] = None,
    shard_samples: options.ShardLimit = None,
    shard_bytes: options.ShardBytes = None,
    skip_bad: options.SkipBad = 0,
    number_keys: options.NumberKeys = False,
    debug: options.Debug = False,
) -> None:
    """Write datasets again as one, with other shards or another order. Images and captions keep their bytes."""
    with errors_as_lines(debug=debug):
        *sources, out = urls
        size = _shard_size(shard_samples, shard_bytes)
        with Bar("resharding", sum(read_manifest(url).samples for url in sources)) as bar:
            packed = reshard(
                sources, out, size=size, seed=shuffle, number_keys=number_keys, skip_bad=skip_bad, progress=bar.show
            )
        _summarise(out, packed, bar)


def unpack_command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    folder: Annotated[Path, typer.Argument(help="New folder for pairs of an image and a .json file.")],
    skip_bad: options.SkipBad = 0,
    debug: options.Debug = False,
) -> None:
    """Write every sample as an image and a .json file; `emocap pack` makes the same shards from them."""
    with errors_as_lines(debug=debug):
        total = read_manifest(url).samples
        with tqdm(total=total, desc="unpacking", unit=" samples", disable=None, dynamic_ncols=True, leave=False) as bar:
            unpacked = unpack(url, folder, skip_bad=skip_bad, progress=lambda _: _step(bar))
        for damage in unpacked.damaged:
            console.print(str(damage))
        left_out = f", {len(unpacked.damaged)} damaged ones left out" if unpacked.damaged else ""
        console.print(f"{folder}: {counted(unpacked.samples, 'sample')}{left_out}.")


def _step(bar: "tqdm[NoReturn]") -> None:
    bar.update()


def _refuse_inside(source: str, out: str) -> None:
    """Checks that the target is not inside the source, because a resumed pack would then read its own output.

    Raises:
        RecordError: If the target is inside the source.
    """
    folder, target = Path(source).absolute(), Path(out).absolute()
    if folder.is_dir() and "://" not in out and (target == folder or folder in target.parents):
        raise RecordError(f"{out} lies in the source {source}: choose a place for the dataset outside of the source.")


def _selected(source: RowSource, only_keys: str | None, listed: KeysToLeaveOut) -> RowSource:
    """Returns the rows that the options select, and prints what the source says to the user."""
    for note in source.notes if isinstance(source, Noted) else ():
        console.print(printable(note), markup=False)
    if only_keys is not None:
        source = with_keys(source, only_keys)
    return without_keys(source, listed) if listed.keys else source


def _filtered(source: RowSource, address: str) -> DatasetSource:
    """Returns a packed dataset without the samples and texts that a filter file leaves out.

    Raises:
        ConfigError: If the source is not a packed dataset, or the filter cannot be used or is that of another dataset.
    """
    if not isinstance(source, DatasetSource):
        raise ConfigError(
            "--filter is for a packed dataset, whose digest it names: pack the source first, then filter."
        )
    from emocap_pretrain.data.datasets import opened_filter

    found = opened_filter(address, source.urls[0], "--filter")
    console.print(printable(f"--filter leaves out {found.describe()}."), markup=False)
    return replace(source, filters=(found,))


def _listed(path: Path) -> frozenset[str]:
    """Returns the keys in a file, one on each line.

    Raises:
        ConfigError: If the file cannot be read, or lists nothing.
    """
    try:
        keys = frozenset(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--without-keys {path}: the file cannot be read: {error}.") from error
    if not keys:
        raise ConfigError(f"--without-keys {path}: the file lists no key; write one on each line.")
    return keys


def _parts(
    out: str, source: RowSource, splits: Mapping[str, float] | None, split_by: str | None
) -> dict[str, RowSource]:
    """Returns the rows of each dataset to be written, by its folder or URL.

    A split that is complete already is left out, so that the same command continues after an interruption.

    Raises:
        ConfigError: If `split_by` is given without splits.
        ManifestError: If all splits exist.
    """
    if splits is None:
        if split_by is not None:
            raise ConfigError(
                "--split-by says how --splits divides: give --splits too, such as train=8,valid=1,test=1."
            )
        return {out: source}
    urls = {name: f"{out.rstrip('/')}/{name}" for name in splits}
    missing = {name: url for name, url in urls.items() if not open_store(url).exists(MANIFEST)}
    if not missing:
        raise ManifestError(f"{out} holds these splits already; delete them, or choose another place.")
    for url in [url for name, url in urls.items() if name not in missing]:
        console.print(f"{url} exists and is kept.")
    return {url: split_of(source, splits, name, split_by) for name, url in missing.items()}


def _shard_size(samples: int | None, size_bytes: int | None) -> ShardSize:
    """Returns the largest size of a shard, in samples or bytes. If the user gives neither, it is 1000 samples."""
    return ShardSize(1000 if samples is None and size_bytes is None else samples, size_bytes)


class Bar(AbstractContextManager["Bar"]):
    """Shows a progress bar that counts the rows of the source, and the bytes of the shards stored so far."""

    def __init__(self, verb: str, total: int | None) -> None:
        self._bar = tqdm(
            total=total, desc=verb, unit=" samples", disable=None, smoothing=0.1, dynamic_ncols=True, leave=False
        )
        self._begun = 0.0
        self._rows = self._resumed = 0

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    @property
    def rows(self) -> int:
        """Returns the number of rows that this process has read. Rows that an earlier process packed do not count."""
        return self._rows - self._resumed

    @property
    def seconds(self) -> float:
        """Returns the seconds since the first row. Imports and the start of worker processes therefore do not count.

        The value means nothing before the first row.
        """
        return time.monotonic() - self._begun

    def show(self, progress: PackProgress) -> None:
        """Shows the progress of packing.

        `pack` and `reshard` call this method after each row, and once for each shard that an earlier process stored.
        """
        self._begun = self._begun or time.monotonic()
        step = progress.rows - self._rows
        if step > 1:  # An earlier process has stored this shard already.
            self._resumed += step
            # tqdm leaves `initial` out of its rate, so the rate is that of this process alone.
            if not self._bar.disable:
                self._bar.initial += step
        self._rows = progress.rows
        self._bar.set_postfix_str(f"{progress.bytes / 1e6:,.0f} MB", refresh=False)
        self._bar.update(step)


def _summarise(url: str, packed: Packed, bar: Bar, *, dropped: bool = False) -> None:
    """Prints one line with the size of the dataset, the speed of packing, and the samples that were left out.

    `dropped` says whether duplicates were dropped, and not only listed.
    """
    manifest = packed.manifest
    stock = f"{counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}"
    parts = [stock, f"{manifest.total_bytes / 1e6:,.1f} MB"]
    if manifest.without_caption:
        share = "all" if manifest.without_caption == manifest.samples else f"{manifest.without_caption:,} of them"
        parts.append(f"{share} without a caption")
    if packed.resumed:
        parts.append(f"{packed.resumed} of them from an earlier run")
    if bar.rows > 100:  # The rate of fewer rows says little.
        parts.append(f"{bar.rows / max(bar.seconds, 1e-3):,.0f} samples/s")
    if packed.skipped:
        parts.append(f"{counted(len(packed.skipped), 'bad row')} in {SKIPPED}")
    if packed.duplicates:
        verb = "dropped, see" if dropped else "in"
        parts.append(f"{counted(len(packed.duplicates), 'duplicate')} {verb} {DUPLICATES}")
    parts.extend(f"{note} of {counted(number, 'image')}" for note, number in packed.notes.items())
    if packed.left_out:
        parts.append(f"left out {described(packed.left_out)}")
    console.print(f"{url}: {', '.join(parts)}.")


def _encoding(
    name: str | None, quality: int | None, longest: int | None, shortest: int | None
) -> EncodingConfig | None:
    """Returns the encoding of images that the options request; None if no option is given.

    Without an encoding, images keep their bytes. `name` is the format, and `longest` and `shortest` limit the length of
    the longer and of the shorter side in pixels.
    """
    if (name, quality, longest, shortest) == (None, None, None, None):
        return None
    return EncodingConfig(cast("Extension | None", name), 92 if quality is None else quality, longest, shortest)
