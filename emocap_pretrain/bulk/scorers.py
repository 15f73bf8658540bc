"""Computes the columns of the output from images: vectors (`EmbeddingScorer`) or scores (`PredictionScorer`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.bulk.pictures import Cropper, Picture
from emocap_pretrain.bulk.sentences import SentenceColumnConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.classes import Classification, LabelPrediction, class_cosines, class_embeddings
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.inference.model import Activation, Device, EmotionModel, load
from emocap_pretrain.interop.restore import StepChoice
from emocap_pretrain.run_folder.results import Weights

Field: TypeAlias = Any
"""The name and the type of a column, a `pyarrow.Field`. pyarrow has no types that pyright knows."""

Columns: TypeAlias = Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]
"""The values of each field for some images: a list, or an array with a row for each image."""

SIZE = b"size"
"""Key in the metadata of a field of vectors: the number of numbers of a vector."""


def vector_field(name: str, size: int) -> Field:
    """Returns a column of vectors. The metadata of the field record `size`, the number of values of a vector.

    The type has no fixed size, because pyarrow 25 cannot read a Parquet file that has nulls among lists of fixed size.
    """
    return pa.field(name, pa.list_(pa.float32()), metadata={SIZE: str(size)})


@runtime_checkable
class Scorer(Protocol):
    """Computes the fields of rows from the crops of their images."""

    @property
    def cropper(self) -> Cropper:
        """Returns what decides which part of an image a crop shows, and how large the crop is."""
        ...

    @property
    def fields(self) -> Sequence[Field]:
        """Returns the names and types of the fields."""
        ...

    def columns(self, crops: Sequence[Crop]) -> Columns:
        """Returns the values of each field for the images of one batch."""
        ...


class FoundRows(NamedTuple):
    """Holds the rows of some images, of which each has any number.

    Attributes:
        counts: Number of rows of each image.
        columns: The values of each field for all rows, in the order of the images.
        reason: What is said of an image without rows, which gets a row with this error.
    """

    counts: Sequence[int]
    columns: Columns
    reason: str


@runtime_checkable
class RowScorer(Protocol):
    """Computes any number of rows from each image, such as one for each face."""

    @property
    def cropper(self) -> Cropper: ...
    @property
    def fields(self) -> Sequence[Field]: ...

    def rows(self, pictures: Sequence[Picture], crops: Sequence[Crop]) -> FoundRows:
        """Returns the rows of the readable pictures of one batch; `crops` holds their pixels."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Holds the arguments of `inference.model.load`. Unlike the model, they can be sent to other processes."""

    source: str
    step: StepChoice | None = None
    weights: Weights | None = None
    device: Device = "auto"
    activation: Activation | None = None

    def load(self) -> EmotionModel:
        return load(self.source, step=self.step, weights=self.weights, device=self.device, activation=self.activation)


class EmbeddingScorer:
    """Computes the unit vectors of images."""

    def __init__(self, model: EmotionModel) -> None:
        self._model = model

    @property
    def cropper(self) -> Embedder:
        return self._model.embedder

    @property
    def fields(self) -> Sequence[Field]:
        return [vector_field("embedding", self._model.embedding_size)]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        return {"embedding": self._model.embedder.crops(crops).numpy()}


@dataclass(frozen=True, slots=True)
class Prompts:
    """Holds the texts with which images are compared.

    Attributes:
        templates: Texts in which each word of a class replaces `{}`.
        classes: The words of each class by its name.
        sentences: The columns of sentences by their keys.
    """

    templates: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    sentences: Mapping[str, SentenceColumnConfig]


