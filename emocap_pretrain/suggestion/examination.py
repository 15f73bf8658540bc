"""Looks at a user's data: which kind of source it is, and which captions and labels its samples have.

The kind of the source is found by the code that packs it (`emocap_shards.writing.sources`).
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emocap_shards.annotation import Labels, load_annotation
from emocap_shards.errors import AnnotationError, RecordError, ShardsError
from emocap_shards.inspecting.look import everything, look
from emocap_shards.manifest import MANIFEST, read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Caption
from emocap_shards.store import RetryConfig, Store, open_store
from emocap_shards.writing.row import BadRow, SourceRow
from emocap_shards.writing.row_source import RowSource
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import STANDARD, TableColumns

from emocap_pretrain.config.fields import label_text
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.suggestion.table_columns import CLASS, NUMBERS, PERSON, columns_of, labels_of, mapping_of

ANSWER_S = 20.0  # A store that has not answered after this time is given up.
SECONDS = 20.0  # Samples are read for so long; what was not reached is not counted.
MOST_SAMPLES = 500_000
MOST_CLASSES = 100
NAME = "emotion"  # The label of class folders.
TARS = "tars"  # The kind of a source that consists of tars of another program.

Progress = Callable[[int], None]

_TRAIN, _VALID, _TEST = {"train", "training"}, {"valid", "validation", "val", "dev"}, {"test", "testing", "eval"}
_MOST_NAMES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Describes a dataset, or a source that can be packed.

    Attributes:
        url: The folder, file or URL.
        packed: Whether it is a packed dataset.
        kind: What it is, in words.
        pack_options: The options of `emocap pack` for this source; empty for a packed dataset.
        samples: Number of samples; if not all were reached, the number of those that were.
        complete: Whether all samples were reached.
        reached: Number of samples whose captions and labels were read, to which the next four attributes refer.
        with_caption: Number of samples that have a caption.
        with_local: Number of samples whose caption has local sentences.
        with_summary: Number of samples whose caption has a summary.
        labels: For each label, the number of samples with each value.
        bad: Number of rows that cannot be packed.
        reason: Why the first of them cannot be packed.
    """

    url: str
    packed: bool
    kind: str
    pack_options: tuple[str, ...] = ()
    samples: int = 0
    complete: bool = True
    reached: int = 0
    with_caption: int = 0
    with_local: int = 0
    with_summary: int = 0
    labels: Mapping[str, Mapping[str | float, int]] = field(default_factory=dict[str, Mapping[str | float, int]])
    bad: int = 0
    reason: str = ""

    @property
    def is_captioned(self) -> bool:
        """Returns whether most samples have a caption."""
        return self.with_caption * 2 > self.reached

    @property
    def class_label(self) -> str | None:
        """Returns the name of the label with classes, such as emotions; None if there is none.

        A label counts if it has texts or small whole numbers, and from 2 to 100 values. A usual name is preferred.
        """
        fitting = [name for name, values in self.labels.items() if name != self.person and _are_classes(values)]
        usual = [name for name in CLASS if name in fitting]
        texts = [name for name in fitting if any(isinstance(each, str) for each in self.labels[name])]
        return next(iter([*usual, *texts]), None)

    @property
    def person(self) -> str | None:
        """Returns the name of the label that says which person an image shows; None if there is none."""
        return next((name for name in self.labels if name.lower() in PERSON), None)

    @property
    def classes(self) -> dict[str, int]:
        """Returns the number of samples of each class, sorted by the name of the class; empty without a class label."""
        if self.class_label is None:
            return {}
        counts = Counter[str]()
        for value, count in self.labels[self.class_label].items():
            counts[label_text(value)] += count
        return dict(sorted(counts.items()))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Returns the names of the labels with numbers that are usually predicted, such as valence."""
        return tuple(
            name
            for name in NUMBERS
            if name in self.labels and not any(isinstance(each, str) for each in self.labels[name])
        )


@dataclass(slots=True)
class _Tally:
    samples: int = 0
    with_caption: int = 0
    with_local: int = 0
    with_summary: int = 0
    labels: dict[str, Counter[str | float]] = field(default_factory=dict[str, Counter[str | float]])
    bad: int = 0
    reason: str = ""

    def add(self, captions: Sequence[Caption], labels: Labels) -> None:
        self.samples += 1
        self.with_caption += bool(captions)
        self.with_local += any(each.local for each in captions)
        self.with_summary += any(each.summary for each in captions)
        for name, value in labels.items():
            if value != "" and (name in self.labels or len(self.labels) < _MOST_NAMES):
                counts = self.labels.setdefault(name, Counter[str | float]())
                # A label with more values, such as the name of a person, holds no classes.
                if value in counts or len(counts) <= MOST_CLASSES:
                    counts[value] += 1

    def miss(self, reason: str) -> None:
        self.bad += 1
        self.reason = self.reason or reason


def splits_of(where: str) -> dict[str, str]:
    """Returns the place of each split, by "train", "valid" and "test".

    Raises:
        ConfigError: If `where` is empty.

    If the folder has subfolders with the usual names of splits, these are the splits. Otherwise the whole of it is
    "train".
    """
    if not where.strip():
        raise ConfigError("the place of the data is empty: give a folder, such as . for the present one, or a URL.")
    folder = Path(where)
    if "://" in where or not folder.is_dir() or (folder / MANIFEST).is_file():
        return {"train": where}
    found: dict[str, str] = {}
    for each in sorted(folder.iterdir()):
        for split, names in (("train", _TRAIN), ("valid", _VALID), ("test", _TEST)):
            if each.is_dir() and each.name.lower() in names:
                found.setdefault(split, str(each))
    return found if "train" in found else {"train": where}


def examine(where: str, progress: Progress = lambda _: None) -> DataFacts:
    """Looks at a dataset or a source for at most `SECONDS` seconds.

    Args:
        where: A folder, a file or a URL.
        progress: Gets the number of samples that were read, from time to time.

    Raises:
        DataError: If it holds nothing that can be packed or trained, or a folder in it cannot be read. The message says
            what to do.
        ShardsError: If it cannot be read.
    """
    try:
        facts = _examined(where, progress)
    except OSError as error:
        place = error.filename or where
        raise DataError(f"{place} cannot be read: {error.strerror}; allow it, or give another folder.") from error
    if not (facts.with_caption or facts.class_label or facts.numbers):
        raise DataError(
            f"{where}: there is nothing to learn in {facts.kind}: no sample has a caption, and no label has 2 to "
            f"{MOST_CLASSES} classes or the numbers {' or '.join(NUMBERS[:2])}."
        )
    return facts


def _examined(where: str, progress: Progress) -> DataFacts:
    tally = _Tally()
    store = open_store(where, patience=RetryConfig.within(ANSWER_S)) if "://" in where else None
    if Path(where, MANIFEST).is_file() if store is None else store.exists(MANIFEST):
        complete = _look(store or open_store(where), tally, progress)
        return _facts(where, "a packed dataset", tally, complete=complete, packed=True)
    source, options, kind = _source(where)
    complete = _within(_added(source.rows(), tally), progress)
    if not tally.samples:
        why = f" The first row: {tally.reason}." if tally.reason else ""
        raise DataError(
            f"{where}: no image with a caption or a label was found in {kind}.{why} Pack it with `emocap pack`, whose "
            "options name columns and labels, and then give the packed dataset."
        )
    return _facts(where, kind, tally, complete=complete, options=options)


def _facts(
    where: str, kind: str, tally: _Tally, *, complete: bool, packed: bool = False, options: Sequence[str] = ()
) -> DataFacts:
    return DataFacts(
        url=where,
        packed=packed,
        kind=kind,
        pack_options=tuple(options),
        samples=read_manifest(where).samples if packed else tally.samples,
        complete=complete,
        reached=tally.samples,
        with_caption=tally.with_caption,
        with_local=tally.with_local,
        with_summary=tally.with_summary,
        labels=tally.labels,
        bad=tally.bad,
        reason=tally.reason,
    )


def _look(store: Store, tally: _Tally, progress: Progress) -> bool:
    """Adds the samples of a packed dataset to the tally, and returns whether all of them were reached."""
    manifest = read_manifest(store)

    def read() -> Iterator[None]:
        for _, found in look(Reader(store, manifest), everything(manifest)):
            for each in [found] if isinstance(found, ShardsError) else found:
                if isinstance(each, ShardsError):
                    tally.miss(str(each))
                else:
                    tally.add(each.captions, each.labels)
                yield

    return _within(read(), progress)


def _added(rows: Iterable[SourceRow | BadRow], tally: _Tally) -> Iterator[None]:
    for row in rows:
        if isinstance(row, BadRow):
            tally.miss(row.reason)
        else:
            try:
                annotation = row.annotation
                tally.add(*load_annotation(annotation if isinstance(annotation, bytes) else annotation.read()))
            except (AnnotationError, RecordError) as error:
                tally.miss(str(error))
        yield


def _within(steps: Iterator[None], progress: Progress) -> bool:
    """Takes the steps until they end, or until too many samples or seconds have passed; returns whether they ended."""
    began_s = time.monotonic()
    for number, _ in enumerate(steps, 1):
        if number % 256 == 0:
            progress(number)
        if number >= MOST_SAMPLES or (number % 256 == 0 and time.monotonic() - began_s > SECONDS):
            return next(steps, steps) is steps
    return True


def _source(where: str) -> tuple[RowSource, tuple[str, ...], str]:
    """Opens a source, and returns it with the options of `emocap pack` that open it alike, and its kind in words."""
    from emocap_shards.writing.sources.class_folders import ClassFolderSource
    from emocap_shards.writing.sources.metadata import MetadataSource

    path = Path(where)
    names = columns_of(path)
    if names:
        mapping, options = mapping_of(where, names)
        return open_source(where, mapping), options, f"a table with the columns {', '.join(names[:8])}"
    if path.is_dir():
        given = open_source(where)
        if isinstance(given, MetadataSource):
            labels = labels_of(given.table.names())
            options = tuple(word for name in labels for word in ("--label", name))
            return open_source(where, TableColumns(labels=labels)), options, f"images and {given.table.path.name}"
        labelled = open_source(where, TableColumns(labels=(NAME,)))
        if isinstance(labelled, ClassFolderSource):
            return labelled, ("--label", NAME), "a folder for each class"
        labels = (NAME,) if type(labelled) is not type(given) else ()
        options = tuple(word for name in labels for word in ("--label", name))
        return open_source(where, TableColumns(labels=labels)), options, "a folder of images with annotations"
    return open_source(where, STANDARD), (), TARS if ".tar" in where else "a list"


def _are_classes(values: Mapping[str | float, int]) -> bool:
    # 0, 0.0 and "0" are one class.
    if not 2 <= len({label_text(each) for each in values}) <= MOST_CLASSES:
        return False
    return all(isinstance(each, str) or (float(each).is_integer() and 0 <= each < MOST_CLASSES) for each in values)


def described(facts: DataFacts) -> str:
    """Returns one sentence about the samples, their captions and their labels."""
    least = "" if facts.complete or facts.packed else "at least "
    parts = [f"{facts.kind}, {least}{facts.samples:,} samples"]
    captions = facts.with_caption
    parts.append("without captions" if not captions else "with captions" if not facts.classes else "with captions and")
    if facts.classes:
        few = [f"{name} {count:,}" for name, count in list(facts.classes.items())[:8]]
        more = f" and {len(facts.classes) - 8} more" if len(facts.classes) > 8 else ""
        parts.append(f"{len(facts.classes)} classes of {facts.class_label}: {', '.join(few)}{more}")
    return _joined(parts)


def _joined(parts: Sequence[str]) -> str:
    return re.sub(r"and, ", "and ", ", ".join(parts))
