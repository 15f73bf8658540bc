"""Computes the total loss of docs/method.md: the weighted sum of one term for each active caption part and each label.

A term connects a caption part with a loss of `emocap_kernels`: an `ImageTerm` with the loss of whole images, and a
`PatchTerm` with the local loss of patches. The term passes the embeddings, the batch and the settings to the loss in
the form that the loss expects; the loss itself is computed in `emocap_kernels`. A new caption part needs no change in
this module (decision 23). A new way of aligning texts with images needs a new subclass of `Term` and an entry in
`_KINDS`. The terms of labels, which use no texts, are in `label_loss.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import emocap_kernels
import torch
from emocap_kernels import Mining, choose_backend, choose_region_backend
from emocap_kernels.backend import BackendChoice
from emocap_kernels.contrastive.objectives import ContrastiveObjective, objective_of
from emocap_kernels.positives import compares_images
from emocap_kernels.result import LossResult
from torch import Tensor
from torch.distributed import ProcessGroup

from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.parts import Part, active_parts
from emocap_pretrain.data.patch_mask import patches_with_contrast
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.pair import Embeddings
from emocap_pretrain.training.label_loss import Counts, LabelTerm, label_results, label_terms


@dataclass(frozen=True, slots=True)
class Term(ABC):
    """Computes one addend of the total loss, which aligns the texts of a caption part with their images.

    A term has no state: the learned scale and bias belong to the model and are passed with the embeddings.

    Attributes:
        part: The caption part.
        weight: Factor of the term in the total loss.
        settings: The settings of the objective, which all terms share.
        vectors: The dtype to which the embeddings are cast before the loss.
        group: The ranks whose rows form the global batch; None if this process is alone.
    """

    part: Part
    weight: float
    settings: ObjectiveConfig
    vectors: torch.dtype
    group: ProcessGroup | None

    @property
    def reads_teacher(self) -> bool:
        """Returns whether the loss uses the vectors of a teacher."""
        return False

    @abstractmethod
    def learned(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """Returns the learned scale, and the learned bias if the loss has one. The keys are the names of metrics."""

    @abstractmethod
    def loss(
        self, embeddings: Embeddings, batch: Batch, *, mined: bool, teacher: Tensor | None, average: Embeddings | None
    ) -> LossResult:
        """Returns the loss of the global batch, without the weight of the term. This is a collective.

        Args:
            embeddings: This rank's rows.
            batch: The batch from which the embeddings were computed.
            mined: Whether positives are mined. False during the warm-up of mining.
            teacher: The teacher's vectors of the images, [rows, any width]; None if no term uses them.
            average: This rank's rows, as the moving average of the model encodes them; None if no mining uses them.

        Returns:
            The loss with its graph, and the metrics of the kernel. After the backward pass, the mean over the ranks of
            each gradient is the gradient of the global loss.
        """

    @abstractmethod
    def backend(self, vectors: Tensor) -> BackendChoice:
        """Returns the backend (implementation) that the loss would use, such as "fused", with the reason.

        Nothing is computed.

        Args:
            vectors: A tensor with the dtype, device and last dimension of the embeddings; it may have no rows.

        Raises:
            NotSupportedError: If the settings name a backend that cannot compute this loss.
        """


@dataclass(frozen=True, slots=True)
class ImageTerm(Term):
    """Aligns one text of each image with the pooled vector of the image (`contrastive_loss`)."""

    @property
    def formula(self) -> ContrastiveObjective:
        """The objective of the kernels, such as InfoNCE.

        It turns the scores of an anchor (an image with all texts, or a text with all images) into a loss.
        """
        return objective_of(self.settings.kind_of(self.part.name))

    def learned(self, embeddings: Embeddings) -> dict[str, Tensor]:
        scale = {"scale": embeddings.scales[self.part.aligned_with]}
        return scale if self._bias(embeddings) is None else {**scale, "bias": embeddings.biases[self.part.aligned_with]}

    @property
    def reads_teacher(self) -> bool:
        mining, by_average = self._mining, self.settings.mines_by_average
        in_mining = self.settings.teacher and mining and compares_images(mining) and not by_average
        return self.formula.has_teacher or bool(in_mining)

    def loss(
        self, embeddings: Embeddings, batch: Batch, *, mined: bool, teacher: Tensor | None, average: Embeddings | None
    ) -> LossResult:
        texts = batch.texts[self.part.name]
        return emocap_kernels.contrastive_loss(
            embeddings.image.to(self.vectors),
            embeddings.texts[self.part.name].to(self.vectors),
            embeddings.scales[self.part.aligned_with],
            objective=self.formula,
            bias=self._bias(embeddings),
            mining=self._mining if mined else None,
            **self._guides(teacher, average),
            # Equal captions are positives of each other from the first step on, because that needs no mining.
            ids=texts.identity if self.settings.known_positives else None,
            group=self.group,
            schedule=self.settings.schedule,
            backend=self.settings.backend,
        )

    def backend(self, vectors: Tensor) -> BackendChoice:
        settings = self.settings
        return choose_backend(vectors, vectors, objective=self.formula, mining=self._mining, backend=settings.backend)

    def _bias(self, embeddings: Embeddings) -> Tensor | None:
        return embeddings.biases[self.part.aligned_with] if self.formula.has_bias else None

    def _guides(self, teacher: Tensor | None, average: Embeddings | None) -> dict[str, Any]:
        """Returns the keyword arguments of the loss that hold the vectors of a teacher or of the average of the model.

        The result is empty if the term uses neither.
        """
        if average and self._mining:
            texts = average.texts[self.part.name]
            return {"guide_image": average.image.to(self.vectors), "guide_text": texts.to(self.vectors)}
        if not self.reads_teacher:
            return {}
        assert teacher is not None, "an objective with such a term is called with a teacher"
        assert self.settings.teacher is not None, "`Objective.of` has required it"
        vectors = teacher.to(self.vectors)
        if not self.formula.has_teacher:
            return {"guide_image": vectors}
        # The texts take the vectors of their images, so that the similarity of two texts is that of their images.
        return {"guide_image": vectors, "guide_text": vectors, "guide_scale": self.settings.teacher.scale}

    @property
    def _mining(self) -> Mining | None:
        """The rule by which positives are mined; None if none are mined.

        With the objective `soft` no positives are mined, because its teacher already gives each pair a weight.
        """
        rule = self.settings.mining
        if rule is None or self.formula.has_teacher:
            return None
        return Mining(**rule.model_dump(exclude={"features"}))


@dataclass(frozen=True, slots=True)
class PatchTerm(Term):
    """Aligns any number of texts of each image with the patches of the image (`region_contrastive_loss`)."""

    def learned(self, embeddings: Embeddings) -> dict[str, Tensor]:
        return {"local_scale": embeddings.scales[self.part.aligned_with]}

    def loss(
        self, embeddings: Embeddings, batch: Batch, *, mined: bool, teacher: Tensor | None, average: Embeddings | None
    ) -> LossResult:
        del teacher, average
        owner = batch.texts[self.part.name].owner
        assert owner is not None, "the loader gives the texts of such a part owners"
        return emocap_kernels.region_contrastive_loss(
            embeddings.patches.to(self.vectors),
            embeddings.texts[self.part.name].to(self.vectors),
            owner,
            embeddings.scales[self.part.aligned_with],
            sharpness=self.settings.sharpness,
            scope=self.settings.scope,
            patch_mask=self._patch_mask(batch.images, embeddings.patches.shape[1]),
            mining=self._mining if mined else None,
            group=self.group,
            schedule=self.settings.schedule,
            backend=self.settings.backend,
        )

    def backend(self, vectors: Tensor) -> BackendChoice:
        # The patches have a third axis. Its length does not matter for the choice.
        return choose_region_backend(
            vectors[:, None], vectors, scope=self.settings.scope, mining=self._mining, backend=self.settings.backend
        )

    def _patch_mask(self, images: Tensor, patches: int) -> Tensor | None:
        rule = self.settings.patch_mask
        return patches_with_contrast(images, patches, rule.contrast) if rule else None

    @property
    def _mining(self) -> Mining | None:
        # The local loss mines by the similarity of sentences, and has no other guide.
        rule = self.settings.local_mining
        return Mining(guide="text", **rule.model_dump()) if rule else None


_KINDS: Mapping[str, type[Term]] = {"image": ImageTerm, "patches": PatchTerm}
# The settings that only the terms of one kind read.
_READ_FOR: Mapping[str, Sequence[str]] = {
    "image": ("kind", "mining", "known_positives"),
    "patches": ("sharpness", "scope", "patch_mask", "local_mining"),
}


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    """Holds the total loss with its graph, and the metrics as detached scalars. All are equal on all ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """Computes the weighted sum of the losses of all terms.

    Attributes:
        terms: One term for each active caption part, in the order in which their losses are added.
        mining_warmup_steps: Number of steps at the beginning of the run in which no positives are mined.
        teacher: Maps images to the teacher's vectors, [rows, any width]. It may be None only if no term uses a teacher.
        average: Encodes a batch with the moving average of the model; None if mining does not use the average.
        labels: One term for each label. Their losses are added after the losses of the caption parts.
        group: The ranks whose rows form the global batch; None if this process is alone.
    """

    terms: tuple[Term, ...]
    mining_warmup_steps: int = 0
    teacher: Callable[[Tensor], Tensor] | None = None
    average: Callable[[Batch], Embeddings] | None = None
    labels: tuple[LabelTerm, ...] = ()
    group: ProcessGroup | None = None

    @classmethod
    def of(
        cls,
        settings: ObjectiveConfig,
        *,
        precision: str,
        group: ProcessGroup | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        average: Callable[[Batch], Embeddings] | None = None,
        class_counts: Counts | None = None,
    ) -> "Objective":
        """Builds a term for each active caption part, which is a part with a weight above 0, and for each label.

        Args:
            settings: The weights, kinds, mining, teacher and backend of the terms.
            precision: `engine.precision`, which decides the dtype of the vectors if `objective.vectors` is "auto".
            group: The ranks whose rows form the global batch; None if this process is alone.
            teacher: Maps images to the vectors of the teacher, if the settings name one. This and the next two
                arguments may always be None if the caller only reads the terms and computes no loss.
            average: Encodes a batch with the moving average of the model, if the settings mine positives by it.
            class_counts: The number of training samples of each class, by the name of the label, for the labels whose
                classes are balanced.

        Raises:
            ConfigError: In one of four cases: `kind_by_part` names a part that is aligned with patches; a term needs a
                teacher, but the settings name none; the settings name a teacher, but no term uses it; the settings have
                a mining rule, but all terms of whole images are `soft`.
        """
        vectors = vector_dtype(settings, precision)
        weights = settings.weights
        for part in active_parts(weights):
            if part.aligned_with == "patches" and part.name in settings.kind_by_part:
                raise ConfigError(
                    f"objective.kind_by_part: {part.name} is aligned with patches, whose loss is always infonce; "
                    f"leave {part.name} out."
                )
        terms = tuple(
            _KINDS[part.aligned_with](part, weights[part.name], settings, vectors, group)
            for part in active_parts(weights)
        )
        _require_read(settings, terms)
        labels = label_terms(settings.labels, class_counts or {})
        return cls(terms, settings.mining_warmup_steps, teacher, average, labels, group)

    def __call__(self, embeddings: Embeddings, batch: Batch, step: int) -> ObjectiveResult:
        """Returns the loss of the global batch. This is a collective.

        All ranks compute the terms in the same order, also a rank without rows, because each term exchanges vectors.

        Args:
            embeddings: This rank's rows.
            batch: The batch from which the embeddings were computed.
            step: Number of steps done before this one. Positives are mined if it is at least `mining_warmup_steps`.
        """
        mined = step >= self.mining_warmup_steps
        teacher = self.teacher(batch.images) if self.teacher else None
        average = self.average(batch) if self.average and mined else None
        results = [term.loss(embeddings, batch, mined=mined, teacher=teacher, average=average) for term in self.terms]
        of_labels = label_results(self.labels, embeddings.outputs, batch.labels, self.group)
        pairs = list(zip(self.terms, results, strict=True))
        label_pairs = list(zip(self.labels, of_labels, strict=True))
        addends = [term.weight * result.loss for term, result in pairs]
        addends += [term.settings.weight * result.loss for term, result in label_pairs]
        loss = torch.stack(addends).sum()
        metrics = {"loss": loss.detach()}
        # Terms of the same kind share their learned scale and bias, which appear once.
        for term, result in pairs:
            metrics |= _metrics(term.part.name, result)
            metrics |= {name: number.detach() for name, number in term.learned(embeddings).items()}
        for term, result in label_pairs:
            metrics |= {f"{term.settings.name}/{name}": number for name, number in result.metrics.items()}
        return ObjectiveResult(loss, metrics)


