"""Makes small images of samples for the examples in a report. Faces are personal data: only a user asks for them."""

import io
from collections.abc import Collection, Sequence

from emocap_shards.errors import ImageError
from PIL import Image

from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.examples import Example, ExampleSource
from emocap_pretrain.evaluation.result_file import MOST_THUMBNAILS, jpeg_text
from emocap_pretrain.run_folder.results import TaskResult

PIXELS, QUALITY = 96, 80
_BLOCK = 256


def shown_samples(results: Sequence[TaskResult]) -> list[str]:
    """Returns the keys of the samples in the examples of the results."""
    keys: dict[str, None] = {}
    for example in (example for result in results for example in result.found):
        found = [example.query] if example.is_sample else [each.text for each in example.candidates]
        keys |= dict.fromkeys(found)
    return list(keys)[:MOST_THUMBNAILS]


def thumbnails(source: ExampleSource, keys: Collection[str]) -> dict[str, str]:
    """Returns the central square of some samples as JPEGs in base64, by their keys.

    Samples that cannot be decoded are left out.

    Args:
        source: The samples, which are read until all are found.
        keys: The keys.
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


def _jpeg(example: Example) -> str | None:
    try:
        crops = example.content.crops(PIXELS, "center")
    except (DataError, ImageError, OSError, ValueError):
        return None
    file = io.BytesIO()
    Image.fromarray(crops[len(crops) // 2]).save(file, "JPEG", quality=QUALITY, optimize=True)
    return jpeg_text(file.getvalue())
