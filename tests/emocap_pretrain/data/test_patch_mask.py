import pytest
import torch

from emocap_pretrain.data.patch_mask import patches_along_a_side, patches_with_contrast
from emocap_pretrain.errors import ConfigError


def image_with_patches(*shown: int, change: int = 100) -> torch.Tensor:
    """Returns an image of one colour with 3 x 3 patches of 4 pixels, in which some patches have one other pixel."""
    image = torch.tensor([200, 10, 90], dtype=torch.uint8)[:, None, None].repeat(1, 12, 12)
    for patch in shown:
        image[1, 4 * (patch // 3) + 2, 4 * (patch % 3) + 3] += change
    return image


def test_a_patch_of_one_colour_takes_no_part():
    images = torch.stack([image_with_patches(), image_with_patches(0, 5, 7), image_with_patches(*range(9))])
    kept = patches_with_contrast(images, 9, 8)
    assert kept.shape == (3, 9)
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [[], [0, 5, 7], list(range(9))]


@pytest.mark.parametrize(("change", "kept"), [(7, False), (8, True)])
def test_the_contrast_is_the_least_that_a_patch_needs(change: int, kept: bool):
    images = image_with_patches(4, change=change)[None]
    assert patches_with_contrast(images, 9, 8)[0, 4].item() == kept


def test_a_rank_without_images_has_a_mask_without_rows():
    assert patches_with_contrast(torch.empty((0, 3, 12, 12), dtype=torch.uint8), 9, 8).shape == (0, 9)


@pytest.mark.parametrize(("patches", "pixels"), [(8, 12), (25, 12)])
def test_patches_that_do_not_divide_the_image_are_refused(patches: int, pixels: int):
    with pytest.raises(ConfigError, match=rf"{patches} patches .* {pixels} x {pixels} pixels.* leave patch_mask out"):
        patches_along_a_side(patches, pixels)
