"""Holds what the tasks on prompted classes share: the labelled images of a split, and the vectors of the prompts.

`inference/classes.py` makes the prompts and computes the cosines of images with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from emocap_shards.inspecting.label_values import LabelValues
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.evaluation.classification import LabelledRows, classes_of, classes_of_features, labelled
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.prompt_set import expanded
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_embeddings, prompts_of
from emocap_pretrain.inference.embedder import Embedder


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Holds the labelled rows of a split, the unit vectors of their images, and the words of each class in prompts."""

    rows: LabelledRows
    images: Float[Tensor, "labelled embedding"]
    classes: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class ClassifiesByPrompts:
    """Base class of the tasks that compare images with the prompts of classes.

    Samples whose label `evaluation.label` is missing or empty are left out.
    """

    settings: EvaluationConfig
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("class",)
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = ()

    def prompts(self) -> Sequence[str]:
        return prompts_of(*expanded(self.settings, self.settings.classes or {}))

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the labels of every split are among the classes, and returns notes for the user.

        All labels are checked, or only those that can be read within `seconds` seconds.

        Raises:
            ConfigError: If a split has no labels, a label is not a class, or a class has no prompts.
            ShardsError: If the data cannot be read.
        """
        notes: list[str] = []
        for source in sources.values():
            found = source.label_values(self.settings.label, seconds=seconds)
            # A reading that was cut off before it found a label says nothing about the dataset.
            if found.values or found.complete:
                labels = map(label_text, found.values)
                expanded(self.settings, classes_of(self.settings, labels, found.names, url=source.address))
            notes += _notes(self.settings, found, seconds, source.address)
        return notes

    def count_labelled(self, features: Features) -> int:
        """Returns the number of examples of a split that have the label."""
        return len(labelled(features, self.settings.label)[0])

    def labelled(self, features: Mapping[SplitName, Features], split: SplitName) -> LabelledImages:
        """Returns the labelled images of a split.

        The classes are those of the settings. If the settings name none, they are the labels of the split `test`, also
        for another split.

        Raises:
            ConfigError: If no example has the label, or a label is not a class.
        """
        classes = classes_of_features(self.settings, features["test"])
        rows = LabelledRows.of(features[split], self.settings.label, tuple(classes))
        return LabelledImages(rows, features[split].images[rows.rows], classes)

    def columns(
        self, embedder: Embedder, classes: Mapping[str, Sequence[str]]
    ) -> Float[Tensor, "templates embedding classes"]:
        """Returns the mean vector of the prompts of each class for each template (`class_embeddings`).

        The templates are those of the settings or of the set of prompts that the settings name (`expanded`).

        Raises:
            ConfigError: If the model cannot read texts, or a class has no prompts.
            DataError: If the vector of a prompt is not finite.
        """
        return class_embeddings(embedder, *expanded(self.settings, classes))


def _notes(settings: EvaluationConfig, found: LabelValues, seconds: float | None, address: str) -> Iterator[str]:
    if seconds is not None and not found.complete:
        yield (
            f"{address}: the labels of {found.looked:,} of {found.samples:,} samples were compared with the "
            f"classes within {seconds:.0f} s; the others are compared later."
        )
    if settings.classes is None and any(_is_number(value) for value in found.values):
        yield (
            f"evaluation.label={settings.label}: its values are numbers, and without evaluation.classes the prompts "
            "name these numbers; give each class its words, such as evaluation.classes={0: [joy]}."
        )


def _is_number(value: str | float) -> bool:
    return not isinstance(value, str) or value.replace(".", "", 1).isdecimal()
