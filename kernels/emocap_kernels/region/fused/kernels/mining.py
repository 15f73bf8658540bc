"""Contains the kernel that finds, for each image, the sentences that are similar to one of its own sentences.

Images have different numbers of sentences. The kernel reads from the device's memory where the sentences of its image
begin and end. Therefore nothing is padded, and the host reads no value from the device.
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines

# Axes:  R sentences of the batch   C own sentences of one image   D embedding   I images
#        b* size of a tile along *   n* how many there are


@triton.jit(do_not_specialize=NOT_SPECIALIZED, do_not_specialize_on_alignment=["starts_ptr_I"])
def any_similar_kernel(
    sentence_desc_RD,
    own_desc_CD,
    starts_ptr_I,
    similar_ptr_IR,
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
    """Finds for one image the sentences of a block that are similar to any sentence of the image.

    Program (j, i) takes the j-th tile of the block and image i. It goes over the own sentences of the image, which are
    the rows [starts[i], starts[i + 1]) of `own_desc_CD`.

    Reads:
        sentence_desc_RD, own_desc_CD: All sentences of a block, and the local sentences sorted by image.
        starts_ptr_I: int32 [images + 1], the row of each image's first sentence in `own_desc_CD`.
    Writes:
        similar_ptr_IR: uint8 [images, row_pitch], 1 if the cosine of the sentence with any own sentence of the image is
            at least `threshold`, else 0. Only the sentences [0, right) of the block are written.
    """
    sentence = tl.program_id(0) * bR
    sentence_R = sentence + tl.arange(0, bR)
    image = tl.program_id(1)
    begin = tl.load(starts_ptr_I + image)
    end = tl.load(starts_ptr_I + image + 1)
    similar_R = tl.zeros([bR], tl.int32)
    for own in tl.range(begin, end, bC):
        cosine_RC = cosines(sentence_desc_RD, own_desc_CD, sentence, own, nD, bR, bC, bD, PRECISION, WIDEN)
        # The last tile may reach into the sentences of the next image.
        inside_C = own + tl.arange(0, bC) < end
        close_RC = (cosine_RC >= threshold) & inside_C[None, :]
        similar_R = tl.maximum(similar_R, tl.max(close_RC.to(tl.int32), 1))
    place_R = image.to(tl.int64) * row_pitch + sentence_R
    tl.store(similar_ptr_IR + place_R, similar_R.to(tl.uint8), mask=sentence_R < right)
