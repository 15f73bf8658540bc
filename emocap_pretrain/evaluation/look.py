"""Computes attention maps of some samples of a dataset, for a picture: each face with sentences about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.decode import decode_image
from emocap_shards.errors import ShardsError

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import EncodedImage, Example, PackedSource
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.images import ImageSource
from emocap_pretrain.inference.model import AttentionMap, EmotionModel

FACES, SENTENCES = 6, 4  # In the picture of a run: faces, and the most sentences of each.


@dataclass(frozen=True, slots=True)
class MappedFace:
    """Holds the attention maps of one image: each sentence with its map. `name` is the key of a sample, or a path."""

    name: str
    maps: tuple[tuple[str, AttentionMap], ...]


def looked_at(model: EmotionModel, name: str, image: ImageSource, sentences: Sequence[str]) -> MappedFace:
    """Returns the attention map of one image for each of the sentences.

    Args:
        model: The model.
        name: The name of the result, such as the key of the sample.
        image: The image.
        sentences: The sentences.

    Raises:
        ConfigError: If the model has no maps (`EmotionModel.attention_map`).
        DataError: If the image cannot be read.
    """
    return MappedFace(name, tuple((sentence, model.attention_map(image, sentence)) for sentence in sentences))


def samples(
    model: EmotionModel, url: str, count: int, sentences: Sequence[str] = (), filter_: DatasetFilter | None = None
) -> list[MappedFace]:
    """Returns the attention maps of the first samples of a dataset.

    Args:
        model: The model.
        url: The dataset.
        count: The number of samples that are read. Samples without a sentence are left out.
        sentences: The sentences, which are the same for all samples. If there are none, each sample has the first
            `SENTENCES` local sentences of its first caption.
        filter_: The filter of the dataset; None uses all samples.

    Raises:
        ConfigError: If the model has no maps.
        ShardsError: If the dataset cannot be read, or an image cannot be decoded.
    """
    source = PackedSource(url, filter=filter_)
    examples = source.examples(range(min(count, len(source))))
    found: list[MappedFace] = []
    for example in examples:
        if isinstance(example, Example) and isinstance(example.content, EncodedImage):
            first = example.captions[0].local if example.captions else ()
            chosen = sentences or first[:SENTENCES]
            if chosen:
                found.append(looked_at(model, example.key, decode_image(example.content.data), chosen))
    return found


def of_run(
    embedder: Embedder, url: str, filter_: Callable[[], DatasetFilter | None] = lambda: None
) -> list[MappedFace]:
    """Returns the attention maps of the first `FACES` samples with their own sentences; none if the model has no maps.

    A run calls this function at its end, and so does `emocap evaluate --thumbnails`. `filter_` opens the filter of the
    dataset. A picture that cannot be made must
    not end a run. So a `ConfigError` or a `ShardsError` is swallowed here on purpose, without a message, and the result
    is empty.
    """
    try:
        return samples(EmotionModel(embedder), url, FACES, filter_=filter_()) if embedder.has_maps else []
    except (
        ConfigError,
        ShardsError,
    ):  # Patches that are not a square grid, or damage that the evaluation has left out.
        return []
