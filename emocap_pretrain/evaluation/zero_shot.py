"""Classifies images zero-shot: the predicted class is the one whose prompts are closest to the image.

`inference/classes.py` makes the prompts and computes the cosines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from emocap_shards.inspecting.label_values import LabelValues
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.evaluation.classification import LabelledRows, classes_of, classes_of_features, scored
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.prompt_set import expanded
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_cosines, class_embeddings, prompts_of
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Score, TaskResult


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Implements the zero-shot task. Samples whose label `evaluation.label` is missing or empty are left out."""

    settings: EvaluationConfig
    name: ClassVar[str] = "zero_shot"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("uar", "uar_lowest_template", "uar_highest_template"),
        ("war",),
        ("macro_f1",),
    )
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("class",)
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "names the class of each face by prompts; UAR, WAR, recall by class (needs a label)"

    def prompts(self) -> Sequence[str]:
        return prompts_of(*expanded(self.settings, self.settings.classes or {}))

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        """Checks that the labels of the dataset are among the classes, and returns notes for the user.

        It checks all labels, or only those that it can read within `seconds` seconds.
        """
        settings = self.settings
        found = sources["test"].label_values(settings.label, seconds=seconds)
        # A reading that was cut off before it found a label says nothing about the dataset, so nothing is compared.
        if found.values or found.complete:
            classes_of(settings, map(label_text, found.values), found.names)
        return list(_notes(settings, found, seconds))

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = features["test"]
        classes = classes_of_features(self.settings, test)
        found = LabelledRows.of(test, self.settings.label, tuple(classes))
        columns = class_embeddings(embedder, *expanded(self.settings, classes))
        images = test.images[found.rows]
        result = scored(self.name, "zero-shot", found, class_cosines(images, columns).argmax(1).numpy())
        return replace(result, scores=(*result.scores, *self._by_template(found, images, columns)))

    def _by_template(
        self,
        found: LabelledRows,
        images: Float[Tensor, "images embedding"],
        columns: Float[Tensor, "templates embedding classes"],
    ) -> Iterator[Score]:
        """Yields the lowest and the highest UAR of a single template, if there are several.

        They say how much the choice of the template alone changes the score.
        """
        if len(columns) < 2:
            return
        predicted = ((images @ column).argmax(1).numpy() for column in columns)
        uars = [Confusion.of(found.classes, found.truth, each).uar for each in predicted]
        yield Score("uar_lowest_template", "zero-shot UAR, worst prompt", min(uars))
        yield Score("uar_highest_template", "zero-shot UAR, best prompt", max(uars))


def _notes(settings: EvaluationConfig, found: LabelValues, seconds: float | None) -> Iterator[str]:
    if seconds is not None and not found.complete:
        yield (
            f"evaluation.url: the labels of {found.looked:,} of {found.samples:,} samples were compared with the "
            f"classes within {seconds:.0f} s; the others are compared later."
        )
    if settings.classes is None and any(_is_number(value) for value in found.values):
        yield (
            f"evaluation.label={settings.label}: its values are numbers, and without evaluation.classes the prompts "
            "name these numbers; give each class its words, such as evaluation.classes={0: [joy]}."
        )


def _is_number(value: str | float) -> bool:
    return not isinstance(value, str) or value.replace(".", "", 1).isdecimal()
