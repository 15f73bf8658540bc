import torch
from pretrain_fakes import tensors_of

from emocap_pretrain.data.batch import Batch, Texts


def texts(*lengths: int, **numbers: list[int]) -> Texts:
    longest = max(lengths, default=1)
    mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64).view(-1, 1)
    return Texts(mask.long() * 7, mask, **{name: torch.tensor(each) for name, each in numbers.items()})


def batch() -> Batch:
    return Batch(
        images=torch.zeros((2, 3, 4, 4), dtype=torch.uint8),
        texts={
            "global": texts(3, 1, identity=[5, 6]),
            "summary": texts(),
            "local": texts(2, 2, 5, owner=[0, 0, 1]),
        },
    )


def test_rows_are_images_and_tokens_are_the_real_ones_of_all_parts():
    assert batch().rows == 2
    assert batch().tokens == 3 + 1 + 0 + 2 + 2 + 5


def test_moving_takes_every_part_along():
    moved = batch().to("meta")
    assert [each.device.type for each in tensors_of(moved)] == ["meta"] * 9
    assert [each.shape for each in tensors_of(moved)] == [each.shape for each in tensors_of(batch())]
    assert [each.dtype for each in tensors_of(moved)] == [each.dtype for each in tensors_of(batch())]


def test_moving_to_where_it_is_changes_nothing():
    for before, after in zip(tensors_of(batch()), tensors_of(batch().to("cpu")), strict=True):
        assert torch.equal(before, after)
