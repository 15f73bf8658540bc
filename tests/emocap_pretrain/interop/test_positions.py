import torch
from torch import Tensor

from emocap_pretrain.interop.positions import KEPT, resized_grid, resized_positions


def long_clip(table: Tensor) -> Tensor:
    """Computes the positions of Long-CLIP by definition: quarter steps between neighbours, and a line at the end."""
    rows = list(table[:KEPT])
    for here, after in zip(table[KEPT:-1], table[KEPT + 1 :], strict=True):
        rows += [here + (after - here) * quarter / 4 for quarter in range(4)]
    rows += [table[-1] + (table[-1] - table[-2]) * quarter / 4 for quarter in range(4)]
    return torch.stack(rows)


def test_stretched_positions_are_those_of_long_clip():
    table = torch.randn(77, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = resized_positions(table, 248, how="stretch")
    assert made.shape == (248, 8)
    torch.testing.assert_close(made, long_clip(table))


def test_interpolated_positions_keep_the_first_and_the_last_one():
    table = torch.randn(16, 4)
    made = resized_positions(table, 31, how="interpolate")
    torch.testing.assert_close(made[::2], table)
    torch.testing.assert_close(made[1], (table[0] + table[1]) / 2)


def test_fewer_positions_are_the_first_ones():
    table = torch.randn(77, 4)
    for how in ("interpolate", "stretch"):
        assert torch.equal(resized_positions(table, 30, how=how), table[:30])


def test_a_table_that_is_too_short_to_stretch_is_interpolated():
    table = torch.randn(KEPT, 4)
    interpolated = resized_positions(table, 40, how="interpolate")
    assert torch.equal(resized_positions(table, 40, how="stretch"), interpolated)


def test_a_number_of_tokens_without_a_square_grid_changes_nothing():
    table = torch.randn(1, 10, 4)
    assert resized_grid(table, 12, prefix_tokens=1) is table
