r"""Contains the operations on one tile of the score matrix, for the kernels of the global loss.

Rows are image anchors with the embeddings \(v_i\), and columns are text anchors with the embeddings \(u_j\). The matrix
units compute a tile of cosines from pieces of both. The tile stays in registers and is never written to memory. All
exponentials are in base 2, as the hardware computes them. The score \(S_{ij}\) thus becomes \(z_{ij}\):

\[ z_{ij} = \mathrm{slope}\,\langle v_i, u_j \rangle, \qquad \mathrm{slope} = \mathrm{scale} \cdot \log_2 e, \qquad
   e^{S_{ij}} = 2^{z_{ij}} \]

A tile is computed from the same operands in the same order wherever it is needed again. Therefore a comparison that
decides whether a pair is a positive gives the same answer in forward and in backward. For the same reason the compiler
must not fuse products into sums (`TileConfig.options`).
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Axes:  R rows (image anchors)   C columns (text anchors)   b* size of a tile along *

# The rule that mines pairs: none, a threshold on the tile's own cosines, or a mask that another kernel has written.
RULE_NONE = tl.constexpr(0)
RULE_SCORE = tl.constexpr(1)
RULE_MASK = tl.constexpr(2)

# Bits of a mask byte.
MINED_BY_ROW = tl.constexpr(1)
MINED_BY_COLUMN = tl.constexpr(2)

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def mined_pairs(cosine_RC, threshold, mask_desc_RC, row, column, RULE: tl.constexpr):
    """Returns two masks, bool [bR, bC]: the pairs mined for the row's anchor, and those mined for the column's anchor.

    With RULE_SCORE, a pair is mined for both anchors if its cosine is at least `threshold`. Otherwise both masks are
    read from the bits of `mask_desc_RC`, in which the tile begins at (row, column).
    """
    if RULE == RULE_SCORE:
        by_row_RC = cosine_RC >= threshold
        by_column_RC = by_row_RC
    else:
        mask_RC = mask_desc_RC.load([row, column])
        by_row_RC = (mask_RC & MINED_BY_ROW) != 0
        by_column_RC = (mask_RC & MINED_BY_COLUMN) != 0
    return by_row_RC, by_column_RC


@triton.jit
def add_two(a, b, c, d):
    """Adds the pairs (a, b) and (c, d) component by component, for `tl.reduce`."""
    return a + c, b + d


@triton.jit
def larger_of_two(a, b, c, d):
    """Returns the larger value of each component of the pairs (a, b) and (c, d), for `tl.reduce`."""
    return tl.maximum(a, c), tl.maximum(b, d)


@triton.jit
def best_is_known(score_RC, known_RC, before_RC, axis: tl.constexpr):
    """Returns 1.0 where a known pair is the best of its row (axis 1) or column (axis 0) in this tile, else 0.0.

    A known pair is a positive without mining. It is an own pair (the image and the text of one sample), or consists of
    the image and the text of two samples with equal ids. `before_RC` marks the pairs whose candidate has a lower index
    than the candidate of the anchor's own pair. Suppose that a known pair and another pair both have the largest score.
    The result is then 0.0 if the other pair is marked in `before_RC`, else 1.0. docs/method.md, section 5, describes in
    which case this differs from the other backends.

    The function uses two maxima and no tensor of indices, because such a tensor spilled more registers.
    """
    known, before = tl.reduce(
        (
            tl.where(known_RC, score_RC, float("-inf")),
            tl.where(before_RC & ~known_RC, score_RC, float("-inf")),
        ),
        axis,
        larger_of_two,
    )
    every = tl.max(score_RC, axis)
    return ((known > before) & (known == every)).to(tl.float32)


@triton.jit
def known_hits(score_RC, group_R, group_C, own_R, column_C, any_known, bR: tl.constexpr, bC: tl.constexpr):
    """Returns which rows [bR] and which columns [bC] have a known positive as their best candidate in this tile.

    A known positive is a positive without mining: its row and its column have the same group. Each of the two tensors
    has the entry 1.0 for an anchor whose best candidate is a known positive, else 0.0. `any_known` says whether the
    tile has a known positive; most tiles have none and skip the comparison. `column_C` holds the indices of the
    columns. `own_R` holds, for each row (an image), the index of the column with the text of the same sample.
    """
    hit_R = tl.zeros([bR], tl.float32)
    hit_C = tl.zeros([bC], tl.float32)
    if any_known:
        known_RC = group_R[:, None] == group_C[None, :]
        hit_R = best_is_known(score_RC, known_RC, column_C[None, :] < own_R[:, None], 1)
        hit_C = best_is_known(score_RC, known_RC, own_R[:, None] < column_C[None, :], 0)
    return hit_R, hit_C


@triton.jit
def contains_known(group_R, group_C, row, column, bR: tl.constexpr, bC: tl.constexpr, HAS_IDS: tl.constexpr):
    """Returns whether a tile contains a known pair, which is a pair whose row and column have the same group.

    Without ids (HAS_IDS is False), the only known pairs are own pairs: image and text of one sample. `column` is the
    first column of the tile. `row` is a column too: the one that holds the text of the tile's first row (an image). The
    own pairs of the following rows are in the following columns. Both numbers are counted from the first column of the
    block.
    """
    # The result is one number for the tile, so a branch on it is the same for all threads.
    if HAS_IDS:
        known_inside = tl.max((group_R[:, None] == group_C[None, :]).to(tl.int32)) > 0
    else:
        known_inside = (row < column + bC) & (column < row + bR)
    return known_inside


@triton.jit
def add_to_log_sum(peak, sum_exp2, score_RC, axis: tl.constexpr):
    """Adds 2^score, for all scores of a tile along `axis`, to a running sum. Returns the new (peak, sum_exp2).

    The running sum is `sum_exp2 * 2^peak`, and the peak is the largest score so far.
    """
    new_peak = tl.maximum(peak, tl.max(score_RC, axis))
    # Without a candidate so far the peak is -inf, and subtracting it would give NaN.
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    if axis == 1:
        part = tl.sum(tl.exp2(score_RC - shift[:, None]), 1)
    else:
        part = tl.sum(tl.exp2(score_RC - shift[None, :]), 0)
    return new_peak, sum_exp2 * tl.exp2(peak - shift) + part
