import pytest
import torch
from emocap_kernels.blocks import even_blocks
from emocap_kernels.distributed.ranks import SINGLE_RANK, Partition
from emocap_kernels.softmax import RunningScoreStats, gradient_weights, score_gradient
from emocap_kernels.targets import DiagonalTargets, MaskTargets
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


@given(length=st.integers(0, 200), longest=st.integers(-3, 60))
def test_blocks_cover_the_axis_in_order_and_none_is_too_long(length, longest):
    blocks = even_blocks(length, longest)
    assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(length))
    sizes = [block.stop - block.start for block in blocks]
    assert all(0 < size <= max(1, longest) for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("first", [-5, -3, -1, 0, 2, 5, 7, 9])
def test_diagonal_targets_are_those_of_the_mask_with_a_diagonal(first):
    score = torch.randn(3, 7, dtype=torch.float64)
    eye = torch.zeros(3, 7, dtype=torch.bool)
    eye.diagonal(first).fill_(True)
    diagonal, masks = DiagonalTargets(first, 3, torch.zeros(7, dtype=torch.float64)), MaskTargets(eye, eye)
    for name in ("row_sums", "column_sums", "row_candidates", "column_candidates"):
        torch.testing.assert_close(getattr(diagonal, name)(score), getattr(masks, name)(score))
    for name in ("row_counts", "column_counts"):
        torch.testing.assert_close(getattr(diagonal, name)(), getattr(masks, name)(), check_dtype=False)
    first, second = score.clone(), score.clone()
    shares_of_both = torch.rand(3, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    diagonal.subtract_at_positives_(first, *shares_of_both)
    masks.subtract_at_positives_(second, *shares_of_both)
    torch.testing.assert_close(first, second)


def tile_by_tile(
    score: Tensor, targets: MaskTargets, heights: list[slice], widths: list[slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses of rows and of columns, and the gradient of the sum of all, computed tile by tile."""

    def part(rows: slice, columns: slice) -> MaskTargets:
        return MaskTargets(*(getattr(targets, name)[rows, columns] for name in MaskTargets.__slots__))

    running = RunningScoreStats(*(Partition((size,), rank=0) for size in score.shape), like=score)
    for columns in reversed(widths):
        for rows in heights:
            running.add(score[rows, columns], part(rows, columns), rows, columns)
    stats = running.reduce(SINGLE_RANK)
    assert stats.row_best.equal(score.max(1).indices)
    assert stats.column_best.equal(score.max(0).indices)
    gradient = torch.empty_like(score)
    for columns in widths:
        for rows in heights:
            by_row, by_column = (
                gradient_weights(stats.rows, 1.0).part(rows),
                gradient_weights(stats.columns, 1.0).part(columns),
            )
            gradient[rows, columns] = score_gradient(score[rows, columns], part(rows, columns), by_row, by_column)
    return stats.rows.losses(), stats.columns.losses(), gradient


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
@pytest.mark.parametrize(("height", "width"), [(1, 9), (2, 4), (9, 1), (9, 9)])
def test_tiles_give_the_cross_entropy_of_both_directions(height, width, size):
    source = torch.Generator().manual_seed(0)
    score = (size * torch.randn(9, 9, generator=source, dtype=torch.float64)).requires_grad_()
    eye = torch.eye(9, dtype=torch.bool)
    positive = [eye | (torch.rand(9, 9, generator=source) > 0.7) for _ in range(2)]
    dropped = [~chosen & (torch.rand(9, 9, generator=source) > 0.5) for chosen in positive]
    targets = MaskTargets(*positive, *dropped)
    rows, columns, gradient = tile_by_tile(score.detach(), targets, even_blocks(9, height), even_blocks(9, width))
    means = [(score * chosen).sum(axis) / chosen.sum(axis) for chosen, axis in zip(positive, (1, 0), strict=True)]
    by_row = score.masked_fill(dropped[0], float("-inf")).logsumexp(1) - means[0]
    by_column = score.masked_fill(dropped[1], float("-inf")).logsumexp(0) - means[1]
    torch.testing.assert_close(rows, by_row, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(columns, by_column, rtol=1e-10, atol=1e-10)
    (by_row.sum() + by_column.sum()).backward()
    torch.testing.assert_close(gradient, score.grad, rtol=1e-10, atol=1e-12)


def test_a_loss_near_zero_is_not_rounded_away_at_scale_100():
    score = torch.full((2, 2), 85.0)
    score.diagonal().fill_(100.0)
    eye = torch.eye(2, dtype=torch.bool)
    none = torch.zeros_like(eye)
    rows, columns, _ = tile_by_tile(score, MaskTargets(eye, eye, none, none), even_blocks(2, 1), even_blocks(2, 1))
    exact = torch.tensor(-15.0, dtype=torch.float64).exp().log1p()
    for losses in (rows, columns):
        torch.testing.assert_close(losses, exact.expand(2), rtol=0.2, atol=0.0)
