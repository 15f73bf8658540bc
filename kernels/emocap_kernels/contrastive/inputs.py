"""Checks the arguments of the global loss on one rank, and describes them to the other ranks.

A description consists of facts, which are named integers. `exchange_facts` compares the facts of all ranks. Everything
that decides which messages a rank sends, or how it computes, must be a fact. The name of the objective and the mining
rule are texts, so their checksums are the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.contrastive.objectives import ContrastiveObjective, Objective, objective_of
from emocap_kernels.distributed.schedule import SCHEDULES, Schedule
from emocap_kernels.errors import ArgumentError
from emocap_kernels.mining import Mining
from emocap_kernels.positives import Modality, compares_modalities
from emocap_kernels.precision import FLOAT_DTYPES


@dataclass(frozen=True, slots=True)
class ContrastiveInputs:
    """Holds the arguments of `contrastive_loss` on one rank, as the caller passed them."""

    image: Tensor
    text: Tensor
    scale: Tensor | float
    objective: Objective
    bias: Tensor | float | None
    mining: Mining | None
    guide_image: Tensor | None
    guide_text: Tensor | None
    guide_scale: Tensor | float | None
    ids: Tensor | None
    schedule: Schedule

    @property
    def formula(self) -> ContrastiveObjective:
        """Returns the objective. If the caller passed a name, this is the objective that has this name.

        Raises:
            ArgumentError: If the name is unknown.
        """
        return objective_of(self.objective)

    def guides(self) -> dict[Modality, Tensor]:
        """Returns the guide features (by which mining or a teacher compares samples) of both modalities.

        They are [rows, any width] each. For a modality without guide features, its embeddings are returned.
        """
        return {
            "image": self.image if self.guide_image is None else self.guide_image,
            "text": self.text if self.guide_text is None else self.guide_text,
        }

    def parameters(self) -> list[Tensor | float]:
        """Returns the inputs that may need a gradient: image, text, scale, bias."""
        return [self.image, self.text, self.scale, 0.0 if self.bias is None else self.bias]


def check_and_describe(inputs: ContrastiveInputs) -> Mapping[str, int]:
    """Checks the inputs of this rank and returns the facts (named integers) that the other ranks need to know.

    The caller may add facts of its own, but the total number of facts must not exceed `MAX_FACTS`.

    Raises:
        ArgumentError: If the value of an argument is not allowed.
        ShapeError: If tensors do not fit together.
    """
    _check_values(inputs)
    _check_tensors(inputs)
    _check_widths(inputs)
    return {
        "rows": len(inputs.image),
        "width": inputs.image.shape[1],
        "dtype of image": FLOAT_DTYPES.index(inputs.image.dtype),
        "dtype of text": FLOAT_DTYPES.index(inputs.text.dtype),
        "ids": int(inputs.ids is not None),
        "guide_image": 0 if inputs.guide_image is None else inputs.guide_image.shape[1],
        "guide_text": 0 if inputs.guide_text is None else inputs.guide_text.shape[1],
        "dtype of guide_image": FLOAT_DTYPES.index(inputs.guides()["image"].dtype),
        "dtype of guide_text": FLOAT_DTYPES.index(inputs.guides()["text"].dtype),
        "guide_scale": int(inputs.guide_scale is not None),
        "bias": int(inputs.bias is not None),
        "objective": crc32(inputs.formula.name.encode()),
        "mining": 0 if inputs.mining is None else crc32(repr(inputs.mining).encode()),
        "schedule": SCHEDULES.index(inputs.schedule),
        "backward communicates": int(_backward_communicates(inputs)),
    }


def _backward_communicates(inputs: ContrastiveInputs) -> bool:
    """Returns whether the gradients of this rank's inputs can need messages between ranks.

    If the result is True on at least one rank, `chunked` and `fused` treat the texts of all ranks as inputs that need a
    gradient. Therefore all ranks take part in the messages.
    """
    wanted = [isinstance(each, Tensor) and each.requires_grad for each in inputs.parameters()]
    # A `ring` sends the texts again for any gradient. The other schedules keep them and send only their gradients.
    return any(wanted) if inputs.schedule == "ring" else inputs.text.requires_grad


def _check_values(inputs: ContrastiveInputs) -> None:
    # An argument that would have no effect is refused, as a setting without effect is refused in a run (decision 26).
    formula = inputs.formula
    checks.check_choice("schedule", inputs.schedule, SCHEDULES)
    if inputs.bias is not None and not formula.has_bias:
        raise ArgumentError(
            f"bias has an effect with objective='sigmoid' only, and cancels in {formula.name!r}; pass bias=None."
        )
    if not formula.has_teacher:
        if inputs.guide_scale is not None:
            raise ArgumentError(
                "guide_scale has an effect with objective='soft' only, because mining compares cosines; pass "
                "guide_scale=None."
            )
        return
    if inputs.mining is not None:
        raise ArgumentError(
            f"objective={formula.name!r} has a teacher's distribution instead of positives; pass mining=None."
        )
    if inputs.guide_image is None and inputs.guide_text is None:
        raise ArgumentError(
            f"objective={formula.name!r} needs a teacher; pass its features as guide_image and guide_text."
        )


def _check_tensors(inputs: ContrastiveInputs) -> None:
    image, text = inputs.image, inputs.text
    checks.check_floats("image", image, "rows", "width")
    checks.check_scale("scale", inputs.scale)
    for name, number in (("bias", inputs.bias), ("guide_scale", inputs.guide_scale)):
        if number is not None:
            checks.check_scale(name, number)
    for name, given in (("text", text), ("guide_image", inputs.guide_image), ("guide_text", inputs.guide_text)):
        if given is not None:
            checks.check_floats(name, given, "rows", "width")
            checks.check_equal("the number of rows of image", len(image), f"the number of rows of {name}", len(given))
            checks.check_device(name, given, image)
    checks.check_equal("the width of image", image.shape[1], "the width of text", text.shape[1])
    if inputs.ids is not None:
        checks.check_indices("ids", inputs.ids, "rows")
        checks.check_equal("the number of rows of image", len(image), "the length of ids", len(inputs.ids))
        checks.check_device("ids", inputs.ids, image)


def _check_widths(inputs: ContrastiveInputs) -> None:
    """Checks that the guide features of images and texts have equal widths, if they are multiplied with each other.

    A teacher multiplies them, and so does mining if its `guide` compares images with texts.
    """
    if inputs.formula.has_teacher:
        reader = f"objective {inputs.formula.name!r}"
    elif inputs.mining is not None and compares_modalities(inputs.mining):
        reader = f"guide {inputs.mining.guide!r}"
    else:
        return
    guides = inputs.guides()
    checks.check_equal(
        f"with {reader}, the width of the image features",
        guides["image"].shape[1],
        "the width of the text features",
        guides["text"].shape[1],
    )
