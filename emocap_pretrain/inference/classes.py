"""Classifies images by prompts, for `EmotionModel.classify` and for evaluation tasks.

A prompt is a template in which a word for a class replaces `{}`. A class may have several words, so it has one prompt
for each pair of a template and a word. `Ensemble` says how the prompts of a class are combined (`class_cosines`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from emocap_pretrain.config.fields import Classes, Ensemble, Template
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.inference.embedder import Embedder

Value = TypeVar("Value")

_CLASSES: TypeAdapter[dict[str, tuple[str, ...]]] = TypeAdapter(Classes)
_TEMPLATES: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[Template, ...])


@dataclass(frozen=True, slots=True)
class Classification:
    """Holds how well each class fits each image.

    Attributes:
        classes: The names of the classes, in the order of the columns below.
        probabilities: The softmax over the classes of `scale * cosines`, with the learned scale of the model. Each row
            sums to 1, even if no class fits the image. These are not calibrated probabilities: they show which of the
            given classes fits best, and not how often this class is right.
        cosines: The cosine of each image with each class, which `class_cosines` computes from the prompts of the class.
            Unlike the probabilities of a class, its cosines do not depend on the other classes.
    """

    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "images classes"]
    cosines: Float[np.ndarray, "images classes"]

    @classmethod
    def of(cls, classes: Sequence[str], cosines: Float[Tensor, "images classes"], scale: float) -> "Classification":
        """Computes the probabilities from cosines and from the learned scale of the model."""
        return cls(tuple(classes), (scale * cosines).softmax(1).numpy(), cosines.numpy())

    @property
    def best(self) -> list[str]:
        """Returns the name of the class that fits each image best."""
        return [self.classes[number] for number in self.probabilities.argmax(1)]

    def top(self, count: int = 3) -> list[list[tuple[str, float]]]:
        """Returns the `count` classes that fit each image best with their scores, the best one first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        rows = zip(order, self.probabilities, strict=True)
        return [[(self.classes[number], float(row[number])) for number in numbers] for numbers, row in rows]


@dataclass(frozen=True, slots=True)
class LabelPrediction:
    """Holds what the head of a fine-tuned model predicts for one label.

    Attributes:
        classes: The names of the classes, in the order of the columns; None for a label with numbers.
        values: For a label with classes, the softmax of the head's outputs. Each row sums to 1, but these are not
            calibrated probabilities. For a label with numbers, one column with the predicted numbers.
    """

    classes: tuple[str, ...] | None
    values: Float[np.ndarray, "images outputs"]

    @classmethod
    def of(cls, classes: Sequence[str] | None, outputs: Float[Tensor, "images outputs"]) -> "LabelPrediction":
        """Returns the prediction that follows from the head's outputs for one label.

        Args:
            classes: The names of the classes; None for a label with numbers.
            outputs: The outputs of the head: the logits of the classes, or one column of numbers.
        """
        return cls(tuple(classes) if classes else None, (outputs.softmax(1) if classes else outputs).numpy())

    @property
    def best(self) -> list[str]:
        """Returns the name of the most probable class of each image; an empty list for a label with numbers."""
        return [self.classes[number] for number in self.values.argmax(1)] if self.classes else []


def words_of_classes(prompts: Sequence[str] | Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Returns the words of each class by its name.

    Args:
        prompts: A list of names, each of which is also the only word of its class; or a mapping from names to words, in
            the form of the setting `evaluation.classes`.

    Raises:
        ConfigError: If there is no class, if a class has no words, if a name is given twice, or if `prompts` is of
            another type.
    """
    if not prompts:
        raise ConfigError("no class is given: give a list of names, or a mapping from names to words.")
    if isinstance(prompts, str):
        raise ConfigError(
            f"the classes are the single text {prompts!r}: give a list of names, or a mapping from names to words."
        )
    if not isinstance(prompts, Mapping):
        if repeated := sorted(name for name in set(prompts) if list(prompts).count(name) > 1):
            raise ConfigError(f"the class {repeated[0]!r} is given twice.")
        prompts = {name: (name,) for name in prompts}
    return validated(_CLASSES, prompts, "the classes")


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Returns the templates after a check that each one has `{}`.

    Raises:
        ConfigError: If a template lacks `{}`, or if there is none.
    """
    if not templates or isinstance(templates, str):
        raise ConfigError(f"the templates are {templates!r}: give a list of at least one text with {{}}.")
    return validated(_TEMPLATES, tuple(templates), "the templates")


def prompts_of(templates: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a prompt for each class, template and word, ordered by class, then by template, then by word."""
    return [template.replace("{}", word) for words in classes.values() for template in templates for word in words]


def class_embeddings(
    embedder: Embedder, templates: Sequence[str], classes: Mapping[str, Sequence[str]]
) -> Float[Tensor, "templates embedding classes"]:
    """Returns, for each template and class, the mean of the unit vectors of the prompts with the words of the class.

    The mean is not scaled to unit length. So its dot product with the unit vector of an image is the mean of the
    cosines of the image with these prompts.

    Args:
        embedder: The model.
        templates: The templates.
        classes: The words of each class, by the name of the class.

    Raises:
        ConfigError: If the model cannot read texts.
        DataError: If the vector of a prompt is not finite.
    """
    # The prompts of a class are embedded in one pass. `view` relies on the order in which `prompts_of` returns them.
    columns = [
        embedder.texts(prompts_of(templates, {"": words})).view(len(templates), len(words), -1).mean(1)
        for words in classes.values()
    ]
    for name, column in zip(classes, columns, strict=True):
        if not column.isfinite().all():
            raise DataError(
                f"the prompts of the class {name!r} have vectors that are not finite: the weights may be damaged."
            )
    return torch.stack(columns, dim=-1)


def class_cosines(
    images: Float[Tensor, "images embedding"],
    classes: Float[Tensor, "templates embedding classes"],
    ensemble: Ensemble = "logits",
) -> Float[Tensor, "images classes"]:
    """Returns the cosine of each image with each class.

    With the ensemble "logits", the cosine with a class is the mean of the cosines with its prompts, as in Exp-CLIP
    (Zhao et al. 2024). With "embeddings", it is the cosine with the mean of the unit vectors of its prompts, as in CLIP
    (Radford et al. 2021) and open_clip. The first is the second times the length of the mean vector: with "logits", a
    class whose prompts are less alike has cosines that are closer to 0.

    Args:
        images: The unit vectors of the images.
        classes: The result of `class_embeddings`.
        ensemble: How the prompts of a class are combined.
    """
    if ensemble == "logits":
        # The mean of the cosines, without holding those with each template.
        return images @ classes.mean(0)
    return images @ normalize(classes.mean(0), dim=0)


def checked_ensemble(ensemble: str) -> Ensemble:
    """Returns `ensemble` unchanged after a check that it is the name of an ensemble.

    Raises:
        ConfigError: If `ensemble` is neither "logits" nor "embeddings".
    """
    for known in get_args(Ensemble):
        if ensemble == known:
            return known
    raise ConfigError(f"ensemble={ensemble!r}: give logits or embeddings.")


def validated(kind: TypeAdapter[Value], value: object, what: str) -> Value:
    """Returns the value as pydantic converts it to a type. The first words of an error message are `what`.

    Raises:
        ConfigError: If the value is not of the type. The message names the first place where it is wrong.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{what}{f' ({place})' if place else ''}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
