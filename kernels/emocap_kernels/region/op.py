"""The local loss: the ranks' agreement, the gathers, and the chosen backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.choice import Backend
from emocap_kernels.distributed.agreement import agreed
from emocap_kernels.distributed.ranks import Ranks, Span, ranks_of
from emocap_kernels.distributed.route import Schedule
from emocap_kernels.mining import Mining
from emocap_kernels.precision import full_precision
from emocap_kernels.region import chunked, reference, within
from emocap_kernels.region.choice import choose_region_backend
from emocap_kernels.region.gathered import one_sided, whole
from emocap_kernels.region.inputs import ALIKE, Inputs, Scope, facts
from emocap_kernels.result import LossResult, nothing
from emocap_kernels.transforms import eager

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@eager
def region_contrastive_loss(
    patches: Tensor,
    sentences: Tensor,
    owner: Tensor,
    scale: Tensor | float,
    *,
    sharpness: float = 10.0,
    scope: Scope = "batch",
    patch_mask: Tensor | None = None,
    mining: Mining | None = None,
    group: ProcessGroup | None = None,
    schedule: Schedule = "auto",
    backend: Backend = "auto",
) -> LossResult:
    """Contrastive loss between image regions and local sentences, both directions.

    With scope `batch` every image of the global batch is scored by every sentence, over patches that the sentence
    itself weighs; with `image` the sentences of one image compete for its patches (`region.within`). Images without a
    sentence are candidates, not anchors. Inputs are used as given: nothing is normalised or clamped.

    Args:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors; any number for an image, also none.
        owner: int64 [sentences], the local row that each sentence belongs to, in any order. On a GPU a value out of
            range is found by the device, which then stops the process.
        scale: Inverse temperature, already exponentiated; 0-dim tensor or number.
        sharpness: Of the softmax over patches; 0 is the mean over patches, large values approach the best patch.
            Not read with scope `image`.
        scope: `batch` or `image`.
        patch_mask: Bool [rows, patches], True is kept; an image of which none is kept scores 0 everywhere.
        mining: By sentence-sentence similarity, whatever its guide says; only with scope `batch`.
        group: The ranks that share the batch; None means no communication. All of its ranks must call alike.
        schedule: How sentences travel, as texts do in `contrastive_loss`.
        backend: `auto` is `fused` where that can run and `chunked` elsewhere, as in `contrastive_loss`.

    Raises:
        ArgumentError: If a value breaks its rule.
        ShapeError: If tensors do not fit together.
        NotSupportedError: If the backend cannot run on these inputs.
        RanksDisagreeError: If the ranks of the group were called differently.
    """
    inputs = Inputs(patches, sentences, owner, scale, float(sharpness), scope, patch_mask, mining, schedule)
    ranks = ranks_of(group, patches.device)

    def describe() -> dict[str, int]:
        found = facts(inputs)
        chosen = choose_region_backend(patches, sentences, scope=scope, mining=mining, backend=backend)
        return {**found, "backend": checks.BACKENDS.index(chosen.backend)}

    said = agreed(ranks, describe, alike=ALIKE)
    images = Span(counts=tuple(each["rows"] for each in said), rank=ranks.rank)
    lines = Span(counts=tuple(each["sentences"] for each in said), rank=ranks.rank)
    chosen = checks.BACKENDS[said[ranks.rank]["backend"]]
    needs_gradient = any(each["sentences need a gradient"] for each in said)
    with full_precision(patches.device):
        if lines.total == 0:
            return nothing(patches, sentences, scale)
        if chosen == "reference":
            evaluate = reference.evaluate if scope == "batch" else reference.evaluate_within
            return evaluate(whole(inputs, images, lines, ranks))
        if scope == "image":
            return _within(chosen)(inputs, images, lines, ranks)
        if chosen == "chunked":
            narrow = patches.is_cuda
            return chunked.evaluate(
                one_sided(inputs, images, lines, ranks, needs_gradient=needs_gradient, narrow=narrow)
            )
        # Triton is an optional dependency: without it nothing comes here.
        from emocap_kernels.region.fused.evaluate import evaluate

        return evaluate(one_sided(inputs, images, lines, ranks, needs_gradient=needs_gradient, narrow=True))


def _within(backend: str) -> Callable[[Inputs, Span, Span, Ranks], LossResult]:
    if backend == "chunked":
        return within.evaluate
    from emocap_kernels.region.fused.within import evaluate

    return evaluate
