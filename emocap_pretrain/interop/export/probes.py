"""Makes the inputs with which an export is compared with our model, and the vectors that our model computes from them.

The inputs are the same for every model of the same size: images of the model's size, photographs of another size and
shape, and captions of different length. A library gets the images and captions as they are, so its image processor and
its tokenizer are compared too. Only formats without a tokenizer of their own get token ids.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from emocap_pretrain.data.transform import center_crop
from emocap_pretrain.interop.export.graphs import numbers_of
from emocap_pretrain.interop.restore import Restored

# The texts differ in length, so most are padded. The last one is longer than any text tower reads, so it is cut.
CAPTIONS = (
    "joy",
    "A clearly happy face.",
    "The brows are drawn together, and the lips are pressed.",
    "a face with an expression of surprise.",
    "The inner corners of the eyebrows rise, the lips part slightly, and the eyes are wide open with fear.",
    "Café: naïve smile (AU 12), 100 % « heureux »!",
    "She looks sad, tired and a little angry, " * 40,
)


def probes_of(restored: Restored) -> Mapping[str, np.ndarray[Any, Any]]:
    """Returns the inputs and our vectors by name, as arrays that are stored without pickle.

    `images`, `photos`, `texts`, `input_ids` and `attention_mask` are inputs. All other arrays are results: `image`,
    `patches`, `text` and `sentence` are unit vectors; `pixels` are the photographs after our own crop, and `photo` the
    unit vectors of these crops; `scale`, `local_scale` and `bias` are the numbers of `numbers_of`.
    """
    model, side = restored.model, restored.model.pixels
    images = _images(side, side)
    photos = _images(side + side // 2 + 1, 2 * side + 3)
    cropped = np.stack([center_crop(photo, side) for photo in photos])
    captions = _captions(restored)
    tokens = restored.tokenizer.encode(captions, model.prompt_length)
    with torch.inference_mode():
        found = {
            "image": model.embed_images(_channels_first(images)),
            "patches": model.embed_patches(_channels_first(images)),
            "photo": model.embed_images(_channels_first(cropped)),
            "text": model.embed_texts(tokens),
            "sentence": model.embed_sentences(tokens),
        }
    return {
        "images": images,
        "photos": photos,
        "pixels": cropped,
        "texts": np.array(captions),
        "input_ids": tokens.ids.numpy(),
        "attention_mask": tokens.mask.long().numpy(),
        **{name: vectors.numpy() for name, vectors in found.items()},
        **{name: np.array(value) for name, value in numbers_of(model).items()},
    }


def _captions(restored: Restored) -> list[str]:
    """Returns the captions of the comparison.

    For a text tower of SigLIP these are the captions that fit into a prompt. This project cuts longer ones to the
    length of a prompt, and other libraries cut them later, so their vectors differ.
    """
    if getattr(restored.model.text, "pooling", "") != "last":
        return list(CAPTIONS)
    counts = zip(CAPTIONS, restored.tokenizer.counts(CAPTIONS), strict=True)
    return [text for text, count in counts if count <= restored.model.prompt_length]


def _images(height: int, width: int) -> np.ndarray[Any, Any]:
    """Returns images of one size: black, white, a gradient, noise, and a smooth pattern."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 127 * np.sin((rows * a + columns * b) / max(height, width)) for a, b in ((7, 3), (2, 9), (5, 5))]
    gradient = np.stack([255 * rows / height, 255 * columns / width, 255 - 255 * rows / height], axis=-1)
    noise = random.integers(0, 256, (height, width, 3))
    flat = [np.full((height, width, 3), value) for value in (0, 255)]
    return np.stack([*flat, gradient, noise, np.stack(waves, axis=-1)]).round().astype(np.uint8)


def _channels_first(images: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
