"""Which images reach which sentences over a sentence of their own that is similar enough."""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import VARYING, cosines


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["starts_ptr"])
def reached_kernel(
    sentence_desc,
    own_desc,
    starts_ptr,
    reached_ptr,
    threshold,
    right,
    row_pitch,
    nD,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """1 where an own sentence [starts[i], starts[i + 1]) of image i has that cosine, uint8 [images, row_pitch].

    Rows of a tile are sentences of the batch, columns own sentences of one image; both directions reach alike.
    """
    sentence = tl.program_id(0) * bR
    sentence_R = sentence + tl.arange(0, bR)
    image = tl.program_id(1)
    begin = tl.load(starts_ptr + image)
    end = tl.load(starts_ptr + image + 1)
    reached_R = tl.zeros([bR], tl.int32)
    for own in tl.range(begin, end, bC):
        cosine_RC = cosines(sentence_desc, own_desc, sentence, own, nD, bR, bC, bD, PRECISION, WIDEN)
        inside_C = own + tl.arange(0, bC) < end
        close_RC = (cosine_RC >= threshold) & inside_C[None, :]
        reached_R = tl.maximum(reached_R, tl.max(close_RC.to(tl.int32), 1))
    place_R = image.to(tl.int64) * row_pitch + sentence_R
    tl.store(reached_ptr + place_R, reached_R.to(tl.uint8), mask=sentence_R < right)
