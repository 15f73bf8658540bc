"""Checks the arguments of the local loss on one rank, and describes them to the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from zlib import crc32

from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.distributed.schedule import SCHEDULES, Schedule
from emocap_kernels.errors import ArgumentError
from emocap_kernels.mining import Mining
from emocap_kernels.precision import FLOAT_DTYPES

Scope = Literal["batch", "image"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class RegionInputs:
    """Holds the arguments of `region_contrastive_loss` on one rank, as the caller passed them."""

    patches: Tensor
    sentences: Tensor
    owner: Tensor
    scale: Tensor | float
    sharpness: float
    scope: Scope
    patch_mask: Tensor | None
    mining: Mining | None
    schedule: Schedule

    def zeroed_patches(self) -> Tensor:
        """Returns the patches with zeros in place of those that are not kept, because these may hold NaN."""
        if self.patch_mask is None:
            return self.patches
        return self.patches.masked_fill(~self.patch_mask[:, :, None], 0.0)


def check_and_describe(inputs: RegionInputs) -> Mapping[str, int]:
    """Checks the inputs of this rank, and returns the facts about them that the ranks exchange.

    A fact is a named integer, such as a size. The sharpness and the mining rule are not integers, so their facts are
    checksums. The caller may add facts of its own, such as the backend, but the total number of facts must not exceed
    `MAX_FACTS`.

    Raises:
        ArgumentError: If the value of an argument is not allowed.
        ShapeError: If tensors do not fit together.
    """
    checks.check_choice("scope", inputs.scope, SCOPES)
    checks.check_choice("schedule", inputs.schedule, SCHEDULES)
    checks.check_sharpness(inputs.sharpness)
    if inputs.scope == "image" and inputs.mining is not None:
        raise ArgumentError(
            "mining finds sentences of other images, which scope='image' does not compare; pass mining=None."
        )
    checks.check_regions(inputs.patches, inputs.sentences, inputs.owner, inputs.patch_mask, owner="owner")
    checks.check_scale("scale", inputs.scale)
    return {
        "rows": len(inputs.patches),
        "sentences": len(inputs.sentences),
        "patches of an image": inputs.patches.shape[1],
        "width": inputs.patches.shape[2],
        "dtype of patches": FLOAT_DTYPES.index(inputs.patches.dtype),
        "dtype of sentences": FLOAT_DTYPES.index(inputs.sentences.dtype),
        "patch_mask": int(inputs.patch_mask is not None),
        "scope": SCOPES.index(inputs.scope),
        "sharpness": crc32(repr(inputs.sharpness).encode()),
        "mining": 0 if inputs.mining is None else crc32(repr(inputs.mining).encode()),
        "schedule": SCHEDULES.index(inputs.schedule),
        "backward communicates": int(_backward_communicates(inputs)),
    }


def _backward_communicates(inputs: RegionInputs) -> bool:
    """Returns whether the gradients of this rank's inputs may require messages between ranks in backward.

    If the result is True on at least one rank, all ranks must run backward.
    """
    given = (inputs.patches, inputs.sentences, inputs.scale)
    wanted = [isinstance(each, Tensor) and each.requires_grad for each in given]
    # A `ring` sends the sentences again for any gradient. The other schedules keep them and send only their gradients.
    return any(wanted) if inputs.schedule == "ring" else inputs.sentences.requires_grad
