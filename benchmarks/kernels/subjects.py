"""Defines the two losses that are measured: their variants, all contenders, and the fewest operations they need.

A contender is one implementation of a loss. To measure another one, add it to `contenders` of `GLOBAL` or `REGION`.
Losses of other packages are in `peers`, and those that are written here for comparison are in `region_losses`.
"""

from collections.abc import Mapping

import torch
from emocap_kernels import Mining
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import peers, region_losses
from .batches import PairBatch, Regions, draw_pairs, draw_regions
from .device import UnableError
from .subject import FORWARD, Backend, Contender, Loss, Pass, Size, Subject, Variant

# The number of matrix products of a guide. A guide that compares the scores themselves needs none.
_GUIDES = {"counterpart": 2, "consensus": 2, "text": 1, "image": 1, "joint": 0}

# In the batches of draw_pairs, cosines are about 2/3 for own pairs, 1/3 within a group and 0 between groups.
_THRESHOLD = 0.25
PLAIN = Variant("plain")
THRESHOLD = Variant("threshold", mining=Mining(guide="counterpart", threshold=_THRESHOLD))
SIGMOID = Variant("sigmoid", objective="sigmoid")
VARIANTS = (
    PLAIN,
    THRESHOLD,
    Variant("top_k", mining=Mining(guide="counterpart", top_k=4)),
    Variant("joint", mining=Mining(guide="joint", threshold=_THRESHOLD)),
    SIGMOID,
)

# In the batches of draw_regions, cosines are about 2/3 for similar sentences, 1/6 within an image, else 0.
LOCAL_THRESHOLD = Variant("threshold", mining=Mining(guide="text", threshold=0.4))
SPARC = Variant("sparc", function="in the form of SPARC: the sentences of one image compete for its patches")
FLAIR = Variant(
    "flair", function="in the style of FLAIR: the cosine with the vector that a sentence pools from patches"
)
MAXSIM = Variant("maxsim", function="the best patch of every pair: scores alone, without a loss")
LOCAL_VARIANTS = (PLAIN, LOCAL_THRESHOLD, SPARC, FLAIR, MAXSIM)

_FLOAT_BYTES = 4
# The matrices that autograd holds in float32: scores, two log-softmaxes, and the gradients of two of these at a time.
_DENSE_MATRICES = 5


def our_global_loss(backend: Backend, variant: Variant) -> Loss:
    """Returns the function that computes a variant of our global loss with a given backend."""

    def loss(batch: PairBatch) -> Tensor:
        bias = batch.bias if variant.objective == "sigmoid" else None
        return batch.loss(objective=variant.objective, bias=bias, mining=variant.mining, backend=backend)

    return loss


def our_local_loss(backend: Backend, variant: Variant) -> Loss:
    """Returns the function that computes a variant of our local loss with a given backend.

    The returned function raises an UnableError if our package does not compute `variant`.
    """

    def loss(batch: Regions) -> Tensor:
        if variant.function is not None and variant != SPARC:
            raise UnableError(f"ours has no such loss: {variant.function}")
        return batch.loss(scope="image" if variant == SPARC else "batch", mining=variant.mining, backend=backend)

    return loss


def dense(batch: PairBatch) -> Tensor:
    """Computes InfoNCE in plain PyTorch, from one matrix of scores for both directions.

    The softmax is computed in at least float32.
    """
    scores = batch.image @ batch.text.T
    logits = batch.scale * (scores if scores.dtype == torch.float64 else scores.float())
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def dense_bytes(size: Size) -> float:
    """Returns the bytes of the matrices that autograd stores for `dense`, for a batch of this size."""
    return float(_DENSE_MATRICES * _FLOAT_BYTES * size.rows * size.rows)


def floor_flops(variant: Variant, pass_: Pass, size: Size) -> float:
    """Returns the fewest floating-point operations that compute a global loss exactly without storing scores.

    One product of images and texts needs `2 * rows**2 * width` operations. The forward pass computes one product, the
    scores. The backward pass computes the scores again, and two more products for the gradients. The objective
    `sigmoid` computes the scores only once: its gradients need no sum over all scores of a row (the normaliser of a
    softmax), so they can be computed while the scores exist. Mining adds the matrix products that compute its guide,
    which is the similarity by which positives are mined.
    """
    product = 2.0 * size.rows * size.rows * size.width
    if pass_ == FORWARD:
        return product * (1 + _guide_products(variant))
    gradients = 3 if variant.objective == "sigmoid" else 4
    return product * (gradients + _minings(variant) * _guide_products(variant))


