import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from emocap_shards.sample import Caption
from emocap_shards.stream import Stream
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pretrain_fakes import tensors_of
from pydantic import ValidationError

from emocap_pretrain.config.augmentation import AugmentConfig
from emocap_pretrain.data.augmentation import changed, random_numbers, rotation_degrees
from emocap_pretrain.data.loader import batches
from emocap_pretrain.data.patch_mask import patches_with_contrast
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import augment
from emocap_pretrain.training.build import build_collate

ALWAYS = {
    name: {"probability": 1.0} for name in ("rotation", "colour", "greyscale", "blur", "resolution", "jpeg", "erasing")
}
LUMA = np.array([0.299, 0.587, 0.114])
PLAIN = Caption("Joy.", ("The left brow is raised.",), "She smiles.")


def settings(**changes) -> AugmentConfig:
    return AugmentConfig.model_validate(changes)


def noise(side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (side, side, 3), dtype=np.uint8)


def after(image: np.ndarray, *, sample: int = 0, caption: Caption = PLAIN, detail_px: int | None = None, **changes):
    numbers = random_numbers((0, 0, sample))
    return changed(image, settings(**changes), numbers, caption, detail_px=detail_px or len(image))


def test_no_image_is_changed_by_default():
    image = noise()
    assert np.array_equal(after(image), image)
    assert rotation_degrees(settings(), random_numbers((0, 0, 0)), PLAIN) == 0


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 33),
    st.floats(0.01, 1),
    st.floats(-45, 45),
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 9), st.integers(0, 2**40)),
)
def test_any_picture_with_all_changes_has_the_asked_size(height, width, pixels, crop, degrees, key):
    picture = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = picture.copy()
    square, _ = augment(picture, pixels, crop=crop, flip=0.5, key=key, degrees=degrees)
    found = changed(square, settings(**ALWAYS), random_numbers(key), None, detail_px=min(pixels, height, width))
    assert found.shape == (pixels, pixels, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("name", [name for name in ALWAYS if name != "rotation"])
def test_a_change_happens_as_often_as_its_probability_says(name):
    image = noise(16)
    ranges = {"sigma": [0.1, 0.1]} if name == "blur" else {}  # The default would not be seen at 16 pixels.
    change = {name: {"probability": 0.3, **ranges}}
    happened = [not np.array_equal(after(image, sample=each, **change), image) for each in range(400)]
    assert 0.3 - 4 * math.sqrt(0.21 / 400) < np.mean(happened) < 0.3 + 4 * math.sqrt(0.21 / 400)


def test_rotations_are_as_frequent_and_as_large_as_configured():
    angles = np.array(
        [
            rotation_degrees(settings(rotation={"probability": 0.5, "degrees": 8}), random_numbers((3, 1, each)), PLAIN)
            for each in range(1000)
        ]
    )
    assert 0.43 < np.mean(angles != 0) < 0.57
    assert -8 <= angles.min() < -7 < 7 < angles.max() <= 8


def test_switching_one_change_on_does_not_move_another():
    image = np.tile(np.arange(64, 192, 4, dtype=np.uint8)[:, None, None], (1, 32, 3))
    image[:, ::2] += 20
    covered = {"erasing": {"probability": 1.0, "area": [0.1, 0.1]}}
    alone = (after(image, **covered) != image).any(2)
    bright = {"colour": {"probability": 1.0, "contrast": 0, "saturation": 0, "hue": 0}}
    both = (after(image, **covered, **bright) != after(image, **bright)).any(2)
    assert alone.any()
    assert np.array_equal(alone, both)


@pytest.mark.parametrize("other", [(4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7)])
def test_another_seed_epoch_or_sample_gets_other_numbers(other):
    assert np.array_equal(random_numbers((3, 1, 7)), random_numbers((3, 1, 7)))
    assert not np.isin(random_numbers(other), random_numbers((3, 1, 7))).any()


def test_the_numbers_of_the_changes_are_not_those_of_the_crop():
    assert np.random.default_rng((3, 1, 7)).random() not in random_numbers((3, 1, 7))


def test_brightness_and_contrast_stay_within_their_strengths():
    flat = np.full((8, 8, 3), 100, dtype=np.uint8)
    only = {"probability": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    levels = [after(flat, sample=each, colour={**only, "brightness": 0.2}).mean() for each in range(200)]
    assert 79.5 <= min(levels) < 83
    assert 117 < max(levels) <= 120.5
    halves = flat.copy()
    halves[:4] = 140
    found = [after(halves, sample=each, colour={**only, "contrast": 0.5}).astype(float) for each in range(200)]
    spreads = [each.max() - each.min() for each in found]
    assert 19 <= min(spreads) < 23
    assert 57 < max(spreads) <= 61
    assert all(abs(each.mean() - 120) < 1 for each in found)
    assert np.array_equal(after(flat, colour=only), flat)


def test_contrast_keeps_the_mean_luma_that_the_brightness_gives():
    image = noise()
    only = {"probability": 1.0, "brightness": 0.3, "saturation": 0.0, "hue": 0.0}
    for each in range(20):
        means = [
            float((after(image, sample=each, colour={**only, "contrast": contrast}) @ LUMA).mean())
            for contrast in (0.0, 0.2)
        ]
        assert means[0] == pytest.approx(means[1], abs=1.5)


def test_saturation_and_hue_keep_the_luma_and_do_not_colour_grey():
    only = {"probability": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.3, "hue": 0.05}
    image = noise()
    found = after(image, sample=3, colour=only)
    assert np.abs(found @ LUMA - image @ LUMA).max() < 1.5
    assert np.abs(found.astype(int) - image).max() > 3
    grey = image[..., :1].repeat(3, 2)
    assert np.abs(after(grey, sample=3, colour=only).astype(int) - grey).max() <= 1


def test_a_grey_image_has_no_colour_and_the_same_luma():
    image = noise()
    found = after(image, greyscale={"probability": 1.0})
    assert np.ptp(found, axis=2).max() <= 1
    assert np.abs(found.mean(2) - image @ LUMA).max() < 1.5


@pytest.mark.parametrize("text", ["Flushed cheeks.", "The face is pale.", "The eyes are red.", "Brown eyes."])
def test_an_image_whose_caption_names_a_colour_keeps_it(text):
    image = noise()
    hue = {"colour": {"probability": 1.0, "brightness": 0, "contrast": 0}, "greyscale": {"probability": 1.0}}
    for caption in (Caption(text, (), ""), Caption("Joy.", (text,), ""), Caption("Joy.", (), text)):
        assert np.abs(after(image, caption=caption, **hue).astype(int) - image).max() <= 1
    assert np.ptp(after(image, **hue), axis=2).max() <= 1


@pytest.mark.parametrize("text", ["The head is tilted.", "She leans to the left.", "AU55C", "An upright head."])
def test_an_image_whose_caption_speaks_of_a_tilted_head_is_not_rotated(text):
    always = settings(rotation={"probability": 1.0})
    for caption in (Caption(text, (), ""), Caption("Joy.", (text,), ""), Caption("Joy.", (), text)):
        assert rotation_degrees(always, random_numbers((0, 0, 0)), caption) == 0
    assert rotation_degrees(always, random_numbers((0, 0, 0)), PLAIN) != 0
    assert rotation_degrees(always, random_numbers((0, 0, 0)), None) != 0


@pytest.mark.parametrize("degrees", [-20.0, 10.0])
def test_a_rotation_turns_the_picture_about_the_middle_of_the_crop(degrees):
    bar = np.zeros((90, 90, 3), dtype=np.uint8)
    bar[44:47, 20:71] = 255
    turned, _ = augment(bar, 45, crop=1.0, flip=0.0, key=(0, 0, 0), degrees=degrees)
    rows, columns = np.nonzero(turned[..., 0] > 100)
    slope = np.polyfit(columns, -rows, 1)[0]  # Rows count downwards.
    assert abs(math.degrees(math.atan(slope)) - degrees) < 1
    assert abs(rows.mean() - 22.25) < 0.5
    assert abs(columns.mean() - 22.25) < 0.5


def test_a_rotation_repeats_the_border_and_adds_no_black_corners():
    white = np.full((40, 40, 3), 255, dtype=np.uint8)
    assert augment(white, 24, crop=1.0, flip=0.0, key=(0, 0, 0), degrees=30)[0].min() == 255


def test_the_corners_of_a_rotated_crop_show_what_surrounds_it():
    around = np.full((100, 100, 3), 200, dtype=np.uint8)
    around[30:70, 30:70] = 50
    cuts = [augment(around, 20, crop=0.4, flip=0.0, key=(0, 0, each), degrees=45)[0] for each in range(30)]
    assert any(cut.min() < 60 and cut[0, 0, 0] > 190 for cut in cuts)


def test_a_loss_of_resolution_removes_detail_and_refers_to_the_stored_side():
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    half = {"probability": 1.0, "share": [0.5, 0.5]}
    assert after(stripes, resolution=half).std() < 0.3 * stripes.std()
    whole = {"probability": 1.0, "share": [1.0, 1.0]}
    assert np.array_equal(after(stripes, resolution=whole), stripes)
    # The stored image has a side of 8 pixels, so the same share leaves 4 pixels.
    wide = np.repeat(np.repeat(noise(8), 4, 0), 4, 1)
    assert after(wide, resolution=half, detail_px=8).std() < after(wide, resolution=half, detail_px=32).std()


def test_blur_and_compression_smooth_noise():
    image = noise(64)
    sharp = [after(image, blur={"probability": 1.0, "sigma": [each, each]}).std() for each in (0.005, 0.02)]
    assert sharp[1] < sharp[0] < image.std()
    errors = [
        np.abs(after(image, jpeg={"probability": 1.0, "quality": [each, each]}).astype(int) - image).mean()
        for each in (95, 30)
    ]
    assert 0 < errors[0] < errors[1]


def test_the_deviation_of_the_blur_is_a_share_of_the_side():
    image = noise(64)
    wanted = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.05 * 64))
    assert np.array_equal(after(image, blur={"probability": 1.0, "sigma": (0.05, 0.05)}), np.asarray(wanted))


