r"""What all fused kernels do with one tile of the score matrix.

Rows are image anchors, columns text anchors. A tile of cosines is made by the matrix units from a strip of each side,
lives in registers, and never reaches memory. Everything is in base 2, because the hardware's exponential is:

\[ z_{ij} = \mathrm{slope}\,\langle v_i, u_j \rangle, \qquad \mathrm{slope} = \mathrm{scale} \cdot \log_2 e, \qquad
   e^{S_{ij}} = 2^{z_{ij}} \]

A tile is made from the same operands in the same order wherever it is needed again, so a comparison that decided a
positive in forward decides it the same way in backward.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Which rule mines pairs: none, the tile's own cosines, or marks that another kernel left (1 by row, 2 by column).
RULE_NONE = tl.constexpr(0)
RULE_JOINT = tl.constexpr(1)
RULE_MARKS = tl.constexpr(2)

ROW_MARK = tl.constexpr(1)
COLUMN_MARK = tl.constexpr(2)

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def mined_pairs(cosine_RC, threshold, marks_desc, row, column, RULE: tl.constexpr):
    """Pairs mined by their row's anchor, and by their column's."""
    if RULE == RULE_JOINT:
        by_row_RC = cosine_RC >= threshold
        by_column_RC = by_row_RC
    else:
        marks_RC = marks_desc.load([row, column])
        by_row_RC = (marks_RC & ROW_MARK) != 0
        by_column_RC = (marks_RC & COLUMN_MARK) != 0
    return by_row_RC, by_column_RC


@triton.jit
def add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def larger_of_two(a, b, c, d):
    return tl.maximum(a, c), tl.maximum(b, d)


@triton.jit
def best_is_known(score_RC, known_RC, before_RC, axis: tl.constexpr):
    """Whether a known pair is the best of its row (axis 1) or column (axis 0) in this tile, as 0.0 or 1.0.

    Of equal scores, another pair wins if its candidate comes before the anchor's own, and loses if it comes after.
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
def found_pairs(score_RC, group_R, group_C, own_R, column_C, touched, bR: tl.constexpr, bC: tl.constexpr):
    """Rows, then columns, whose best candidate within this tile is a known one; `touched` if the tile has any."""
    found_R = tl.zeros([bR], tl.float32)
    found_C = tl.zeros([bC], tl.float32)
    if touched:
        known_RC = group_R[:, None] == group_C[None, :]
        found_R = best_is_known(score_RC, known_RC, column_C[None, :] < own_R[:, None], 1)
        found_C = best_is_known(score_RC, known_RC, own_R[:, None] < column_C[None, :], 0)
    return found_R, found_C


@triton.jit
def has_known(group_R, group_C, row, column, bR: tl.constexpr, bC: tl.constexpr, HAS_IDS: tl.constexpr):
    """Whether a tile holds any known pair: without ids, whether the diagonal crosses it."""
    if HAS_IDS:
        found = tl.max((group_R[:, None] == group_C[None, :]).to(tl.int32)) > 0
    else:
        found = (row < column + bC) & (column < row + bR)
    return found


@triton.jit
def log_sum_step(peak, total, score_RC, axis: tl.constexpr):
    """A running sum of 2^score, kept relative to its peak, with one more tile."""
    new_peak = tl.maximum(peak, tl.max(score_RC, axis))
    # Nothing but -inf so far: subtracting it would make NaN.
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    if axis == 1:
        part = tl.sum(tl.exp2(score_RC - shift[:, None]), 1)
    else:
        part = tl.sum(tl.exp2(score_RC - shift[None, :]), 0)
    return new_peak, total * tl.exp2(peak - shift) + part
