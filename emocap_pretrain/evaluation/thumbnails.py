"""Makes small images of samples for the examples in a file of results.

Faces are personal data, so these images are made only if the user asks for them.
"""

import io
from collections.abc import Collection, Sequence

import numpy as np
from emocap_shards.errors import ImageError
from jaxtyping import Float, UInt8
from PIL import Image

from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.examples import Example, ExampleSource
from emocap_pretrain.evaluation.look import MappedFace
from emocap_pretrain.evaluation.result_file import MOST_PATCHES, MOST_THUMBNAILS, SavedFace, SavedMap, jpeg_text
from emocap_pretrain.run_folder.results import TaskResult

PIXELS, QUALITY = 96, 80
_BLOCK = 256


def shown_samples(results: Sequence[TaskResult]) -> list[str]:
    """Returns the keys of the first `MOST_THUMBNAILS` different samples that occur in the examples of the results.

    In an example, the samples are either the query or the candidates; the other side consists of texts.
    """
    keys: dict[str, None] = {}
    for example in (example for result in results for example in result.found):
        found = [example.query] if example.is_sample else [each.text for each in example.candidates]
        keys |= dict.fromkeys(found)
    return list(keys)[:MOST_THUMBNAILS]


def thumbnails(source: ExampleSource, keys: Collection[str]) -> dict[str, str]:
    """Returns small images of some samples as JPEGs in base64, by the keys of the samples.

    An image is the central square of the sample, or of its middle frame if it is a video. Samples that cannot be
    decoded, whose JPEG is too large, or that the source does not have, are left out.

    Args:
        source: The samples, which are read in their order until all keys are found.
        keys: The keys of the wanted samples.

    Raises:
        ShardsError: If the samples of a packed dataset cannot be read.
    """
    wanted, found = set(keys), dict[str, str]()
    for first in range(0, len(source), _BLOCK):
        if not wanted:
            break
        for example in source.examples(range(first, min(first + _BLOCK, len(source)))):
            if isinstance(example, Example) and example.key in wanted:
                wanted.remove(example.key)
                text = _jpeg(example)
                found |= {example.key: text} if text else {}
    return found


def mapped(faces: Sequence[MappedFace]) -> tuple[dict[str, str], list[SavedFace]]:
    """Returns the small images of faces by their names, and the faces' attention maps as a file of results holds them.

    A face is left out of both if its maps have more than `MOST_PATCHES` rows or columns, or if its JPEG is too large.
    """
    images, saved = dict[str, str](), list[SavedFace]()
    for face in faces:
        maps = [SavedMap(sentence, _rows(found.weights)) for sentence, found in face.maps]
        pixels = Image.fromarray(face.maps[0][1].image).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        image = _jpeg_text(np.asarray(pixels))
        if image and max(face.maps[0][1].weights.shape) <= MOST_PATCHES:
            images[face.name] = image
            saved.append(SavedFace(face.name, tuple(maps)))
    return images, saved


def _rows(weights: Float[np.ndarray, "rows columns"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(each), 5) for each in row) for row in weights)


def _jpeg(example: Example) -> str | None:
    try:
        crops = example.content.crops(PIXELS, "center")
    except (DataError, ImageError, OSError, ValueError):
        return None
    return _jpeg_text(crops[len(crops) // 2])


def _jpeg_text(image: UInt8[np.ndarray, "height width 3"]) -> str | None:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, optimize=True)
    return jpeg_text(file.getvalue())
