"""Provides the public functions of the global loss, `contrastive_loss` and `choose_backend`.

A call of `contrastive_loss` has three steps. First the ranks exchange facts about their inputs, such as sizes
(`inputs`, `distributed.consistency`). Then a batch is made, which holds the rows of this rank and receives those of
other ranks (`batch`). Finally, one backend computes the loss of the batch: `reference`, `chunked` or `fused.evaluate`.
The module to read next is `reference`, which is the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from emocap_kernels.backend import BACKENDS, Backend, BackendChoice, select_backend, why_not_fused
from emocap_kernels.contrastive import chunked, reference
from emocap_kernels.contrastive.batch import replicated_batch, sharded_batch
from emocap_kernels.contrastive.inputs import ContrastiveInputs, check_and_describe
from emocap_kernels.contrastive.objectives import Objective, objective_of
from emocap_kernels.distributed.consistency import exchange_facts
from emocap_kernels.distributed.ranks import Partition, ranks_of
from emocap_kernels.distributed.schedule import Schedule
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.mining import Mining
from emocap_kernels.precision import full_precision
from emocap_kernels.result import LossResult, empty_result
from emocap_kernels.transforms import run_uncompiled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def choose_backend(
    image: Tensor,
    text: Tensor,
    *,
    objective: Objective = "infonce",
    mining: Mining | None = None,
    guide_image: Tensor | None = None,
    guide_text: Tensor | None = None,
    backend: Backend = "auto",
) -> BackendChoice:
    """Returns the backend that `contrastive_loss` uses with these arguments, and the reason.

    The choice depends on device, type, width, objective and mining rule, never on the number of rows. Therefore a
    larger batch is computed by the same backend, and ranks with different numbers of rows choose the same backend.

    The arguments are those of `contrastive_loss`. Of the tensors only device, type and width are read, so tensors
    without rows are enough. Nothing is communicated.

    Example:
        ```python
        choice = choose_backend(image, text, mining=Mining(top_k=4))
        print(choice.backend, choice.reason)
        ```

    Raises:
        ArgumentError: If `backend` or `objective` is unknown.
        NotSupportedError: If `backend` is `fused` and fused kernels cannot run, or if it is `chunked` and the objective
            has only a formula.
    """
    vectors = [each for each in (image, text, guide_image, guide_text) if each is not None]
    unsupported, formula = why_not_fused(vectors, mining), objective_of(objective)
    if backend == "auto" and not chunked.can_run(formula):
        return BackendChoice("reference", f"the objective {formula.name!r} has only a formula.")
    if backend == "chunked" and not chunked.can_run(formula):
        raise NotSupportedError(
            f"backend='chunked' cannot run the objective {formula.name!r}, which has no losses and gradient of a tile; "
            "use backend='reference'."
        )
    if unsupported is None and not formula.has_kernels:
        unsupported = f"the objective {formula.name!r} has no fused kernels"
    return select_backend(backend, unsupported, image)


@run_uncompiled
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
    """Returns the contrastive loss of the global batch: the mean of the losses of image anchors and of text anchors.

    Row r of every input belongs to sample r of this rank. Inputs are used as given: nothing is normalised or clamped.
    docs/method.md, section 1, has the equations. With a `group`, the call and its backward are collectives: all ranks
    of the group must run both. The gradients of each rank are scaled so that their mean over the ranks, as DDP and
    DeepSpeed compute it, is the gradient of the loss. Gradients cannot be differentiated again, except with
    `backend="reference"`.

    Args:
        image: [rows, width], unit vectors. `rows` may be 0 and may differ between ranks.
        text: [rows, width], unit vectors.
        scale: The inverse temperature, already exponentiated; a number, or a tensor of one element.
        objective: `infonce` averages the log-probabilities of an anchor's positives (SupCon, Khosla et al. 2020),
            `mil_nce` takes the log of their summed probability (Miech et al. 2020), `sigmoid` classifies every pair
            as positive or not (SigLIP, Zhai et al. 2023), `soft` is the KL divergence from a teacher's softmax.
            A `ContrastiveObjective` of the caller's own is accepted as well.
        bias: A number, or a tensor of one element, that `sigmoid` adds to every score; None means 0. The other
            objectives require None.
        mining: The rule for further positives. With None, the only positives are own pairs (the image and the text of
            one sample) and pairs of equal `ids`. `soft` requires None.
        guide_image: [rows, any width], the features by which mining compares images, or for `soft` the image features
            of the teacher. None means `image`. No gradient flows through these features.
        guide_text: [rows, any width], the same for texts.
        guide_scale: The inverse temperature of the teacher of `soft`; None means `scale`.
        ids: int64 [rows]. Samples of equal id, on any rank, are always positives of each other.
        group: The ranks that share the batch; None means that nothing is communicated. All ranks of the group must
            make the call with the same settings.
        schedule: How the texts are sent between ranks. With `gather` and `hierarchical`, a rank keeps the texts of all
            ranks. With `ring`, it holds those of at most three ranks at a time, so they are sent again for each
            pass over them. With `infonce` and `mil_nce`, backward is such a pass.
            `auto` is `hierarchical` if there are several machines, else `gather`.
        backend: `auto` is `fused` on a GPU where fused kernels can run, and `chunked` elsewhere. For an objective that
            neither of them can compute, it is `reference`. Such an objective defines `anchor_losses` (its formula) and
            nothing else. `choose_backend` gives the reason.

    Returns:
        The loss of the global batch, which is equal on every rank to the bit, and detached tensors for logging, such as
        the recall.

    Raises:
        ArgumentError: If the value of an argument is not allowed.
        ShapeError: If tensors do not fit together.
        NotSupportedError: If the backend cannot run on these inputs.
        RanksDisagreeError: If the inputs of another rank are invalid, or if the ranks of the group differ in a setting.

    Example:
        ```python
        image = normalize(torch.randn(8, 64), dim=1).requires_grad_()
        text = normalize(torch.randn(8, 64), dim=1).requires_grad_()
        result = contrastive_loss(image, text, 14.3, mining=Mining(threshold=0.9))
        result.loss.backward()
        ```
    """
    inputs = ContrastiveInputs(
        image, text, scale, objective, bias, mining, guide_image, guide_text, guide_scale, ids, schedule
    )
    ranks = ranks_of(group, image.device)

    # All checks run inside `describe`, whose error on one rank becomes an error on all ranks.
    def describe() -> dict[str, int]:
        facts = check_and_describe(inputs)
        choice = choose_backend(
            image,
            text,
            objective=objective,
            mining=mining,
            guide_image=guide_image,
            guide_text=guide_text,
            backend=backend,
        )
        return {**facts, "backend": BACKENDS.index(choice.backend)}

    facts = exchange_facts(ranks, describe, may_differ=("rows", "backward communicates"))
    partition = Partition(counts=tuple(each["rows"] for each in facts), rank=ranks.rank)
    selected = BACKENDS[facts[ranks.rank]["backend"]]
    backward_communicates = any(each["backward communicates"] for each in facts)
    # From here on every branch depends only on values that are equal on all ranks, so all send the same messages.
    with full_precision(image.device):
        if partition.total == 0:
            return empty_result(*inputs.parameters())
        if selected == "reference":
            return reference.evaluate(replicated_batch(inputs, partition, ranks))
        # The matrix units of a GPU add half-precision products in float32. A CPU gets converted vectors.
        narrow = selected == "fused" or image.is_cuda
        batch = sharded_batch(inputs, partition, ranks, backward_communicates=backward_communicates, narrow=narrow)
        if selected == "chunked":
            return chunked.evaluate(batch)
        # Triton is an optional dependency, and without it `fused` is never selected.
        from emocap_kernels.contrastive.fused.evaluate import evaluate

        return evaluate(batch)
