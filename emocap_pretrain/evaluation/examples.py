"""Defines the examples that an evaluation reads, and the source from which they come.

An example is an image or a video with its labels and captions. Its content is decoded only if its vectors are not known
yet, because decoding a benchmark takes longer than scoring it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from emocap_shards.annotation import load_annotation
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.decode import decode_image
from emocap_shards.inspecting.label_values import LabelValues, label_values
from emocap_shards.library import Library, MixtureDataset
from emocap_shards.mask import masked_url
from emocap_shards.order import Ids
from emocap_shards.reader import used_annotation
from emocap_shards.sample import EVERY_LOCAL, WHOLE_CAPTION, Caption, Encoded

from emocap_pretrain.benchmarks.item import Question
from emocap_pretrain.config.fields import ImageCrop, label_text
from emocap_pretrain.data.transform import BICUBIC, Resize, cropped
from emocap_pretrain.inference.embedder import Crop


class Content(Protocol):
    """The encoded image or video of an example."""

    def digest(self) -> bytes:
        """Returns a digest of everything that decides the crops: the encoded bytes, and the chosen part of them.

        Raises:
            DataError, OSError: If the bytes cannot be read.
        """
        ...

    def crops(self, pixels: int, crop: ImageCrop, resize: Resize = BICUBIC) -> Sequence[Crop]:
        """Decodes the content and returns its crops: one of an image, one of each chosen frame of a video.

        Args:
            pixels: Side of the crops.
            crop: The part of an image or frame that is resized: its central square, or the whole.
            resize: How this part is resized.

        Raises:
            DataError, ImageError, OSError, ValueError: If the content cannot be decoded.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An image or video before it is decoded, with what is known about it.

    Attributes:
        key: A name that is unique within the source.
        content: The encoded image or video.
        labels: Texts and numbers by their names.
        captions: The captions of the image, each of which is a right one; empty if there is none.
        group: The person or the clip to which the example belongs; None if it is unknown.
        question: A question about the image with its answers; None if there is none.
        local_places: The index of each local sentence of the first caption among those that are stored, or -1 for a
            caption that is not the first one that is stored; None if a filter has changed neither.
    """

    key: str
    content: Content
    labels: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    captions: tuple[Caption, ...] = ()
    group: str | None = None
    question: Question | None = None
    local_places: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An example that has no vector, and the reason. `kind` is a few words, by which such examples are counted."""

    key: str
    kind: str


@runtime_checkable
class ExampleSource(Protocol):
    """Provides the examples of one split. Every rank opens the same source, and asks for its own part.

    Attributes:
        address: Where the examples are, without secrets, for reports.
        images_each: Number of crops of an example; above 1 for videos.
        may_have_gaps: Whether examples may be left out. Otherwise one that cannot be decoded ends the evaluation.
    """

    @property
    def address(self) -> str: ...
    @property
    def images_each(self) -> int: ...
    @property
    def may_have_gaps(self) -> bool: ...

    def __len__(self) -> int:
        """Returns the number of examples, those that may be left out included."""
        ...

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        """Returns the examples with the given numbers, counted from 0, in this order."""
        ...

    def label_values(self, name: str, *, seconds: float | None = None) -> LabelValues:
        """Counts the values of the label `name`. Reading may stop after `seconds` seconds; None reads everything."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The encoded bytes of an image."""

    data: bytes = field(repr=False)

    def digest(self) -> bytes:
        return hashlib.blake2b(self.data, digest_size=32).digest()

    def crops(self, pixels: int, crop: ImageCrop, resize: Resize = BICUBIC) -> Sequence[Crop]:
        return (cropped(decode_image(self.data), pixels, crop, resize),)


@dataclass(frozen=True)
class PackedSource:
    """Reads the samples of a packed dataset that are used, in the order of its manifest.

    Attributes:
        url: The dataset.
        group: The name of the label that holds the person or clip of a sample; None if no label does.
        images_each: Number of crops of a sample.
        may_have_gaps: Whether samples may be left out.
        filter: The filter of the dataset. What it leaves out is not among the examples; with None everything is used.
    """

    url: str = field(repr=False)  # It may hold a password.
    group: str | None = None
    images_each: int = 1
    may_have_gaps: bool = False
    filter: DatasetFilter | None = field(default=None, repr=False)
    _counts: dict[tuple[str, float | None], LabelValues] = field(
        default_factory=dict[tuple[str, float | None], LabelValues], repr=False, compare=False
    )

    @property
    def address(self) -> str:
        return masked_url(self.url)

    def __len__(self) -> int:
        return sum(self._library.used)

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        """Returns samples of the dataset.

        Raises:
            DamagedSample: If a sample is damaged.
            DamagedShard, StoreError: If a shard cannot be read.
            FilterError: If the filter does not fit a sample.
            ManifestError: If there is no dataset at the URL.
        """
        ids = np.asarray(numbers) if self._used is None else self._used[numbers.start : numbers.stop : numbers.step]
        return [_example(sample, self.group) for sample in self._library.fetch(ids, direct=True)]

    @property
    def stored(self) -> int:
        """The number of samples, with those that the filter leaves out."""
        return sum(self._library.samples)

    @property
    def without_caption(self) -> int:
        """The number of samples that have labels and no caption, from the manifest."""
        return self._library.without_caption

    def label_values(self, name: str, *, seconds: float | None = None) -> LabelValues:
        # Several tasks ask for the same label, and each count reads the annotations of the dataset.
        if (name, seconds) not in self._counts:
            self._counts[name, seconds] = label_values(self.url, name, seconds=seconds, filter_=self.filter)
        return self._counts[name, seconds]

    @cached_property
    def _library(self) -> Library:
        return Library.open((MixtureDataset(self.url, filter=self.filter),))

    @cached_property
    def _used(self) -> Ids | None:
        return self.filter.used_ids() if self.filter else None


def _example(sample: Encoded | Exception, group: str | None) -> Example:
    if isinstance(sample, Exception):
        raise sample
    captions, labels = used_annotation(sample)
    of_group = labels.get(group, "") if group else ""
    return Example(
        sample.key,
        EncodedImage(sample.image),
        labels,
        captions,
        None if of_group == "" else label_text(of_group),
        local_places=_local_places(sample, captions) if sample.unused else None,
    )


def _local_places(sample: Encoded, captions: Sequence[Caption]) -> tuple[int, ...]:
    stored, _ = load_annotation(sample.annotation)
    if (0, WHOLE_CAPTION) in sample.unused:
        return (-1,) * len(captions[0].local)
    of_first = {each.sentence for each in sample.unused if each.caption == 0}
    kept = () if EVERY_LOCAL in of_first else range(len(stored[0].local))
    return tuple(place for place in kept if place not in of_first)
