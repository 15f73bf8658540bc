"""The fused local loss compared with float64: it is no further from it than the eager code that it replaces."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from emocap_kernels import Mining
from emocap_kernels.region.cases import CASES, RegionCase, draw
from emocap_kernels.region.fused import tiling
from fused_cases import DEVICE
from region_fused_cases import RULES, answer, require_as_accurate_as_eager

ODD = RegionCase("odd", 9, 33, 40, 24, 20.0, 10.0, "two pieces of patches, several tiles of sentences")
WIDE_ENOUGH = [replace(case, width=max(case.width, 17)) for case in CASES]
TAKING_TURNS = list(zip(RULES, cycle([torch.float32, torch.float16]), strict=False))
WINDOWS = RegionCase("windows", 4, 101, 18, 16, 30.0, 10.0, "more patches than registers hold")


def mask_of(case: RegionCase) -> torch.Tensor:
    """Returns a mask that keeps some patches of each image, and none of the first one."""
    mask = torch.rand(case.rows, case.patches, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[0] = False
    return mask.to(DEVICE)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mining", RULES)
def test_every_rule_is_as_accurate_as_eager_code(mining, masked):
    mask = mask_of(ODD) if masked else None
    mine = require_as_accurate_as_eager(ODD, mining=mining, patch_mask=mask)
    exact = answer(draw(ODD), ODD, "reference", torch.float64, mining=mining, patch_mask=mask)
    assert [x.item() for x in mine.result.recall_at_1] == pytest.approx([x.item() for x in exact.result.recall_at_1])


@pytest.mark.parametrize("case", WIDE_ENOUGH, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hard_inputs_of_every_type_are_as_accurate_as_eager_code(case, dtype):
    require_as_accurate_as_eager(case, dtype)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 1000.0, 1e6])
@pytest.mark.parametrize("masked", [False, True])
def test_any_sharpness_from_the_mean_to_the_best_patch(sharpness, masked):
    case = RegionCase("sharp", 5, 20, 11, 16, 100.0, sharpness, "")
    require_as_accurate_as_eager(case, patch_mask=mask_of(case) if masked else None)


@pytest.mark.parametrize("mining", RULES[:2])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_of_patches_make_no_difference(masked, mining):
    mask = mask_of(WINDOWS) if masked else None
    require_as_accurate_as_eager(WINDOWS, patch_mask=mask, mining=mining)


def test_a_window_in_which_no_patch_is_kept_adds_nothing():
    mask = mask_of(WINDOWS)
    mask[1, :60] = False
    mask[2, 50:] = False
    require_as_accurate_as_eager(WINDOWS, patch_mask=mask)


# The chunks do not depend on the type, so the types take turns.
@pytest.mark.parametrize(("mining", "dtype"), TAKING_TURNS, ids=str)
def test_chunks_make_no_difference(mining, dtype, monkeypatch):
    # A chunk of scores has a few images. A chunk of gradients has one image and one tile of sentences.
    monkeypatch.setattr(tiling, "SCORE_BYTES", 4 * 40 * 2)
    monkeypatch.setattr(tiling, "CHUNK_BYTES", 1)
    monkeypatch.setattr(tiling, "MAX_CHUNK_SENTENCES", 17)
    monkeypatch.setattr(tiling, "PROGRAMS", 1)
    require_as_accurate_as_eager(ODD, dtype, mining=mining)


@pytest.mark.parametrize("patches", [1, 15, 16, 17, 49, 64])
@pytest.mark.parametrize("width", [16, 50])
def test_any_number_of_patches_and_any_width(patches, width):
    require_as_accurate_as_eager(RegionCase("sizes", 3, patches, 8, width, 50.0, 10.0, ""))


def test_equal_sentences_of_two_images_are_mined():
    case = RegionCase("twins", 6, 9, 18, 16, 10.0, 10.0, "")
    drawn = draw(case)
    drawn.sentences[9:] = drawn.sentences[:9]
    owner = torch.arange(18) % 6
    same = type(drawn)(drawn.patches, drawn.sentences, owner)
    for rule in (Mining("text", 0.999), Mining("text", top_k=1)):
        found = answer(same, case, "fused", torch.float32, mining=rule).result.positives
        exact = answer(same, case, "reference", torch.float64, mining=rule).result.positives
        assert found.item() == pytest.approx(exact.item())


WITHIN = [
    RegionCase("few", 7, 5, 19, 16, 14.3, 10.0, "images of none to a few sentences"),
    RegionCase("many", 3, 70, 60, 20, 50.0, 10.0, "an image with more sentences than a program takes at once"),
    RegionCase("alone", 4, 20, 1, 50, 100.0, 10.0, "one sentence: the loss is 0"),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", WITHIN, ids=lambda case: case.name)
def test_within_an_image_it_is_as_accurate_as_eager_code(case, masked):
    mask = mask_of(case) if masked else None
    mine = require_as_accurate_as_eager(case, scope="image", patch_mask=mask)
    exact = answer(draw(case), case, "reference", torch.float64, scope="image", patch_mask=mask)
    assert [x.item() for x in mine.result.recall_at_1] == pytest.approx([x.item() for x in exact.result.recall_at_1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_within_an_image_halves_are_as_accurate_as_eager_code(dtype):
    require_as_accurate_as_eager(WITHIN[0], dtype, scope="image")


def test_equal_patches_get_equal_weights():
    case = WITHIN[0]
    drawn = draw(case)
    drawn.patches[:] = drawn.patches[:, :1]
    mine = answer(drawn, case, "fused", torch.float32, scope="image")
    exact = answer(drawn, case, "chunked", torch.float32, scope="image")
    torch.testing.assert_close(mine.result.loss, exact.result.loss)
    # The product decides which patches are equal to the last bit, and which gets the gradient. Their sum is equal.
    by_image = [each.gradients["patches"].sum(1) for each in (mine, exact)]
    torch.testing.assert_close(*by_image, rtol=1e-4, atol=1e-5)
