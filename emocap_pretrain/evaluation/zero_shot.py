"""Classifies images by prompts alone: the predicted class is the one whose prompts are closest to the image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.evaluation import prompt_set
from emocap_pretrain.evaluation.calibration_error import calibration_error, probabilities
from emocap_pretrain.evaluation.classification import scored
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.prompted import ClassifiesByPrompts, LabelledImages
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_cosines, class_embeddings
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Domain, Score, TaskResult


@dataclass(frozen=True, slots=True)
class ZeroShot(ClassifiesByPrompts):
    """Implements the task `zero_shot` on the labelled images of the split `test`. Its scores are UAR, WAR and macro-F1.

    The result also has AUC if exactly two classes occur, the calibration error if there are several classes, the
    lowest and the highest UAR of a single template if there are several templates, and, if
    `evaluation.every_prompt_set` is true, the UAR of every set of prompts, with the lowest and the highest of them.
    """

    name: ClassVar[str] = "zero_shot"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("uar", "uar_lowest_template", "uar_highest_template"),
        ("war",),
        ("macro_f1",),
        ("auc",),
        ("ece",),
        ("uar_lowest_set", "uar_highest_set"),
    )
    about: ClassVar[str] = "names the class of each face by prompts; UAR, WAR, recall by class (needs a label)"

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = self.labelled(features, "test")
        columns = self.columns(embedder, test.classes)
        cosines = class_cosines(test.images, columns, self.settings.ensemble)
        result = scored(self.name, "prompted", test.rows, cosines.argmax(1).numpy(), cosines.double().numpy())
        logits = embedder.model.scale * cosines
        further = [
            *self._calibration(test, logits),
            *self._by_template(test, columns),
            *(self._by_set(embedder, test) if self.settings.every_prompt_set else ()),
        ]
        outcomes = result.outcomes
        if len(test.classes) > 1:
            outcomes += probabilities(logits, test.rows.truth, test.rows.rows, test.rows.classes)
        return replace(result, scores=(*result.scores, *further), domain=Domain(), outcomes=outcomes)

    def _calibration(self, test: LabelledImages, logits: Float[Tensor, "labelled classes"]) -> Iterator[Score]:
        if len(test.classes) > 1:
            error = calibration_error(logits, test.rows.truth)
            yield Score("ece", "prompted calibration error", error, lower_is_better=True)

    def _by_template(
        self, test: LabelledImages, columns: Float[Tensor, "templates embedding classes"]
    ) -> Iterator[Score]:
        """Yields the lowest and the highest UAR of a single template, if there are several.

        The two scores show how much the choice of the template alone changes the UAR.
        """
        if len(columns) < 2:
            return
        uars = [self._uar(test, column[None]) for column in columns]
        yield Score("uar_lowest_template", "prompted UAR, worst prompt", min(uars))
        yield Score("uar_highest_template", "prompted UAR, best prompt", max(uars))

    def _by_set(self, embedder: Embedder, test: LabelledImages) -> Iterator[Score]:
        """Yields the lowest and the highest UAR of the package's sets of prompts, and then the UAR of each set.

        Sets without prompts for one of the classes are left out.

        Raises:
            ConfigError: If the model cannot read texts.
            DataError: If the vector of a prompt is not finite.
        """
        classes = test.classes
        if prompt_set.has_whole_prompts(self.settings):
            # Whole prompts are no words: in a template they would make no sentence.
            classes = {name: (name,) for name in classes}
        uars: dict[str, float] = {}
        for name in prompt_set.names():
            settings = self.settings.model_copy(update={"prompts": name})
            if prompt_set.covers(settings, classes):
                templates, words = prompt_set.expanded(settings, classes)
                uars[name] = self._uar(test, class_embeddings(embedder, templates, words))
        yield Score("uar_lowest_set", "prompted UAR, worst set", min(uars.values()))
        yield Score("uar_highest_set", "prompted UAR, best set", max(uars.values()))
        for name, uar in uars.items():
            yield Score(f"uar_of_set/{name}", f"prompted UAR, {name}", uar)

    def _uar(self, test: LabelledImages, columns: Float[Tensor, "templates embedding classes"]) -> float:
        predicted = class_cosines(test.images, columns, self.settings.ensemble).argmax(1).numpy()
        return Confusion.of(test.rows.classes, test.rows.truth, predicted).uar
