import pytest
import torch
from emocap_kernels import region_attention
from emocap_kernels.errors import ArgumentError, ShapeError
from emocap_kernels.region import pooling
from torch.nn.functional import normalize

PATCHES = normalize(torch.randn(5, 9, 6, generator=torch.Generator().manual_seed(1)), dim=2)
SENTENCES = normalize(torch.randn(7, 6, generator=torch.Generator().manual_seed(2)), dim=1)
IMAGE = torch.tensor([4, 0, 0, 2, 3, 1, 4])
MASK = torch.rand(5, 9, generator=torch.Generator().manual_seed(3)) > 0.4


@pytest.mark.parametrize("together", [1, 3, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_each_pair_gets_the_weights_that_the_loss_pools_with(masked, together, monkeypatch):
    monkeypatch.setattr(pooling, "block_bytes_on", lambda _: together * 4 * 9 * 6)
    found = region_attention(PATCHES, SENTENCES, IMAGE, sharpness=4.0, patch_mask=MASK if masked else None)
    for pair, (sentence, image) in enumerate(zip(SENTENCES, IMAGE, strict=True)):
        kept = MASK[image] if masked else torch.ones(9, dtype=torch.bool)
        expected = torch.zeros(9)
        expected[kept] = (4.0 * PATCHES[image][kept] @ sentence).softmax(0)
        torch.testing.assert_close(found[pair], expected)


def test_an_image_without_a_kept_patch_has_no_weights_also_with_nan():
    mask = MASK.clone()
    mask[4] = False
    poisoned = PATCHES.masked_fill(~mask[:, :, None], float("nan"))
    found = region_attention(poisoned, SENTENCES, IMAGE, patch_mask=mask)
    assert not found[0].any()
    torch.testing.assert_close(found.sum(1)[1:6], torch.ones(5))


def test_halves_are_converted_to_float32_and_no_graph_is_kept():
    half = region_attention(PATCHES.bfloat16().requires_grad_(), SENTENCES.bfloat16(), IMAGE)
    assert half.dtype == torch.float32
    assert not half.requires_grad
    torch.testing.assert_close(half, region_attention(PATCHES, SENTENCES, IMAGE), rtol=0.05, atol=0.01)


def test_an_error_names_the_wrong_input():
    with pytest.raises(ArgumentError, match=r"image holds values from 0 to 4; .* a local row, 0 to 2"):
        region_attention(PATCHES[:3], SENTENCES, IMAGE)
    with pytest.raises(ShapeError, match="the number of sentences is 7 and the length of image is 2"):
        region_attention(PATCHES, SENTENCES, IMAGE[:2])
    with pytest.raises(ArgumentError, match="sharpness=-1"):
        region_attention(PATCHES, SENTENCES, IMAGE, sharpness=-1.0)
