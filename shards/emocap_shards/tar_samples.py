"""Reads the samples of tars of other programs through the library webdataset, without packing them.

The library divides the tars among processes, groups the members of tars into samples, and shuffles them. Two of its
stages are replaced (`_with_store`), because they would open any URL, run the command in a `pipe:` URL, and read members
of any size into memory: tars are opened by our store, and read by the reader of `emocap pack`.
"""

import hashlib
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from webdataset.cache import FileCache, StreamingOpen
from webdataset.compat import WebDataset

from emocap_shards.annotation import load_annotation, normal_annotation
from emocap_shards.errors import AnnotationError, DamagedSample, RecordError
from emocap_shards.manifest import MANIFEST
from emocap_shards.mask import masked_url
from emocap_shards.printable import printable
from emocap_shards.reader import decoded
from emocap_shards.sample import Caption, Encoded, Sample
from emocap_shards.store import open_store
from emocap_shards.writing.reading import TAR, alternatives, places
from emocap_shards.writing.row import BadRow
from emocap_shards.writing.sources.columns import STANDARD, TableColumns, with_texts
from emocap_shards.writing.sources.tars import TarsSource

_log = logging.getLogger(__name__)

MOST_BYTES = 1 << 25
"""Largest size of the members of a sample together, in bytes. The shuffle buffer holds many samples at a time."""
MOST_UNUSABLE = 1000
"""A process ends once it has skipped so many samples more than `UNUSABLE_SHARE` times those that it could use."""
UNUSABLE_SHARE = 9
_NAMED = 100  # Skipped samples of a process that are named one by one; after them it names every hundredth.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!//)")
_WILD = re.compile(r"[*?\[{]")


class TarPlace(NamedTuple):
    """Names a tar: the folder or URL of its store, which may hold a password, and its path in the store."""

    folder: str
    path: str


def list_tars(pattern: str) -> tuple[TarPlace, ...]:
    """Returns the tars that a pattern names, or those of a folder. Nothing is opened but the store.

    Args:
        pattern: A path or URL with {braces} and wild cards, such as "s3://bucket/laion/{00000..00099}.tar", or a folder
            or its URL, such as "s3://bucket/laion". Tars may be compressed (.gz, .bz2, .xz, .zst).

    Raises:
        RecordError: If nothing matches, if a tar is named twice, if a URL has a scheme that no store knows, such as
            `pipe:`, or if the folder is that of a packed dataset or holds tars of several kinds (.tar, .tar.gz).
        StoreError: If a store cannot be opened, or its files cannot be listed.
    """
    found = [place for url in alternatives(pattern) for place in _tars_at(url)]
    if len(set(found)) < len(found):
        twice = next(place for place in found if found.count(place) > 1)
        raise RecordError(f"{masked_url(pattern)} names {twice.path} twice; name each tar once.")
    return tuple(found)


def _tars_at(url: str) -> Iterator[TarPlace]:
    # Some programs execute what follows `pipe:`. Here it would be the name of a local file, and never a command.
    if found := _SCHEME.match(url):
        raise RecordError(
            f"{found[1]}: URLs are refused, because no store of this program opens them; give a path, or a URL such as "
            "s3://bucket/{00000..00099}.tar."
        )
    if TAR.search(url):
        yield from itertools.starmap(TarPlace, places(url))
        return
    if not _WILD.search(url) and open_store(url).exists(MANIFEST):
        raise RecordError(f"{masked_url(url)} is a packed dataset; give it as data.url, which keeps all promises.")
    yield from _tars_in(url.rstrip("/"))


def _tars_in(folder: str) -> Iterator[TarPlace]:
    """Yields the tars of a folder or its URL, compressed ones too.

    Raises:
        RecordError: If there is none, or if there are several kinds, of which one may be a copy of another.
    """
    kinds: dict[str, list[TarPlace]] = {}
    for place in itertools.starmap(TarPlace, places(f"{folder}/*")):
        if kind := TAR.search(place.path):
            kinds.setdefault(kind.group().lower(), []).append(place)
    if len(kinds) != 1:
        found = f"tars of several kinds ({', '.join(sorted(kinds))})" if kinds else "no tar"
        raise RecordError(f"{masked_url(folder)} holds {found}; name the tars, such as {masked_url(folder)}/*.tar.")
    yield from next(iter(kinds.values()))


