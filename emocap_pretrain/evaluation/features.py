"""Computes the vectors of a split on all ranks, once for all tasks.

Each rank computes every `world_size`-th batch. The examples of a batch do not depend on the number of ranks, because
the last bits of a vector may depend on the size of its batch. So any number of ranks gives the same vectors, bit for
bit.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from emocap_shards.background import in_order
from jaxtyping import Float, Int
from torch import Tensor

from emocap_pretrain.benchmarks.item import Question
from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.data.parts import Part
from emocap_pretrain.data.transform import BICUBIC, Resize
from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.examples import Example, ExampleSource, LeftOut
from emocap_pretrain.evaluation.feature_cache import FeatureCache
from emocap_pretrain.evaluation.loss_values import LossValues
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.inference.images import READERS, UNREADABLE, reason
from emocap_pretrain.ranks.group import RankGroup

Kept = TypeVar("Kept")

AHEAD = 2  # Batches that are read and decoded before the model needs them.
UNDECODED, INFINITE = "cannot be decoded", "vector is not finite"  # Reasons why an example has no vector.


@dataclass(frozen=True, slots=True, eq=False)
class PartFeatures:
    """Holds the texts of one caption part with their vectors, in the order of the examples.

    Attributes:
        texts: The texts. A caption may have several texts of the part, such as local sentences, and an example may have
            several captions, or none.
        vectors: The unit vector of each text.
        owner: The row in `Features` of the example to which each text belongs.
        caption: The index of the caption to which each text belongs. It counts the captions of all examples, without
            those that have no text of the part.
    """

    texts: tuple[str, ...]
    vectors: Float[Tensor, "texts embedding"]
    owner: Int[Tensor, " texts"]
    caption: Int[Tensor, " texts"]


@dataclass(frozen=True, slots=True, eq=False)
class SentenceMaps:
    """Holds the attention map of each local sentence in the first caption of each example.

    Attributes:
        texts: The sentences, in the order of the examples.
        owner: The row in `Features` of the example of each sentence.
        place: The index of each sentence among the local sentences of the first caption, as they are stored
            (`Example.local_places`).
        weights: The weight of each patch of the example for each sentence (`LocalAlignment.attention`). The patches are
            in the order of the rows of their grid.
    """

    texts: tuple[str, ...]
    owner: Int[Tensor, " sentences"]
    place: Int[Tensor, " sentences"]
    weights: Float[Tensor, "sentences patches"]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Holds the vectors of the examples of a split, on the CPU in float32, and what is known about each example.

    Attributes:
        keys: The names of the examples.
        images: The unit vector of each example in the space that images and texts share. For a video it is the
            projection of the pooled vector, scaled to unit length. This is the direction of the mean over its projected
            frames, as in Exp-CLIP.
        pooled: The vector of each example from the image tower before the projection, on which probes are trained. For
            a video it is the mean over its frames.
        labels: The labels of each example.
        groups: The person or clip of each example; None if it is unknown.
        questions: The question of each example; None if it has none.
        parts: The texts of the captions with their vectors, by the name of the caption part.
        patches: The mean of the unit vectors of the patches of each example; None if the model compares no encoded
            caption part with patches.
        left_out: The examples without vectors, with reasons. All other fields leave them out.
        maps: The attention maps of the local sentences; None if no task needs them, or there is no sentence.
        local_loss: The local loss in batches of faces (`local_loss.py`); None if no task needs it, the model was not
            trained with local sentences, or there is none.
    """

    keys: tuple[str, ...]
    images: Float[Tensor, "examples embedding"]
    pooled: Float[Tensor, "examples width"]
    labels: tuple[Mapping[str, str | float], ...]
    groups: tuple[str | None, ...] = ()
    questions: tuple[Question | None, ...] = ()
    parts: Mapping[str, PartFeatures] = field(default_factory=dict[str, PartFeatures])
    patches: Float[Tensor, "examples embedding"] | None = None
    left_out: tuple[LeftOut, ...] = ()
    maps: SentenceMaps | None = None
    local_loss: LossValues | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def reasons(self) -> tuple[tuple[str, int], ...]:
        """Returns each reason for which examples are left out, with their number. The most frequent one comes first."""
        return tuple(Counter(each.kind for each in self.left_out).most_common())

    def why(self) -> str:
        """Returns the reasons for which examples are left out, with the numbers of examples, as text."""
        return ", ".join(f"{count:,} x {reason}" for reason, count in self.reasons())


