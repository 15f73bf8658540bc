"""Measures the contrastive loss on data that the model was not trained on, by caption part.

The loss is that of training in its basic form: the InfoNCE of docs/method.md, section 1, without mining, with the
learned scale of the model. Equal texts of the same part are positives of each other, as in training. It is InfoNCE for
every run, whatever `objective.kind` says, so that the values of several runs are comparable.

The loss of an anchor grows with the number of candidates, so it depends on the size of the batch. All batches therefore
have the same number of faces, in the order of the dataset, and titles contain this number. The baseline is the loss of
a model that knows nothing, which is the logarithm of this number: such a model gives all candidates the same score.

What each face adds to the loss is kept for a test between models (`loss_values.py`): the losses of its own anchors, and
how it changes those of the other faces of its batch. The loss is the mean of these values.

The loss of the local part compares each sentence with all patches of all images of a batch. The vectors that all tasks
share hold only the mean of the patches of an image, so `local_loss.py` computes it, with the sharpness and the scope of
the model's training, and in the same batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.loader import identities
from emocap_pretrain.data.parts import PARTS, PROMPT_PART, Part
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features, PartFeatures
from emocap_pretrain.evaluation.local_loss import batches_of
from emocap_pretrain.evaluation.loss_values import LossValues, direction_values
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcome_sums import LossOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult
from emocap_pretrain.run_folder.samples import answers_digest

MOST_VALUES = 1_000_000  # A result with more faces times parts has no values of faces, which need about 20 bytes each.
NO_CAPTION, INCOMPLETE = "faces without a caption", "faces of the last, incomplete batch"
_COMPARED = tuple(part for part in PARTS if part.aligned_with == "image")
_WITH_PATCHES = tuple(part for part in PARTS if part.aligned_with == "patches")


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Implements the task. Its dataset needs captions that must not occur in the training data, and no labels.

    Of each face the first text of a part counts. As in training, the global sentence takes the place of a missing
    summary. A part that no caption has is left out. If there are fewer faces than a batch has, they are the only batch.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "held_out_loss"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("loss",),
        tuple(f"loss_{part.name}" for part in _COMPARED),
        tuple(f"loss_{part.name}" for part in _WITH_PATCHES),
    )
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ()
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = _COMPARED
    needs_local_loss: ClassVar[Literal[True]] = True
    about: ClassVar[str] = "contrastive loss of captions that were not trained on, by part, in batches of equal size"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:  # noqa: ARG002 - it reads no sample
        if len(sources["test"]) < 2:
            raise self._too_few()
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = features["test"]
        if PROMPT_PART.name not in test.parts:
            raise ConfigError(f"{self.name} needs captions, and {self.settings.url} has none.")
        faces = test.parts[PROMPT_PART.name].owner.unique()
        batches = batches_of(faces.tolist(), self.settings.loss_batch)
        if not batches:
            raise self._too_few()
        rows, scored = len(batches[0]), sum(map(len, batches))
        losses = {part.name: self._loss(embedder, part, test, batches) for part in _COMPARED if part.name in test.parts}
        if test.local_loss:
            losses |= {part.name: test.local_loss for part in _WITH_PATCHES}
        for name, each in losses.items():
            if not math.isfinite(each.loss):
                raise DataError(f"the {name} loss on {self.settings.url} is {each.loss}; the weights may be damaged.")
        weights = _weights(embedder, tuple(losses))
        counts = ((NO_CAPTION, len(test) - len(faces)), (INCOMPLETE, len(faces) - scored))
        return TaskResult(
            task=self.name,
            samples=scored,
            scores=tuple(_scores(losses, weights, rows)),
            left_out=tuple((reason, count) for reason, count in counts if count),
            outcomes=_outcomes(losses, weights),
        )

    def _loss(self, embedder: Embedder, part: Part, test: Features, batches: Sequence[Sequence[int]]) -> LossValues:
        """Returns the loss of one part over batches of faces."""
        texts, vectors = _texts_of_faces(embedder, part, test, self.settings.batch)
        known = embedder.objective is None or embedder.objective.known_positives
        values: list[float] = []
        pairs: list[tuple[str, list[str]]] = []
        for number, batch in enumerate(batches):
            rows = torch.tensor(batch)
            ids = _ids(embedder, part, [texts[face] for face in batch]) if known else torch.arange(len(batch))
            found = face_values(test.images[rows].double(), vectors[rows].double(), embedder.model.scale, ids)
            values += found.tolist()
            firsts = {each: place for place, each in reversed(list(enumerate(ids.tolist())))}
            pairs += [
                (f"{number} {test.keys[face]}", [texts[face], f"{firsts[own]}"])
                for face, own in zip(batch, ids.tolist(), strict=True)
            ]
        rows = tuple(face for batch in batches for face in batch)
        loss = math.fsum(values) / len(values)
        return LossValues(loss, math.log(len(batches[0])), rows, tuple(values), answers_digest(pairs))

    def _too_few(self) -> ConfigError:
        return ConfigError(
            f"evaluation.url={self.settings.url} has fewer than two samples with captions, and a contrastive loss "
            f"needs others to choose from: give a larger dataset, or leave {self.name} out of evaluation.tasks."
        )


def face_values(
    images: Float64[Tensor, "rows embedding"],
    texts: Float64[Tensor, "rows embedding"],
    scale: float,
    ids: Int[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """Returns the values of the faces of a batch (`direction_values`). Texts with equal ids are positives."""
    rows = torch.arange(len(ids))

    def values(anchors: Tensor, candidates: Tensor) -> Float64[Tensor, " rows"]:
        def score(block: Tensor) -> Float64[Tensor, "block rows"]:
            return scale * anchors[block] @ candidates.T

        def positive(block: Tensor) -> Bool[Tensor, "block rows"]:
            return ids[block, None] == ids

        return direction_values(score, positive, anchors=rows, candidates=rows, samples=len(rows))

    return (values(images, texts) + values(texts, images)) / 2


def _outcomes(losses: Mapping[str, LossValues], weights: Mapping[str, float]) -> tuple[LossOutcomes, ...]:
    """Returns the values of the faces of each part; nothing if there are too many.

    A part of which a batch has no text has values of fewer faces, and is left out. The total then has no values.
    """
    (rows, *_) = (each.rows for each in losses.values())
    whole = {name: each for name, each in losses.items() if each.rows == rows}
    if len(whole) * len(rows) > MOST_VALUES:
        return ()
    return (
        LossOutcomes(
            rows,
            tuple(whole),
            tuple(weights[name] for name in whole) if len(whole) == len(losses) else (),
            tuple(each.values for each in whole.values()),
            tuple(each.about for each in whole.values()),
        ),
    )


def _texts_of_faces(
    embedder: Embedder, part: Part, test: Features, batch: int
) -> tuple[Sequence[str], Float[Tensor, "examples embedding"]]:
    """Returns the first text of the part of each example, and its vector.

    An example without one has its first global sentence instead, which is encoded here, in passes of `batch` texts: it
    is cut to the length of the part. An example without a caption has an empty text and a vector of zeros.
    """
    vectors = torch.zeros(len(test), test.images.shape[1])
    texts = [""] * len(test)
    own, whole = test.parts[part.name], test.parts[PROMPT_PART.name]
    of_part = _first_of_each(own)
    for face, place in of_part.items():
        texts[face], vectors[face] = own.texts[place], own.vectors[place]
    lacking = {face: whole.texts[place] for face, place in _first_of_each(whole).items() if face not in of_part}
    distinct = list(dict.fromkeys(lacking.values()))
    passes = [embedder.texts_of(part, distinct[at : at + batch]) for at in range(0, len(distinct), batch)]
    place_of = {text: place for place, text in enumerate(distinct)}
    for face, text in lacking.items():
        texts[face], vectors[face] = text, passes[place_of[text] // batch][place_of[text] % batch]
    return texts, vectors


def _first_of_each(part: PartFeatures) -> dict[int, int]:
    """Returns the index of the first text of each example that has texts of the part, by the row of the example."""
    first: dict[int, int] = {}
    for place, face in enumerate(part.owner.tolist()):
        first.setdefault(face, place)
    return first


def _ids(embedder: Embedder, part: Part, texts: Sequence[str]) -> Int[Tensor, " texts"]:
    """Returns the ids that make equal texts positives of each other, computed as for the batches of training."""
    assert embedder.tokenizer is not None, "a model without a text tower is refused before the task runs"
    return identities(embedder.tokenizer.encode(texts, embedder.length_of(part)))


def _weights(embedder: Embedder, parts: Sequence[str]) -> dict[str, float]:
    """Returns the weight of each part in the total: that of the model's objective.

    The total is a plain mean if the objective is not known, or if it gives none of the parts a weight.
    """
    weights = embedder.objective.weights if embedder.objective else {}
    found = {part: weights.get(part, 0.0) for part in parts}
    return found if any(found.values()) else dict.fromkeys(parts, 1 / len(parts))


def _scores(losses: Mapping[str, LossValues], weights: Mapping[str, float], rows: int) -> list[Score]:
    """Returns the total and the loss of each part, beside the loss of a model that knows nothing."""

    def score(name: str, title: str, value: float, ignorant: float) -> Score:
        baseline = Baseline("knows nothing", ignorant)
        return Score(name, f"{title}, batches of {rows}", value, baseline, is_share=False, lower_is_better=True)

    total = sum(weights[part] * each.loss for part, each in losses.items())
    ignorant = sum(weights[part] * each.ignorant for part, each in losses.items())
    of_parts = [
        score(f"loss_{part}", f"held-out loss of the {part} part", each.loss, each.ignorant)
        for part, each in losses.items()
    ]
    return [score("loss", "held-out loss", total, ignorant), *of_parts]
