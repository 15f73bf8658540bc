"""Provides the public functions of the local loss, `region_contrastive_loss` and `choose_region_backend`.

A call has three steps, as in the global loss (`contrastive.op`): the ranks exchange facts about their inputs
(`inputs`), each rank makes its batch (`batch`), and a backend computes the loss. With scope `batch` (every sentence is
compared with every image), the backends `reference`, `chunked` and `fused` are in the modules `reference`, `chunked`
and `fused.evaluate`. With scope `image` (only with its own image), they are in `reference` (`evaluate_within`),
`within` and `fused.within`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from emocap_kernels.backend import BACKENDS, Backend, BackendChoice, select_backend, why_not_fused
from emocap_kernels.distributed.consistency import exchange_facts
from emocap_kernels.distributed.ranks import Partition, Ranks, ranks_of
from emocap_kernels.distributed.schedule import Schedule
from emocap_kernels.mining import Mining
from emocap_kernels.precision import full_precision
from emocap_kernels.region import chunked, reference, within
from emocap_kernels.region.batch import replicated_batch, sharded_batch
from emocap_kernels.region.inputs import RegionInputs, Scope, check_and_describe
from emocap_kernels.result import LossResult, empty_result
from emocap_kernels.transforms import run_uncompiled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Within an image, a kernel holds the similarities of a sentence with all patches in registers. In float32 with 256
# patches it already spills 350 loads (docs/log.md, 2026-11-23).
MAX_PATCHES_WITHIN = 256


def choose_region_backend(
    patches: Tensor,
    sentences: Tensor,
    *,
    scope: Scope = "batch",
    mining: Mining | None = None,
    backend: Backend = "auto",
) -> BackendChoice:
    """Returns the backend that `region_contrastive_loss` uses with these arguments, and the reason.

    With `backend="auto"`, the choice depends on scope, device, type, width, number of patches and mining rule, never on
    the number of rows. The arguments are those of `region_contrastive_loss`. Nothing is communicated, and the values of
    the tensors are not read.

    Example:
        ```python
        print(choose_region_backend(patches, sentences, scope="image").reason)
        ```

    Raises:
        ArgumentError: If `backend` is unknown.
        NotSupportedError: If `backend` is `fused` and fused kernels cannot run.
    """
    unsupported = why_not_fused([patches, sentences], mining)
    if unsupported is None and scope == "image" and patches.shape[-2] > MAX_PATCHES_WITHIN:
        unsupported = f"{patches.shape[-2]} patches are more than {MAX_PATCHES_WITHIN}, the limit with scope='image'"
    return select_backend(backend, unsupported, patches)


@run_uncompiled
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
    """Returns the contrastive loss between image patches and local sentences, in both directions.

    With scope `batch`, every sentence is compared with every image of the global batch. The sentence pools the patches
    of the image by attention, and the pooled similarity is the score. An image without a sentence is a candidate for
    the sentences, but not an anchor. With scope `image`, a sentence pools only the patches of its own image, and the
    pooled vector is compared only with the sentences of that image (`region.within`). docs/method.md, section 2, has
    the equations.

    Inputs are used as given: nothing is normalised or clamped. With a `group`, the call and its backward are
    collectives: all ranks of the group must run both. The gradients of each rank are scaled so that their mean over
    the ranks, as DDP and DeepSpeed compute it, is the gradient of the loss. Gradients cannot be differentiated again,
    except with `backend="reference"`, and with `chunked` in scope `image`.

    Args:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors. An image may own any number of them, also none.
        owner: int64 [sentences], the local row of the image that owns each sentence; the rows may be in any order. On a
            GPU, the device checks that the rows exist, and stops the process if one does not.
        scale: The inverse temperature, already exponentiated; a number, or a tensor of one element.
        sharpness: Factor of the similarities in the softmax over patches, at least 0. With 0, all patches get equal
            weights. The larger the factor, the more weight the most similar patch gets. Scope `image` does not use it.
        scope: `batch` or `image`, as described above.
        patch_mask: Bool [rows, patches], True for patches that are kept; None keeps all. All scores of an image of
            which no patch is kept are 0.
        mining: The rule that finds more pairs by the similarity of sentences, and says whether they become positives or
            are excluded. Its field `guide` is not read. Scope `image` requires None.
        group: The ranks that share the batch; None means that nothing is communicated. All ranks of the group must
            make the call with the same settings.
        schedule: How sentences are sent between ranks; the values are those of `contrastive_loss`.
        backend: `auto` is `fused` where fused kernels can run, else `chunked`; `choose_region_backend` gives the
            reason.

    Returns:
        The loss of the global batch, which is equal on every rank to the bit, and detached tensors for logging, such as
        the recall. If no rank has a sentence, the loss is 0 and all gradients are 0.

    Raises:
        ArgumentError: If the value of an argument is not allowed.
        ShapeError: If tensors do not fit together.
        NotSupportedError: If the backend cannot run on these inputs.
        RanksDisagreeError: If the inputs of another rank are invalid, or if the ranks of the group differ in a setting.

    Example:
        ```python
        patches = normalize(torch.randn(8, 49, 64), dim=2).requires_grad_()
        sentences = normalize(torch.randn(20, 64), dim=1).requires_grad_()
        owner = torch.arange(20) % 8
        region_contrastive_loss(patches, sentences, owner, 14.3).loss.backward()
        ```
    """
    inputs = RegionInputs(patches, sentences, owner, scale, float(sharpness), scope, patch_mask, mining, schedule)
    ranks = ranks_of(group, patches.device)

    # All checks run inside `describe`, whose error on one rank becomes an error on all ranks.
    def describe() -> dict[str, int]:
        facts = check_and_describe(inputs)
        choice = choose_region_backend(patches, sentences, scope=scope, mining=mining, backend=backend)
        return {**facts, "backend": BACKENDS.index(choice.backend)}

    facts = exchange_facts(ranks, describe, may_differ=("rows", "sentences", "backward communicates"))
    images = Partition(counts=tuple(each["rows"] for each in facts), rank=ranks.rank)
    of_sentences = Partition(counts=tuple(each["sentences"] for each in facts), rank=ranks.rank)
    selected = BACKENDS[facts[ranks.rank]["backend"]]
    backward_communicates = any(each["backward communicates"] for each in facts)
    # From here on every branch depends only on values that are equal on all ranks, so all send the same messages.
    with full_precision(patches.device):
        if of_sentences.total == 0:
            return empty_result(patches, sentences, scale)
        if selected == "reference":
            evaluate = reference.evaluate if scope == "batch" else reference.evaluate_within
            return evaluate(replicated_batch(inputs, images, of_sentences, ranks))
        if scope == "image":
            return _evaluate_within(selected, inputs, images, of_sentences, ranks)
        narrow = selected == "fused" or patches.is_cuda
        batch = sharded_batch(
            inputs, images, of_sentences, ranks, backward_communicates=backward_communicates, narrow=narrow
        )
        if selected == "chunked":
            return chunked.evaluate(batch)
        # Triton is an optional dependency, and without it `fused` is never selected.
        from emocap_kernels.region.fused.evaluate import evaluate

        return evaluate(batch)


def _evaluate_within(
    backend: str, inputs: RegionInputs, images: Partition, of_sentences: Partition, ranks: Ranks
) -> LossResult:
    if backend == "chunked":
        return within.evaluate(inputs, images, of_sentences, ranks)
    from emocap_kernels.region.fused.within import evaluate

    return evaluate(inputs, images, of_sentences, ranks)
