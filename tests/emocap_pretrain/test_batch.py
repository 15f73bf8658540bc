import dataclasses

import torch

from emocap_pretrain.batch import Batch, Tokens


def tokens(*lengths: int) -> Tokens:
    longest = max(lengths, default=1)
    mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64).view(-1, 1)
    return Tokens(mask.long() * 7, mask)


def batch() -> Batch:
    return Batch(
        images=torch.zeros((2, 3, 4, 4), dtype=torch.uint8),
        whole=tokens(3, 1),
        summary=tokens(),
        sentences=tokens(2, 2, 5),
        owner=torch.tensor([0, 0, 1]),
        whole_ids=torch.tensor([5, 6]),
        summary_ids=torch.tensor([7, 8]),
    )


def flat(value: Batch | Tokens) -> list[torch.Tensor]:
    parts = (getattr(value, field.name) for field in dataclasses.fields(value))
    return [each for part in parts for each in (flat(part) if isinstance(part, Tokens) else [part])]


def test_rows_are_images_and_tokens_are_the_real_ones_of_all_parts():
    assert batch().rows == 2
    assert batch().tokens == 3 + 1 + 0 + 2 + 2 + 5


def test_moving_takes_every_part_along():
    moved = batch().to("meta")
    assert [each.device.type for each in flat(moved)] == ["meta"] * 10
    assert [each.shape for each in flat(moved)] == [each.shape for each in flat(batch())]
    assert [each.dtype for each in flat(moved)] == [each.dtype for each in flat(batch())]


def test_moving_to_where_it_is_changes_nothing():
    for before, after in zip(flat(batch()), flat(batch().to("cpu")), strict=True):
        assert torch.equal(before, after)