def local_floor_flops(variant: Variant, pass_: Pass, size: Size) -> float:
    """Returns the fewest floating-point operations that compute a local loss without storing similarities.

    One product of all patches and all sentences needs `2 * rows * patches * sentences * width` operations. The forward
    pass computes one product. The backward pass computes it again, and two more products for the gradients. Mining adds
    the matrix products that compute its guide, the similarity by which positives are mined. The pooled vectors of
    `flair` need further operations, which are not counted.

    The variant `sparc` compares each sentence only with the patches of its own image, so one product needs
    `2 * patches * sentences * width` operations. The forward pass computes one product for the similarities and one for
    the pooled vectors. Their results are small enough to be kept, so the backward pass only computes four products for
    the gradients.
    """
    patches, sentences = size.regions
    own = 2.0 * patches * sentences * size.width
    if variant == SPARC:
        return own * (2 if pass_ == FORWARD else 6)
    mined = 2.0 * sentences * sentences * size.width * _guide_products(variant)
    if pass_ == FORWARD:
        return own * size.rows + mined
    return own * size.rows * 4 + mined * _minings(variant)


def _minings(variant: Variant) -> int:
    """Returns how often the positives are mined in a forward and a backward pass together."""
    return 2 if variant.mining is not None and variant.mining.threshold is not None else 1


def _guide_products(variant: Variant) -> int:
    """Returns the number of matrix products that are needed to mine the positives once."""
    return 0 if variant.mining is None else _GUIDES[variant.mining.guide]


_OPEN_CLIP = "open_clip_torch"
GLOBAL = Subject(
    name="global",
    what="global contrastive loss",
    records="contrastive",
    variants=VARIANTS,
    contenders=(
        *(Contender("fused", each, our_global_loss("fused", each), needs_cuda=True) for each in VARIANTS),
        *(Contender("chunked", each, our_global_loss("chunked", each)) for each in VARIANTS),
        Contender("dense", PLAIN, dense, dense=dense_bytes),
        Contender("compiled", PLAIN, dense, dense=dense_bytes, compiles=True),
        Contender("open_clip", PLAIN, peers.open_clip, package=_OPEN_CLIP, dense=dense_bytes),
        Contender("open_clip", SIGMOID, peers.open_clip_sigmoid, package=_OPEN_CLIP, dense=dense_bytes),
        Contender("inf_cl", PLAIN, peers.inf_cl, package="inf-cl", needs_cuda=True),
        Contender("cce_exact", PLAIN, peers.cut_cross_entropy, package="cut-cross-entropy", needs_cuda=True),
        Contender("liger", PLAIN, peers.liger, package="liger-kernel", needs_cuda=True),
    ),
    draw=draw_pairs,
    small=lambda width: Size(256, width),
    ours=our_global_loss,
    floor_flops=floor_flops,
)

_LOCAL = (PLAIN, LOCAL_THRESHOLD, SPARC)
REGION = Subject(
    name="region",
    what="local contrastive loss",
    records="region",
    variants=LOCAL_VARIANTS,
    contenders=(
        *(Contender("fused", each, our_local_loss("fused", each), needs_cuda=True) for each in _LOCAL),
        *(Contender("chunked", each, our_local_loss("chunked", each)) for each in _LOCAL),
        Contender("dense", PLAIN, region_losses.dense, dense=region_losses.dense_bytes),
        Contender("compiled", PLAIN, region_losses.dense, dense=region_losses.dense_bytes, compiles=True),
        Contender("reference", PLAIN, our_local_loss("reference", PLAIN), dense=region_losses.dense_bytes),
        Contender("dense", SPARC, region_losses.within_images),
        Contender("dense", FLAIR, region_losses.pooled_vectors, dense=region_losses.pooled_bytes),
        Contender("blockwise", MAXSIM, region_losses.best_patches, passes=(FORWARD,)),
    ),
    draw=draw_regions,
    small=lambda width: Size(32, width, 49, 96),
    ours=our_local_loss,
    floor_flops=local_floor_flops,
)

SUBJECTS: Mapping[str, Subject] = {subject.name: subject for subject in (GLOBAL, REGION)}
