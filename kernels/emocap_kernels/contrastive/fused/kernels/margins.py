"""How the inputs stand to the bounds of the fixed shift: own scores and norms, in one pass over the embeddings."""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import VARYING

# Lines of the margins, of which each program writes one column.
OWN = tl.constexpr(0)
IMAGE_NORM = tl.constexpr(1)
TEXT_NORM = tl.constexpr(2)
LINES = 3


@triton.jit(do_not_specialize=VARYING)
def margins_kernel(
    image_ptr,
    text_ptr,
    margins_ptr,
    bottom,
    nD,
    image_pitch,
    text_pitch,
    bR: tl.constexpr,
    bD: tl.constexpr,
):
    """For `bR` local images: the least cosine with their own texts, and the largest squared norms of both."""
    program = tl.program_id(0)
    row_R = program * bR + tl.arange(0, bR)
    inside_R = row_R < bottom
    own_R = tl.zeros([bR], tl.float32)
    image_norm_R = tl.zeros([bR], tl.float32)
    text_norm_R = tl.zeros([bR], tl.float32)
    for d in range(0, nD, bD):
        depth_D = d + tl.arange(0, bD)
        inside_RD = inside_R[:, None] & (depth_D < nD)[None, :]
        image_place_RD = row_R[:, None].to(tl.int64) * image_pitch + depth_D[None, :]
        text_place_RD = row_R[:, None].to(tl.int64) * text_pitch + depth_D[None, :]
        image_RD = tl.load(image_ptr + image_place_RD, mask=inside_RD, other=0.0).to(tl.float32)
        text_RD = tl.load(text_ptr + text_place_RD, mask=inside_RD, other=0.0).to(tl.float32)
        own_R += tl.sum(image_RD * text_RD, 1)
        image_norm_R += tl.sum(image_RD * image_RD, 1)
        text_norm_R += tl.sum(text_RD * text_RD, 1)
    n_programs = tl.num_programs(0)
    tl.store(margins_ptr + OWN * n_programs + program, tl.min(tl.where(inside_R, own_R, float("inf")), 0))
    tl.store(margins_ptr + IMAGE_NORM * n_programs + program, tl.max(image_norm_R, 0))
    tl.store(margins_ptr + TEXT_NORM * n_programs + program, tl.max(text_norm_R, 0))