def _require_read(settings: ObjectiveConfig, terms: Sequence[Term]) -> None:
    """Checks that the settings name a teacher if and only if a term uses it, and that not all terms refuse to mine.

    A mining rule without terms of whole images is not refused (see `notes_on_unread`).

    Raises:
        ConfigError: If a term needs a teacher and there is none, if no term uses the teacher, or if there is a mining
            rule although all terms of whole images are `soft`, which mine nothing.
    """
    readers = [term.part.name for term in terms if term.reads_teacher]
    if readers and settings.teacher is None:
        raise ConfigError(
            f"objective.kind: {readers[0]} is soft and learns from a teacher; give objective.teacher a name and "
            "pretrained weights."
        )
    if settings.teacher and not readers:
        raise ConfigError(
            "objective.teacher: no term reads it; set objective.kind to soft, or objective.mining.guide to image, "
            "counterpart or consensus, or leave the teacher out."
        )
    with_images = [term for term in terms if isinstance(term, ImageTerm)]
    if settings.mining and with_images and all(term.formula.has_teacher for term in with_images):
        raise ConfigError(
            "objective.mining: a soft objective weighs all pairs by its teacher and mines none; leave mining out, or "
            "give a part another kind with objective.kind_by_part."
        )


def notes_on_unread(settings: ObjectiveConfig) -> Iterator[str]:
    """Yields a note for the user, in one line, for each setting that has no effect because caption parts have weight 0.

    A setting with its default is not mentioned. These settings are not refused: one weight switches a part of a recipe
    off, and a run of version 0.1.0 that was started in this way must be able to resume with the same settings.
    """
    weights = settings.weights
    aligned = {part.aligned_with for part in active_parts(weights)}
    for kind, names in _READ_FOR.items():
        for name in names if kind not in aligned else ():
            if getattr(settings, name) != ObjectiveConfig.model_fields[name].default:
                reason = f"no part that is aligned with {kind} has a weight above 0"
                yield f"objective.{name} has no effect, because {reason}."
    for name in settings.kind_by_part:
        if not weights[name]:
            yield f"objective.kind_by_part.{name} has no effect, because the weight of {name} is 0."
    mines = (settings.mining and "image" in aligned) or (settings.local_mining and "patches" in aligned)
    if settings.mining_warmup_steps and not mines:
        yield "objective.mining_warmup_steps has no effect, because nothing is mined."


def vector_dtype(settings: ObjectiveConfig, precision: str) -> torch.dtype:
    """Returns the dtype to which the embeddings are cast before the losses.

    With bfloat16 the ranks exchange half as many bytes as with float32. The losses sum products in float32 with either
    dtype. With bfloat16 the error of a cosine is about 1e-4, which is less than the error that a tower in bfloat16
    causes (decision 4). float16 is never used: its products could overflow.
    """
    chosen = precision if settings.vectors == "auto" else settings.vectors
    return torch.bfloat16 if chosen == "bf16" else torch.float32


def _metrics(name: str, result: LossResult) -> dict[str, Tensor]:
    image_to_text, text_to_image = result.recall_at_1
    return {
        f"{name}/loss": result.loss.detach(),
        f"{name}/image_to_text": result.image_to_text,
        f"{name}/text_to_image": result.text_to_image,
        f"{name}/recall_at_1_image_to_text": image_to_text,
        f"{name}/recall_at_1_text_to_image": text_to_image,
        f"{name}/positives": result.positives,
    }