class PredictionScorer:
    """Computes the scores of images for classes and for sentences.

    `predicted` is the class that fits best, and `confidence` is the score of this class. `p_NAME` is the score of the
    class NAME, from the softmax over all classes (`Classification.probabilities`). `s_KEY` is the mean score of the
    sentences of a key, in [-1, 1]: their cosines with the pooled vector, or their local scores for the patches
    (`LocalAlignment.scores`). None of these is a calibrated probability.
    """

    def __init__(self, model: EmotionModel, prompts: Prompts) -> None:
        """Embeds the texts.

        Raises:
            ConfigError: If there are fewer than two classes, if sentences must be compared with patches but the model
                was trained without local sentences, or if the model cannot read texts.
            DataError: If the vector of a prompt of a class is not finite.
        """
        if len(prompts.classes) < 2:
            raise ConfigError("there must be at least two classes, because the scores of all classes sum to 1.")
        self._model, self._names = model, tuple(prompts.classes)
        embedder = model.embedder
        self._classes = class_embeddings(embedder, prompts.templates, prompts.classes)
        self.aligned_with = {key: _aligned(key, column, model) for key, column in prompts.sentences.items()}
        self._sentences = {
            key: _embedded(model, column.sentences, self.aligned_with[key]) for key, column in prompts.sentences.items()
        }

    @property
    def cropper(self) -> Embedder:
        return self._model.embedder

    @property
    def fields(self) -> Sequence[Field]:
        scores = [*(f"p_{name}" for name in self._names), *(f"s_{key}" for key in self._sentences)]
        return [
            pa.field("predicted", pa.string()),
            *(pa.field(name, pa.float32()) for name in ("confidence", *scores)),
        ]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        embedder = self._model.embedder
        if "patches" in self.aligned_with.values():
            vectors, patches = embedder.crops_and_patches(crops)
        else:
            vectors, patches = embedder.crops(crops), None
        found = Classification.of(self._names, class_cosines(vectors, self._classes), embedder.model.scale)
        return {
            "predicted": found.best,
            "confidence": found.probabilities.max(1),
            **{f"p_{name}": column for name, column in zip(self._names, found.probabilities.T, strict=True)},
            **{f"s_{key}": self._score(key, crops, vectors, patches) for key in self._sentences},
        }

    def _score(
        self,
        key: str,
        crops: Sequence[Crop],
        vectors: Float[Tensor, "crops embedding"],
        patches: Float[Tensor, "crops patches embedding"] | None,
    ) -> Float[np.ndarray, " crops"]:
        sentences, local = self._sentences[key], self._model.local
        if self.aligned_with[key] == "image" or patches is None or local is None:
            scores = vectors @ sentences.T
        else:
            scores = local.scores(crops, patches, sentences)
        return scores.mean(1).numpy()


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """Takes the place of `Prompts` if the model's own head predicts the labels, and no text is compared."""


class HeadScorer:
    """Computes what the head of a model that was trained on labels predicts (`EmotionModel.predict_labels`).

    The first label with classes has the columns of `PredictionScorer`: `predicted`, `confidence` and `p_NAME`. Those of
    a further one are `predicted_LABEL` and `p_LABEL_NAME`, and the number of a label without classes is `n_LABEL`.
    """

    def __init__(self, model: EmotionModel) -> None:
        self._model = model
        self._labels = sorted(model.embedder.model.labels, key=lambda label: not label.classes)

    @property
    def cropper(self) -> Embedder:
        return self._model.embedder

    @property
    def fields(self) -> Sequence[Field]:
        kinds = {name: pa.string() if name.startswith("predicted") else pa.float32() for name in self.columns(())}
        return [pa.field(name, kind) for name, kind in kinds.items()]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        embedder = self._model.embedder
        if crops:
            outputs = embedder.head_outputs(embedder.crops_and_pooled(crops)[1])
        else:
            outputs = {label.name: torch.zeros(0, label.outputs) for label in self._labels}
        found: dict[str, Sequence[Any] | np.ndarray[Any, Any]] = {}
        for number, label in enumerate(self._labels):
            prediction = LabelPrediction.of(label.classes, outputs[label.name])
            if prediction.classes is None:
                found[f"n_{label.name}"] = prediction.values[:, 0]
                continue
            suffix, prefix = (f"_{label.name}", f"{label.name}_") if number else ("", "")
            found[f"predicted{suffix}"] = prediction.best
            if not number:
                found["confidence"] = prediction.values.max(1)
            columns = zip(prediction.classes, prediction.values.T, strict=True)
            found |= {f"p_{prefix}{name}": column for name, column in columns}
        return found


def digest_of(model: EmotionModel) -> str:
    """Returns a SHA-256 digest of the model, of the part of an image that it reads, and of how it compares patches with
    sentences.
    """
    about = f"{model.local} {model.embedder.reads} {model.embedder.digest()}"
    return hashlib.sha256(about.encode()).hexdigest()


def _aligned(key: str, column: SentenceColumnConfig, model: EmotionModel) -> str:
    if column.aligned_with == "patches" and model.local is None:
        cure = "leave aligned_with out, or write aligned_with: image"
        raise ConfigError(f"{key}: the model was trained without local sentences (objective.local=0): {cure}.")
    return column.aligned_with or ("patches" if model.local and model.local.is_trained else "image")


def _embedded(model: EmotionModel, sentences: Sequence[str], aligned_with: str) -> Float[Tensor, "sentences embedding"]:
    if aligned_with == "image" or model.local is None:
        return model.embedder.texts(sentences)
    return model.embedder.sentences(sentences, model.local.length)