def test_an_erased_rectangle_has_its_share_of_the_image_and_one_colour_that_the_patch_mask_leaves_out():
    image = noise(64)
    shares, places = [], set[tuple[int, int]]()
    for sample in range(200):
        found = after(image, sample=sample, erasing={"probability": 1.0, "area": [0.1, 0.2]})
        filling = found[(found != image).any(2)][0]
        assert np.abs(filling - image.mean((0, 1))).max() <= 1
        covered = (found == filling).all(2)
        rows, columns = np.nonzero(covered)
        shares.append((1 + np.ptp(rows)) * (1 + np.ptp(columns)) / 64**2)
        places.add((int(rows.min()), int(columns.min())))
        assert np.array_equal(found[~covered], image[~covered])
    assert 0.08 < min(shares) < 0.12
    assert 0.17 < max(shares) < 0.21
    assert len(places) > 100
    covered = after(image, erasing={"probability": 1.0, "area": [0.6, 0.6]})
    seen = patches_with_contrast(torch.from_numpy(covered.transpose(2, 0, 1)[None].copy()), 64, contrast=8)
    assert 0.3 < seen.float().mean() < 0.7


def test_an_augmented_batch_depends_on_neither_ranks_nor_the_place_of_a_resume(tiny_config, faces):
    data = tiny_config.data.model_copy(update={"augment": settings(**ALWAYS)})
    collate = build_collate(tiny_config.model_copy(update={"data": data}), Tokenizer.trained_on(["a face"], 300))
    stream = Stream(url=faces, global_batch=5, seed=3, window_samples=12)

    def taken(count: int, **changes) -> list:
        return list(itertools.islice(batches(dataclasses.replace(stream, **changes), collate), count))

    whole = taken(7)
    plain = build_collate(tiny_config, Tokenizer.trained_on(["a face"], 300))
    assert not torch.equal(next(batches(stream, plain)).batch.images, whole[0].batch.images)
    for (batch, cursor, _), *shares in zip(
        whole, *(taken(7, rank=rank, world_size=3) for rank in range(3)), strict=True
    ):
        assert torch.equal(torch.cat([share[0].images for share in shares]), batch.images)
        assert {share[1] for share in shares} == {cursor}
    for done, (_, cursor, _) in enumerate(whole[:-1], 1):
        resumed = taken(7 - done, start=cursor)
        for ours, theirs in zip(resumed, whole[done:], strict=True):
            assert all(map(torch.equal, tensors_of(ours.batch), tensors_of(theirs.batch)))


def test_an_empty_section_switches_a_change_on_with_its_defaults():
    assert settings(blur={}).blur.probability == 0.1
    assert settings().blur is None


@pytest.mark.parametrize(
    "wrong", [{"blur": {"sigma": [0.5, 0.1]}}, {"jpeg": {"quality": [0, 50]}}, {"rotation": {"degrees": 90}}]
)
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)
