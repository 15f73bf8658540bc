"""Defines `EmotionModel`, the Python interface to a trained model: vectors, classification and attention maps.

`load` returns an `EmotionModel`. `emocap_pretrain.load` imports this module only when it is called, because torch and
the libraries of the towers take seconds to import. docs/python.md has examples.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from emocap_pretrain.config.fields import Ensemble
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.classes import (
    Classification,
    LabelPrediction,
    checked_ensemble,
    checked_templates,
    class_cosines,
    class_embeddings,
    words_of_classes,
)
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.images import ImageSource, crops
from emocap_pretrain.inference.opened import Activation, open_model
from emocap_pretrain.interop.restore import StepChoice
from emocap_pretrain.run_folder.results import Weights

Device = Literal["auto", "cpu", "cuda"]
BATCH = 64
ROUNDING = 1e-5
"""Largest change of any number of a vector if the batch size changes. Measured: at most 9e-7 (docs/python.md)."""


class EmbeddedImages(NamedTuple):
    """Holds the unit vectors of some images, and the indices of these images in the input, counted from 0."""

    indices: list[int]
    vectors: Float[np.ndarray, "images embedding"]


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """Shows which patches of an image a sentence is about.

    Attributes:
        image: The square that the tower has read, usually the central one of the image. The map covers this square.
        weights: The attention weight of each patch, in rows from top to bottom and columns from left to right. The
            weights sum to 1, or to 0 if all patches are ignored (`LocalAlignment.contrast`).
        cosines: The cosine of each patch with the sentence. Unlike the weights, it can be compared between images and
            sentences.
    """

    image: UInt8[np.ndarray, "pixels pixels 3"]
    weights: Float[np.ndarray, "rows columns"]
    cosines: Float[np.ndarray, "rows columns"]

    def resized(self) -> Float[np.ndarray, "pixels pixels"]:
        """Returns the weights at the size of `image`, interpolated linearly and scaled so that the largest value is 1.

        All values are 0 if all weights are. The result can be drawn over the image:
        `plt.imshow(found.image); plt.imshow(found.resized(), alpha=0.5)`.
        """
        weights = torch.from_numpy(self.weights)[None, None]
        large = interpolate(weights, size=self.image.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
        return large / max(float(large.max()), np.finfo(np.float32).tiny)


class EmotionModel:
    """Embeds and compares images and texts with a trained model.

    Vectors are float32 arrays on the CPU, and have unit length, so the dot product of two vectors is their cosine. The
    towers compute in float32. Several threads may use one object at the same time.

    Images are given as a list or any other iterable of paths, arrays of 8-bit values [height, width, 3] or
    [height, width], and images of Pillow. Only the central square of an image is read; if the model was published so,
    as SigLIP was, the whole image is resized to a square. An iterable is consumed as its images are needed, at most two
    batches in advance.

    Example:
        model = emocap_pretrain.load("runs/my")
        cosines = model.embed_images(["a.jpg", "b.png"]) @ model.embed_texts(["a happy face"]).T
    """

    def __init__(self, embedder: Embedder, *, step: int | None = None) -> None:
        """Makes a model from towers and their tokenizer.

        Args:
            embedder: The towers, in evaluation mode and on the device of the model, and the tokenizer.
            step: The step of the checkpoint from which the towers come; None if they come from no checkpoint.
        """
        self._embedder = embedder
        self.step = step
        # The tokenizer keeps the length to which it cuts texts, so two threads must not use it at the same time.
        self._encoding = threading.Lock()

    @property
    def embedder(self) -> Embedder:
        """Returns the towers and the tokenizer, for code that makes its own batches."""
        return self._embedder

    @property
    def local(self) -> LocalAlignment | None:
        """Returns how patches are compared with sentences.

        It is None for a run that was trained without the local loss, and for an image tower alone. For a CLIP or SigLIP
        of another library it is not None, although the model was not trained to do so (`LocalAlignment.is_trained`).
        """
        return self._embedder.local

    @property
    def embedding_size(self) -> int:
        """Returns the number of values of a vector."""
        return self._embedder.model.to_text.out_features

    @property
    def pixels(self) -> int:
        """Returns the side of the square images that the image tower reads."""
        return self._embedder.model.pixels

    def embed_images(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH
    ) -> Float[np.ndarray, "images embedding"]:
        """Returns the unit vectors of images, in their order.

        Args:
            images: The images.
            batch_size: Number of images of one pass of the tower. It affects time and memory. It also affects the
                rounding of the vectors, but changes no number of a vector by more than `ROUNDING`.

        Raises:
            ConfigError: If the batch size is below 1.
            DataError: If an image cannot be read, or `images` is a single image. The message has the path of the file,
                or the index of the image.
        """
        found = [batch.vectors for batch in self.embed_image_batches(images, batch_size=batch_size)]
        return self._joined(found)

    def embed_image_batches(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = BATCH,
        skip: Callable[[int, DataError], object] | None = None,
    ) -> Iterator[EmbeddedImages]:
        """Yields the vectors of images batch by batch, for more images than fit into memory.

        Args:
            images: The images.
            batch_size: Number of images of one pass of the tower.
            skip: Called with the index of an image that cannot be read, and with the error. The image is left out,
                and the next one takes its place in the batch. If `skip` is None, the error is raised.

        Raises:
            ConfigError: If the batch size is below 1.
            DataError: If `images` is a single image, or if an image cannot be read and `skip` is None.
        """
        _check_batch_size(batch_size)
        found = crops(_several(images), self._embedder, ahead=2 * batch_size, skip=skip)
        while batch := list(islice(found, batch_size)):
            vectors = self._embedder.crops([crop for _, crop in batch]).numpy()
            yield EmbeddedImages([number for number, _ in batch], vectors)

    def embed_texts(self, texts: Iterable[str], *, batch_size: int = BATCH) -> Float[np.ndarray, "texts embedding"]:
        """Returns the unit vectors of texts, which are comparable with the vectors of images.

        A text is cut to the number of tokens of a global caption (`model.text.lengths.global` of the run).

        Raises:
            ConfigError: If the batch size is below 1, or the model is an image tower alone, which cannot read texts.
            DataError: If `texts` is a single text, or has an element that is not a text.
        """
        _check_batch_size(batch_size)
        if isinstance(texts, str):
            raise DataError(f"embed_texts takes a list of texts, but got the single text {texts!r}: write [text].")
        texts = [_text(number, text) for number, text in enumerate(texts)]
        with self._encoding:
            found = [
                self._embedder.texts(texts[start : start + batch_size]).numpy()
                for start in range(0, len(texts), batch_size)
            ]
        return self._joined(found)

    def classify(
        self,
        images: Iterable[ImageSource],
        prompts: Sequence[str] | Mapping[str, str | Sequence[str]],
        *,
        templates: Sequence[str] | None = None,
        ensemble: Ensemble = "logits",
        batch_size: int = BATCH,
    ) -> Classification:
        """Classifies images by comparing them with prompts, as the tasks of `emocap evaluate` on prompted classes do.

        A prompt is a template in which a word of a class replaces `{}`. The cosine of an image with a class follows
        from its cosines with the prompts of the class. A softmax over the classes turns these cosines, multiplied by
        the learned scale of the model, into scores.

        Args:
            images: The images.
            prompts: The names of the classes, such as `["happiness", "fear"]`; or a mapping from each name to the words
                that describe the class, such as `{"happiness": ["joy", "delight"]}`.
            templates: Texts with `{}`. None takes the default of the setting `evaluation.templates`. If the words are
                whole sentences, give `["{}"]`.
            ensemble: With "logits", the cosine with a class is the mean cosine with its prompts. With "embeddings", it
                is the cosine with the mean of the vectors of its prompts, as in CLIP and open_clip.
            batch_size: Number of images of one pass of the tower.

        Returns:
            The scores and the cosines of the classes for each image. The scores are not calibrated probabilities.

        Raises:
            ConfigError: If the classes, the templates, the ensemble or the batch size are wrong, or if the model is an
                image tower alone, which cannot read texts.
            DataError: If an image cannot be read, or the vector of a prompt is not finite.
        """
        classes = words_of_classes(prompts)
        texts = checked_templates(EvaluationConfig().templates if templates is None else templates)
        combined = checked_ensemble(ensemble)
        with self._encoding:
            columns = class_embeddings(self._embedder, texts, classes)
        vectors = torch.from_numpy(self.embed_images(images, batch_size=batch_size))
        return Classification.of(tuple(classes), class_cosines(vectors, columns, combined), self._embedder.model.scale)

    def predict_labels(self, images: Iterable[ImageSource], *, batch_size: int = BATCH) -> dict[str, LabelPrediction]:
        """Returns the predictions of a fine-tuned model's head for each label, by the label's name.

        The setting `objective.labels` of the run says which labels the head predicts.

        Args:
            images: The images.
            batch_size: Number of images of one pass of the tower.

        Raises:
            ConfigError: If the model was not trained on labels, so it has no head, or if the batch size is below 1.
            DataError: If an image cannot be read, or `images` is a single image.
        """
        labels = self._embedder.model.labels
        if not labels:
            raise ConfigError("the model has no head: train one with objective.labels.")
        _check_batch_size(batch_size)
        found, parts = crops(_several(images), self._embedder, ahead=2 * batch_size), list[Tensor]()
        while batch := list(islice(found, batch_size)):
            parts.append(self._embedder.crops_and_pooled([crop for _, crop in batch])[1])
        if not parts:
            return {label.name: LabelPrediction.of(label.classes, torch.zeros(0, label.outputs)) for label in labels}
        outputs = self._embedder.head_outputs(torch.cat(parts))
        return {label.name: LabelPrediction.of(label.classes, outputs[label.name]) for label in labels}

    def attention_map(self, image: ImageSource, sentence: str) -> AttentionMap:
        """Returns an attention map: which patches of an image a sentence such as "the brows are raised" is about.

        The local loss with `scope=batch` pools the patches by these weights (docs/method.md, section 2).

        Raises:
            ConfigError: If the run was trained without the local part of captions, if the model is an image tower
                alone, or if the patches of the tower are not a square grid.
            DataError: If the image cannot be read, or `sentence` is not a text.
        """
        local = self.local
        if local is None:
            raise ConfigError("the model was trained without local sentences (objective.local=0).")
        ((_, crop),) = crops([image], self._embedder)
        patches = self._embedder.patches([crop])
        with self._encoding:
            sentences = self._embedder.sentences([_text(0, sentence)], local.length)
        side = _side(patches.shape[1])
        weights = local.attention([crop], patches, sentences, torch.zeros(1, dtype=torch.int64))
        return AttentionMap(crop, _grid(weights[0], side), _grid(patches[0] @ sentences[0], side))

    def _joined(self, found: Sequence[Float[np.ndarray, "rows embedding"]]) -> Float[np.ndarray, "all embedding"]:
        return np.concatenate(found) if found else np.zeros((0, self.embedding_size), np.float32)


def load(
    source: str | os.PathLike[str],
    *,
    step: StepChoice | None = None,
    weights: Weights | None = None,
    device: Device = "auto",
    activation: Activation | None = None,
) -> EmotionModel:
    """Loads a trained model. `emocap_pretrain.load` documents the arguments and the errors."""
    place = chosen_device(device)
    found = open_model(os.fspath(source), step=step, weights=weights, activation=activation)
    return EmotionModel(found.embedder.on(place), step=found.restored.step if found.restored else None)


def chosen_device(wanted: Device) -> str:
    """Returns the name of the torch device for `wanted`: "auto" becomes "cuda" if this host has a GPU, and else "cpu".

    Raises:
        ConfigError: If `wanted` is not one of "auto", "cpu" and "cuda", or if it is "cuda" and there is no GPU.
    """
    if wanted not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"device={wanted!r}: give auto, cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: there is no GPU on this host; leave out the device, or give cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")


def _several(images: Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Returns the images, after a check that they are not a single image.

    A single array or path is iterable too: its rows or letters would be taken for images.

    Raises:
        DataError: If `images` is a single image.
    """
    is_array = isinstance(images, np.ndarray) and (images.ndim < 3 or (images.ndim == 3 and images.shape[2] == 3))
    if is_array or isinstance(images, str | os.PathLike | Image.Image):
        raise DataError(f"images must be a list, but got a single {type(images).__name__}: write [image].")
    return images


def _text(number: int, text: object) -> str:
    if not isinstance(text, str):
        raise DataError(f"text {number} has the type {type(text).__name__} instead of str.")
    return text


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConfigError(f"the image tower has {patches} patches, which are not a square grid, so there is no map.")
    return side


def _grid(values: Tensor, side: int) -> Float[np.ndarray, "rows columns"]:
    return values.view(side, side).numpy()
