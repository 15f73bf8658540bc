"""Contrastive losses of large image-text batches: exact, in bounded memory, the same on any number of ranks."""

from emocap_kernels.contrastive.choice import choose_backend
from emocap_kernels.contrastive.op import contrastive_loss
from emocap_kernels.mining import Mining
from emocap_kernels.region.choice import choose_region_backend
from emocap_kernels.region.op import region_contrastive_loss
from emocap_kernels.region.pooling import region_attention

__all__ = [
    "Mining",
    "choose_backend",
    "choose_region_backend",
    "contrastive_loss",
    "region_attention",
    "region_contrastive_loss",
]
