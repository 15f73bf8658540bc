"""The global loss: the ranks' agreement, the gathers, and the chosen backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.choice import Backend
from emocap_kernels.contrastive import chunked, reference
from emocap_kernels.contrastive.choice import choose_backend
from emocap_kernels.contrastive.gathered import one_sided, whole
from emocap_kernels.contrastive.inputs import ALIKE, Inputs, facts
from emocap_kernels.contrastive.objectives import Objective
from emocap_kernels.distributed.agreement import agreed
from emocap_kernels.distributed.ranks import Span, ranks_of
from emocap_kernels.distributed.route import Schedule
from emocap_kernels.mining import Mining
from emocap_kernels.precision import full_precision
from emocap_kernels.result import LossResult, nothing
from emocap_kernels.transforms import eager

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@eager
def contrastive_loss(  # noqa: PLR0913  (one call for every objective)
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    objective: Objective = "infonce",
    bias: Tensor | float | None = None,
    mining: Mining | None = None,
    guide_image: Tensor | None = None,
    guide_text: Tensor | None = None,
    guide_scale: Tensor | float | None = None,
    ids: Tensor | None = None,
    group: ProcessGroup | None = None,
    schedule: Schedule = "auto",
    backend: Backend = "auto",
) -> LossResult:
    """Contrastive loss of the global batch with known and mined positives, both directions.

    Row r of every input belongs to sample r. Inputs are used as given: nothing is normalised or clamped.

    Args:
        image: [rows, width], unit vectors; rows may be 0 and may differ between ranks.
        text: [rows, width], unit vectors.
        scale: Inverse temperature, already exponentiated; a number or a tensor of one.
        objective: `infonce` averages the log-probabilities of an anchor's positives (SupCon, Khosla et al. 2020),
            `mil_nce` takes the log of their summed probability (Miech et al. 2020), `sigmoid` asks of every pair
            whether it is a positive (SigLIP, Zhai et al. 2023), `soft` is the KL divergence from a teacher's softmax.
            Or a `ContrastiveObjective` of the caller's own (`objectives`).
        bias: Number or tensor of one that `sigmoid` adds to every score; None is 0 there and required elsewhere.
        mining: None for own pairs and equal ids only; None for `soft`.
        guide_image: [rows, any width], replaces `image` where mining reads similarities; no gradient. For `soft`,
            the teacher's.
        guide_text: [rows, any width], replaces `text` there.
        guide_scale: Inverse temperature of the teacher of `soft`; None is `scale`.
        ids: int64 [rows]; samples of equal id, on any rank, are always positives of each other.
        group: The ranks that share the batch; None means no communication. All of its ranks must call alike.
        schedule: How texts travel: `gather` and `hierarchical` keep those of all ranks, `ring` holds three ranks' at
            a time and sends them again for the gradient; `auto` is `hierarchical` from two machines on, else `gather`.
        backend: `choose_backend` says which one `auto` is, and why.

    Raises:
        ArgumentError: If a value breaks its rule.
        ShapeError: If tensors do not fit together.
        NotSupportedError: If the backend cannot run on these inputs.
        RanksDisagreeError: If the ranks of the group were called differently.
    """
    inputs = Inputs(image, text, scale, objective, bias, mining, guide_image, guide_text, guide_scale, ids, schedule)
    ranks = ranks_of(group, image.device)

    def describe() -> dict[str, int]:
        found = facts(inputs)
        chosen = choose_backend(
            image,
            text,
            objective=objective,
            mining=mining,
            guide_image=guide_image,
            guide_text=guide_text,
            backend=backend,
        )
        return {**found, "backend": checks.BACKENDS.index(chosen.backend)}

    said = agreed(ranks, describe, alike=ALIKE)
    span = Span(counts=tuple(each["rows"] for each in said), rank=ranks.rank)
    chosen = checks.BACKENDS[said[ranks.rank]["backend"]]
    needs_gradient = any(each["text needs a gradient"] for each in said)
    with full_precision(image.device):
        if span.total == 0:
            return nothing(*inputs.parameters())
        if chosen == "reference":
            return reference.evaluate(whole(inputs, span, ranks))
        if chosen == "chunked":
            return chunked.evaluate(one_sided(inputs, span, ranks, needs_gradient=needs_gradient, narrow=image.is_cuda))
        # Triton is an optional dependency: without it nothing comes here.
        from emocap_kernels.contrastive.fused.evaluate import evaluate

        return evaluate(one_sided(inputs, span, ranks, needs_gradient=needs_gradient, narrow=True))