Split = Callable[[Iterable[Any]], Iterator[Any]]
"""Yields those of the tars that belong to a rank, or to one of its loader processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSamples:
    """The samples of tars as a picklable value: which tars they are in, and how a sample becomes image and caption.

    Attributes:
        tars: The tars (`list_tars`).
        columns: Which members and fields of the JSON are image, caption and labels, by the rules of `emocap pack`.
        change: Changes each caption, such as one of several sentences into parts; None keeps captions as they are.
        most_bytes: Largest size of the members of a sample together.
    """

    tars: tuple[TarPlace, ...] = field(repr=False)
    columns: TableColumns = STANDARD
    change: Callable[[Caption], Caption] | None = None
    most_bytes: int = MOST_BYTES

    @property
    def digest(self) -> str:
        """Returns a digest of the names of the tars, without the folder or bucket in which they are."""
        return hashlib.sha256(_utf8("\0".join(place.path for place in self.tars))).hexdigest()

    def captions(self) -> Iterator[tuple[Caption, ...]]:
        """Yields the captions of each sample, in the order of the tars. Samples that cannot be used are left out.

        They are not named in the log, because the stream names them when they are trained.
        """
        for encoded in TarReader(self, SkippedSamples(quiet=True)).encoded():
            yield load_annotation(encoded.annotation)[0]

    def usable(self, count: int) -> tuple[int, tuple[DamagedSample, ...]]:
        """Reads and decodes the first `count` samples, for a check before a start.

        Returns:
            The number of samples that can be used, and those that cannot. Together there may be fewer than `count`.
        """
        skipped = SkippedSamples(quiet=True)
        for _ in TarReader(self, skipped).decoded(_all, _all):
            if skipped.used + skipped.total >= count:
                break
        return skipped.used, skipped.taken()


class SkippedSamples:
    """Is the `handler` of webdataset's stages: it counts and names the samples that are left out.

    Errors that are not those of a single sample, such as an unreachable store, are raised again.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.total = 0
        self.used = 0
        self._quiet = quiet
        self._fresh: list[DamagedSample] = []

    def __call__(self, error: Exception) -> bool:
        """Returns True, with which the stage continues with its next sample.

        Raises:
            RecordError: If nearly all samples so far cannot be used.
        """
        if not isinstance(error, DamagedSample):
            raise error
        self.total += 1
        self._fresh.append(error)
        if not self._quiet and (self.total <= _NAMED or self.total % _NAMED == 0):
            more = f"; from now on only every {_NAMED}th is named" if self.total == _NAMED else ""
            _log.warning("skipped (%d in this process): %s%s", self.total, _named(error), more)
        if self.total >= MOST_UNUSABLE + UNUSABLE_SHARE * self.used:
            raise RecordError(
                f"{self.total:,} of the {self.total + self.used:,} samples that were read cannot be used, the last one "
                f"is {_named(error)}; say which members are image and caption, or look at the tars."
            )
        return True

    def skip(self, bad: BadRow, *, shard: str) -> None:
        """Counts a row that cannot be used. `shard` is the URL of its tar."""
        name = bad.where.removeprefix(shard).removeprefix(": ")
        self(DamagedSample(str(bad), shard=shard, key=name, reason=bad.reason))

    def taken(self) -> tuple[DamagedSample, ...]:
        """Returns the samples that were skipped since the last call."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh


def _named(damage: DamagedSample) -> str:
    return printable(": ".join(part for part in (damage.shard, damage.key, damage.reason) if part))


def _all(items: Iterable[Any]) -> Iterator[Any]:
    return iter(items)


class TarReader:
    """Reads the samples of tars through webdataset, in one process."""

    def __init__(self, source: TarSamples, skipped: SkippedSamples) -> None:
        self.skipped = skipped
        self._change = source.change
        self._tars = TarsSource("", with_texts(source.columns), most_bytes=source.most_bytes)
        # A URL in messages and keys shows no password. The folder that is opened may have one.
        stores = {folder: open_store(folder) for folder in dict.fromkeys(place.folder for place in source.tars)}
        opened = ((stores[place.folder], place.path) for place in source.tars)
        self._places = {f"{store.url}/{path}": (store, path) for store, path in opened}

    def encoded(self) -> Iterator[Encoded]:
        """Yields all samples in the order of the tars. Their images are not decoded."""
        for sample in self._pipeline(_all, _all, None, None):
            self.skipped.used += 1
            yield sample

    def decoded(
        self,
        of_node: Split,
        of_worker: Split,
        *,
        tars: int | None = None,
        order: int | None = None,
        buffer_samples: int = 0,
        key: tuple[int, int] = (0, 0),
    ) -> Iterator[Sample]:
        """Yields samples with their pixels, by default in the order of the tars.

        Args:
            of_node: Yields those of all tars that belong to this rank.
            of_worker: Yields those of them that belong to this process.
            tars: Seed of the order of all tars, before they are divided. It must be equal on all ranks. None keeps the
                order of the tars.
            order: Seed of the order of the tars and samples of this process; None keeps the order of the tars.
            buffer_samples: Number of samples in the shuffle buffer.
            key: The seed of the run, and the number of the pass.
        """
        found = self._pipeline(of_node, of_worker, tars, order)
        shuffled = found.shuffle(buffer_samples, initial=max(1, buffer_samples // 2), seed=order)
        return iter(shuffled.map(partial(self._decoded, key=key), handler=self.skipped))

    def _pipeline(self, of_node: Split, of_worker: Split, tars: int | None, order: int | None) -> Any:
        urls = list(self._places)
        if tars is not None:
            random.Random(tars).shuffle(urls)
        dataset = WebDataset(
            urls,
            handler=self.skipped,
            nodesplitter=of_node,
            workersplitter=of_worker,
            shardshuffle=False if order is None else len(urls),
            seed=order or 0,
            empty_check=False,
        )
        return _with_store(dataset, self._members).map(self._encoded, handler=self.skipped)

    def _members(self, urls: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
        """Yields the members of tars in the form that webdataset's `group_by_keys` takes."""
        for each in urls:
            url = each["url"]
            store, path = self._places[url]
            try:
                yield from self._tars.members(store, path, partial(self.skipped.skip, shard=url))
            except RecordError as error:
                self.skipped(DamagedSample(str(error), shard=url, reason="the tar does not exist"))
            # The mark for the end of a tar. Without it, samples of the same name in two tars would become one.
            yield {}

    def _encoded(self, group: Mapping[str, Any]) -> Encoded:
        """Returns a sample with its annotation checked. The image is decoded later, because pixels need more memory.

        Raises:
            DamagedSample: If the sample cannot be used.
        """
        url, name = str(group["__url__"]), str(group["__key__"])
        row = self._tars.row(group, number=0)
        if isinstance(row, BadRow):
            raise DamagedSample(str(row), shard=url, key=name, reason=row.reason)
        try:
            # Rows of tars hold bytes, and no files on a disk.
            annotation = normal_annotation(_bytes(row.annotation), self._change)
        except AnnotationError as error:
            raise DamagedSample(str(error), shard=url, key=name, reason=str(error)) from error
        image = _bytes(row.image)
        middle, end = len(image), len(image) + len(annotation)
        index = int.from_bytes(hashlib.blake2b(_utf8(f"{url}\0{name}"), digest_size=8).digest()) >> 1
        return Encoded(index, row.key, url, row.extension, image + annotation, (0, middle), (middle, end))

    def _decoded(self, sample: Encoded, *, key: tuple[int, int]) -> Sample:
        found = decoded(sample, seed=key[0], epoch=key[1])
        if isinstance(found, DamagedSample):
            raise found
        self.skipped.used += 1
        return found


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # A name that is not UTF-8 contains surrogates.


def _bytes(content: object) -> bytes:
    if not isinstance(content, bytes):
        raise TypeError(f"a tar gives {type(content).__name__} in place of bytes")
    return content


def _with_store(dataset: WebDataset, members: Callable[[Iterable[Any]], Iterator[Any]]) -> WebDataset:
    """Puts `members` in place of the library's two stages that open URLs and that read tars.

    They would open a URL by its scheme, which for `pipe:` runs a command, and read members of any size into memory.
    """
    stages: list[Any] = dataset.pipeline
    (place,) = [place for place, stage in enumerate(stages) if isinstance(stage, StreamingOpen | FileCache)]
    stages[place : place + 2] = [members]
    return dataset