class _Text(NamedTuple):
    """One text of a batch.

    Attributes:
        part: The name of its caption part.
        row: The row of its example in the batch.
        caption: The index of its caption among the captions of the example.
        text: The text.
    """

    part: str
    row: int
    caption: int
    text: str


class _Sentence(NamedTuple):
    """One local sentence of a batch.

    Attributes:
        row: The row of its example in the batch.
        place: The index of the sentence among the local sentences of the first caption, as they are stored.
        text: The sentence.
    """

    row: int
    place: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """Holds a batch that was read and decoded, before the model computes its vectors.

    Attributes:
        examples: The examples of the batch that have a content.
        left_out: The examples of the batch that have no content.
        texts: The texts of the examples' captions.
        path: The path of the batch in the cache; empty without a cache.
        arrays: The arrays of the batch from the cache; None if the model must compute them.
        crops: The crops of each of `examples`, or the error if it cannot be decoded; empty if `arrays` is not None.
        sentences: The local sentences whose attention maps are computed.
    """

    examples: Sequence[Example]
    left_out: Sequence[LeftOut]
    texts: Sequence[_Text]
    path: str
    arrays: Mapping[str, np.ndarray] | None
    crops: Sequence[Sequence[Crop] | DataError]
    sentences: Sequence[_Sentence] = ()


@dataclass(frozen=True, slots=True, eq=False)
class BatchFeatures:
    """Holds the vectors of one batch, as a rank sends them to rank 0.

    Attributes:
        keys: The names of the examples that have a content, with or without vectors.
        labels: The labels of each of these examples.
        groups: The person or clip of each of these examples.
        questions: The question of each of these examples.
        texts: The texts of the captions of these examples.
        left_out: The examples of the batch without vectors: those without content, those that cannot be decoded, and
            those whose vectors are not finite.
        arrays: `decoded` says for each of `keys` whether the example has vectors. `images`, `pooled` and, if they are
            needed, `patches` have a row for each example with vectors. `texts` has a row for each of `texts`, and
            `maps` has a row for each of `sentences` whose example has vectors.
        sentences: The local sentences whose attention maps are computed.
    """

    keys: Sequence[str]
    labels: Sequence[Mapping[str, str | float]]
    groups: Sequence[str | None]
    questions: Sequence[Question | None]
    texts: Sequence[_Text]
    left_out: Sequence[LeftOut]
    arrays: Mapping[str, np.ndarray]
    sentences: Sequence[_Sentence] = ()


