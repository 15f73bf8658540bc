"""Computes bounds of the scores in one pass over the embeddings.

`choose_exponent_scale` uses these bounds to test whether one shift can be subtracted from all exponents of a batch.
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED

# Axes:  R rows of a program   D embedding   F fields   T programs
#        b* how much is loaded at once along *   n* how many there are

# The fields of the bounds.
OWN_COSINE = tl.constexpr(0)
IMAGE_NORM = tl.constexpr(1)
TEXT_NORM = tl.constexpr(2)
N_FIELDS = 3


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def score_bounds_kernel(
    image_ptr_RD,
    text_ptr_RD,
    bounds_ptr_FT,
    bottom,
    nD,
    image_pitch,
    text_pitch,
    bR: tl.constexpr,
    bD: tl.constexpr,
):
    """Computes bounds over `bR` rows: the least cosine of an own pair, and the largest squared norms.

    An own pair is the image and the text of one sample. The largest squared norm is computed for the images and for the
    texts separately.

    Reads:
        image_ptr_RD, text_ptr_RD: [bottom, nD] each. Row r of the images and row r of the texts form an own pair.
            `image_pitch` and `text_pitch` are the distances between the beginnings of consecutive rows, in elements.
    Writes:
        bounds_ptr_FT: float32 [fields, programs]. Each program writes one column.
    """
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
        image_RD = tl.load(image_ptr_RD + image_place_RD, mask=inside_RD, other=0.0).to(tl.float32)
        text_RD = tl.load(text_ptr_RD + text_place_RD, mask=inside_RD, other=0.0).to(tl.float32)
        own_R += tl.sum(image_RD * text_RD, 1)
        image_norm_R += tl.sum(image_RD * image_RD, 1)
        text_norm_R += tl.sum(text_RD * text_RD, 1)
    # Rows beyond the end have norms of 0, which change no maximum. Their cosines of 0 could change the minimum.
    n_programs = tl.num_programs(0)
    tl.store(bounds_ptr_FT + OWN_COSINE * n_programs + program, tl.min(tl.where(inside_R, own_R, float("inf")), 0))
    tl.store(bounds_ptr_FT + IMAGE_NORM * n_programs + program, tl.max(image_norm_R, 0))
    tl.store(bounds_ptr_FT + TEXT_NORM * n_programs + program, tl.max(text_norm_R, 0))
