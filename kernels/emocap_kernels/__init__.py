"""Provides contrastive losses for large image-text batches.

The losses are exact. Their values do not depend on the number of ranks.

`contrastive_loss` compares whole images with texts, and `region_contrastive_loss` compares image patches with
sentences. Each has an `op.py`, which checks the inputs, compares the arguments of all ranks, and selects one of three
backends. `reference` computes the formulas on whole matrices and is the specification. `chunked` (plain torch, tile by
tile) and `fused` (Triton kernels) need bounded memory. docs/method.md has the equations, and docs/kernels.md has
examples.
"""

from emocap_kernels.contrastive.op import choose_backend, contrastive_loss
from emocap_kernels.mining import Mining
from emocap_kernels.region.op import choose_region_backend, region_contrastive_loss
from emocap_kernels.region.pooling import region_attention

__all__ = [
    "Mining",
    "choose_backend",
    "choose_region_backend",
    "contrastive_loss",
    "region_attention",
    "region_contrastive_loss",
]