@dataclass(frozen=True, slots=True)
class Extraction:
    """Computes vectors with one model.

    Attributes:
        embedder: The model, on this rank's device.
        batch: Number of images of a batch, and the largest number of images or texts in one pass of a tower.
        parts: The caption parts whose texts are encoded.
        cache: Keeps vectors between evaluations; with None, all vectors are computed.
        with_maps: Whether the attention maps of local sentences are computed, too. This needs a second pass of the
            image tower, and a model that compares patches with sentences (`Embedder.local`).
        crop: The part of each image that is resized for the model: its central square, or the whole image.
        resize: How this part is resized.
    """

    embedder: Embedder
    batch: int
    parts: Sequence[Part] = ()
    cache: FeatureCache | None = None
    with_maps: bool = False
    crop: ImageCrop = "center"
    resize: Resize = BICUBIC

    def collect(self, source: ExampleSource, world: RankGroup) -> list[BatchFeatures] | None:
        """Returns all batches in order on rank 0, and None on the other ranks. This is a collective.

        Raises:
            DataError: If an example cannot be decoded or has a vector that is not finite, and the source may have no
                gaps.
            ShardsError: If the source cannot read its samples.
            ConfigError, LostContact: If another rank has failed (`RankGroup.run_on_all`).
        """
        shares = world.collect_on_main(lambda: list(self._share(source, world)))
        return None if shares is None else in_turn(shares)

    def _share(self, source: ExampleSource, world: RankGroup) -> Iterator[BatchFeatures]:
        each = max(1, self.batch // source.images_each)
        ranges = [range(first, min(first + each, len(source))) for first in range(0, len(source), each)]
        # One thread waits for the store and looks into the cache; the others decode.
        with ThreadPoolExecutor(1, "emocap-batches") as loader, ThreadPoolExecutor(READERS, "emocap-read") as readers:
            load = partial(self._loaded, source, readers)
            for loaded in in_order(loader, load, ranges[world.rank :: world.world_size], ahead=AHEAD):
                yield self._computed(loaded, may_have_gaps=source.may_have_gaps)

    def _loaded(self, source: ExampleSource, readers: Executor, numbers: range) -> _Loaded:
        found = source.examples(numbers)
        examples = [each for each in found if isinstance(each, Example)]
        left_out = [each for each in found if isinstance(each, LeftOut)]
        texts, sentences = self._texts(examples), self._sentences(examples)
        path, arrays = "", None
        if self.cache:
            contents = list(readers.map(_digest, examples))
            # The settings of the comparison decide the maps, and are not part of the model's digest.
            mapped = [f"map {self.embedder.local} {each.row}: {each.text}" for each in sentences]
            lengths = {part.name: self.embedder.length_of(part) for part in self.parts}
            words = [f"{each.part} {lengths[each.part]}: {each.text}" for each in texts]
            # The default is left out, so that caches of earlier releases are found.
            resize = [] if self.resize == BICUBIC else [str(self.resize)]
            how = [self.crop, *resize, *(["patches"] if self._needs_patches else [])]
            path = self.cache.path(contents, [*how, *words, *mapped])
            arrays = self.cache.read(path)
        crops = list(readers.map(self._crops, examples)) if arrays is None else []
        if not source.may_have_gaps and (failed := [each for each in crops if isinstance(each, DataError)]):
            raise failed[0]
        return _Loaded(examples, left_out, texts, path, arrays, crops, sentences)

    def _crops(self, example: Example) -> Sequence[Crop] | DataError:
        try:
            return example.content.crops(self.embedder.model.pixels, self.crop, self.resize)
        except UNREADABLE as error:
            return DataError(f"{example.key}: {reason(error)}.")

    def _texts(self, examples: Sequence[Example]) -> list[_Text]:
        return [
            _Text(part.name, row, number, text)
            for part in self.parts
            for row, example in enumerate(examples)
            for number, caption in enumerate(example.captions)
            for text in part.texts(caption)
        ]

    def _sentences(self, examples: Sequence[Example]) -> list[_Sentence]:
        if not self.with_maps:
            return []
        return [
            _Sentence(row, place if example.local_places is None else example.local_places[place], text)
            for row, example in enumerate(examples)
            for caption in example.captions[:1]
            for place, text in enumerate(caption.local)
        ]

    def _computed(self, loaded: _Loaded, *, may_have_gaps: bool) -> BatchFeatures:
        arrays = loaded.arrays
        if arrays is None:
            arrays = self._arrays(loaded.crops, loaded.texts) | self._maps(loaded.crops, loaded.sentences)
            if self.cache:
                self.cache.write(loaded.path, arrays)
        keys = [each.key for each in loaded.examples]
        undecoded = [LeftOut(keys[row], UNDECODED) for row in np.flatnonzero(~arrays["decoded"])]
        arrays, rows = _finite(arrays, loaded.sentences)
        infinite = [LeftOut(keys[row], INFINITE) for row in rows]
        if infinite and not may_have_gaps:
            raise DataError(f"{infinite[0].key}: the {INFINITE}; the weights of the model may be damaged.")
        return BatchFeatures(
            keys=keys,
            labels=[each.labels for each in loaded.examples],
            groups=[each.group for each in loaded.examples],
            questions=[each.question for each in loaded.examples],
            texts=loaded.texts,
            left_out=[*loaded.left_out, *undecoded, *infinite],
            arrays=arrays,
            sentences=loaded.sentences,
        )

    def _maps(
        self, crops: Sequence[Sequence[Crop] | DataError], sentences: Sequence[_Sentence]
    ) -> dict[str, np.ndarray]:
        """Returns the attention maps of the sentences whose image could be decoded, as the array `maps`.

        The result is empty if there is no such sentence, or if the model compares no patches with sentences
        (`Embedder.local` is None). The patches of all images of the batch are in memory at the same time. The maps of a
        video are those of its first frame.

        Raises:
            ConfigError: As `LocalAlignment.kept` does.
        """
        decoded = {row: each[0] for row, each in enumerate(crops) if not isinstance(each, DataError)}
        ours = [each for each in sentences if each.row in decoded]
        local = self.embedder.local if ours else None
        if local is None:
            return {}
        words = [each.text for each in ours]
        vectors = [
            self.embedder.sentences(words[at : at + self.batch], local.length)
            for at in range(0, len(words), self.batch)
        ]
        place = {row: number for number, row in enumerate(decoded)}
        image, squares = torch.tensor([place[each.row] for each in ours]), list(decoded.values())
        maps = local.attention(squares, self.embedder.patches(squares), torch.cat(vectors), image)
        return {"maps": maps.numpy()}

    def _arrays(self, crops: Sequence[Sequence[Crop] | DataError], texts: Sequence[_Text]) -> dict[str, np.ndarray]:
        decoded = [each for each in crops if not isinstance(each, DataError)]
        flat = list(chain.from_iterable(decoded))
        # A video with many frames is passed through the tower in parts of `batch` frames.
        passes = [self._pass(flat[at : at + self.batch]) for at in range(0, len(flat), self.batch)]
        arrays = {"decoded": np.array([not isinstance(each, DataError) for each in crops], dtype=np.bool_)}
        if passes:
            vectors, *others = (torch.cat(each) for each in zip(*passes, strict=True))
            sizes = [len(each) for each in decoded]
            means = [torch.stack([each.mean(0) for each in other.split(sizes)]) for other in others]
            arrays |= {name: each.numpy() for name, each in zip(("pooled", "patches"), means, strict=False)}
            # That of a video is the projection of the mean over its frames.
            is_video = len(flat) != len(decoded)
            arrays["images"] = (self.embedder.projected(means[0]) if is_video else vectors).numpy()
        of_texts = [
            self.embedder.texts_of(part, words[at : at + self.batch])
            for part in self.parts
            for words in ([each.text for each in texts if each.part == part.name],)
            for at in range(0, len(words), self.batch)
        ]
        if of_texts:
            arrays["texts"] = torch.cat(of_texts).numpy()
        return arrays

    def _pass(self, crops: Sequence[Crop]) -> tuple[Tensor, ...]:
        """Returns the vectors of crops, their pooled vectors and, if needed, the means of their patch vectors."""
        if not self._needs_patches:
            return self.embedder.crops_and_pooled(crops)
        vectors, pooled, patches = self.embedder.crops_pooled_and_patches(crops)
        return vectors, pooled, patches.mean(1)

    @property
    def _needs_patches(self) -> bool:
        return any(self.embedder.is_compared_with_patches(part) for part in self.parts)


def _finite(
    arrays: Mapping[str, np.ndarray], sentences: Sequence[_Sentence]
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Returns the arrays without the examples whose vectors are not finite, and the rows of these examples.

    An example is left out if a value of its vector or of its pooled vector is infinite or NaN. The rows count all
    examples of the batch.
    """
    if "images" not in arrays:
        return arrays, np.array([], dtype=np.int64)
    is_finite = np.isfinite(arrays["images"]).all(1) & np.isfinite(arrays["pooled"]).all(1)
    if is_finite.all():
        return arrays, np.array([], dtype=np.int64)
    rows = np.flatnonzero(arrays["decoded"])[~is_finite]
    decoded = arrays["decoded"].copy()
    decoded[rows] = False
    kept = {name: arrays[name][is_finite] for name in ("images", "pooled", "patches") if name in arrays}
    if "maps" in arrays:
        mapped = [decoded[each.row] for each in sentences if arrays["decoded"][each.row]]
        kept["maps"] = arrays["maps"][np.array(mapped, dtype=np.bool_)]
    return {**arrays, **kept, "decoded": decoded}, rows


def _digest(example: Example) -> bytes:
    """Returns the digest of the content of an example. All contents that cannot be read have the same digest."""
    try:
        return example.content.digest()
    except UNREADABLE:
        return b"unreadable"


def joined(batches: Sequence[BatchFeatures], address: str) -> Features:
    """Joins the batches of a split in their order, without the examples that have no vectors.

    Args:
        batches: The batches.
        address: Where the examples are, for messages.

    Raises:
        DataError: If there is no example, or none has a vector.
    """
    if not batches:
        raise DataError(f"{address} has no example.")
    decoded = np.concatenate([each.arrays["decoded"] for each in batches])
    left_out = tuple(chain.from_iterable(each.left_out for each in batches))
    if not decoded.any():
        first = f"; the first is {left_out[0].key} ({left_out[0].kind})" if left_out else ""
        raise DataError(f"{address} has no example that can be read{first}.")

    def kept(values: Iterator[Kept]) -> tuple[Kept, ...]:
        return tuple(value for value, is_decoded in zip(values, decoded, strict=True) if is_decoded)

    return Features(
        keys=kept(chain.from_iterable(each.keys for each in batches)),
        images=_rows(batches, "images"),
        pooled=_rows(batches, "pooled"),
        labels=kept(chain.from_iterable(each.labels for each in batches)),
        groups=kept(chain.from_iterable(each.groups for each in batches)),
        questions=kept(chain.from_iterable(each.questions for each in batches)),
        parts=_parts(batches, decoded),
        patches=_rows(batches, "patches") if any("patches" in each.arrays for each in batches) else None,
        left_out=left_out,
        maps=_joined_maps(batches, decoded),
    )


def _rows(batches: Sequence[BatchFeatures], name: str) -> Tensor:
    # A batch of which nothing could be decoded has no array.
    return torch.from_numpy(np.concatenate([each.arrays[name] for each in batches if name in each.arrays]))


def _joined_maps(batches: Sequence[BatchFeatures], decoded: np.ndarray) -> SentenceMaps | None:
    if not any("maps" in each.arrays for each in batches):
        return None
    rows = np.cumsum(decoded) - 1  # The row in `Features` of each example that was decoded.
    firsts = np.cumsum([0, *(len(batch.keys) for batch in batches)]).tolist()
    kept = [
        (int(rows[first + each.row]), each.place, each.text)
        for first, batch in zip(firsts, batches, strict=False)
        for each in batch.sentences
        if decoded[first + each.row]
    ]
    owner, place, texts = zip(*kept, strict=True)
    return SentenceMaps(tuple(texts), torch.tensor(owner), torch.tensor(place), _rows(batches, "maps"))


def _parts(batches: Sequence[BatchFeatures], decoded: np.ndarray) -> dict[str, PartFeatures]:
    rows = np.cumsum(decoded) - 1  # The row in `Features` of each example that was decoded.
    firsts = np.cumsum([0, *(len(batch.keys) for batch in batches)])
    texts = [text for batch in batches for text in batch.texts]
    if not texts:
        return {}
    owners = np.array([first + text.row for first, batch in zip(firsts, batches, strict=False) for text in batch.texts])
    vectors = _rows(batches, "texts")
    found: dict[str, PartFeatures] = {}
    for name in dict.fromkeys(text.part for text in texts):
        places = [place for place, text in enumerate(texts) if text.part == name and decoded[owners[place]]]
        if places:
            kept = tuple(texts[place].text for place in places)
            # The texts of one caption follow each other. A new one begins where the example or the number changes.
            whose = np.array([(owners[place], texts[place].caption) for place in places])
            caption = np.cumsum(np.any(np.diff(whose, axis=0, prepend=whose[:1]), axis=1))
            owner = torch.from_numpy(rows[owners[places]])
            found[name] = PartFeatures(kept, vectors[places], owner, torch.from_numpy(caption))
    return found


def in_turn(shares: Sequence[Sequence[Kept]]) -> list[Kept]:
    """Returns the batches in order: `shares[r]` has those with the numbers r, r + ranks, r + 2 * ranks, ...

    >>> in_turn([["batch 0", "batch 2"], ["batch 1"]])
    ['batch 0', 'batch 1', 'batch 2']
    """
    rounds = zip_longest(*shares)
    return [batch for each in rounds for batch in each if batch is not None]
