import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.data.transform import augment as augmented
from emocap_pretrain.data.transform import center_crop

KEY = (0, 0, 0)


def picture(height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def augment(*arguments, **settings) -> np.ndarray:
    """Returns the pixels of the augmented image, and not whether it is mirrored."""
    return augmented(*arguments, **settings)[0]


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 33),
    st.floats(0, 1),
    st.floats(0, 1),
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 9), st.integers(0, 2**40)),
)
def test_any_picture_and_crop_gives_the_asked_size(height, width, pixels, crop, flip, key):
    pixel_values = augment(picture(height, width), pixels, crop=crop, flip=flip, key=key)
    assert pixel_values.shape == (pixels, pixels, 3)
    assert pixel_values.dtype == np.uint8
    assert center_crop(picture(height, width), pixels).shape == (pixels, pixels, 3)


def test_the_same_key_gives_the_same_pixels_whatever_was_drawn_in_between():
    first = augment(picture(), 16, crop=0.5, flip=0.5, key=(3, 1, 7))
    np.random.default_rng().random(5)
    augment(picture(), 16, crop=0.5, flip=0.5, key=(3, 1, 8))
    assert np.array_equal(first, augment(picture(), 16, crop=0.5, flip=0.5, key=(3, 1, 7)))


@pytest.mark.parametrize("other", [(4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7)])
def test_another_seed_epoch_or_sample_gives_other_pixels(other):
    first = augment(picture(), 16, crop=0.5, flip=0.5, key=(3, 1, 7))
    assert not np.array_equal(first, augment(picture(), 16, crop=0.5, flip=0.5, key=other))


def test_a_flip_is_the_mirror_image_of_the_same_crop():
    plain = augment(picture(), 16, crop=0.5, flip=0, key=KEY)
    assert np.array_equal(augment(picture(), 16, crop=0.5, flip=1, key=KEY), plain[:, ::-1])
    assert [augmented(picture(), 16, crop=0.5, flip=flip, key=KEY)[1] for flip in (0, 1)] == [False, True]


def test_the_share_of_flips_is_the_probability():
    plain = picture()
    unflipped = center_crop(plain, 24)
    flips = [
        not np.array_equal(augment(plain, 24, crop=1, flip=0.25, key=(0, 0, sample)), unflipped)
        for sample in range(2000)
    ]
    assert 0.25 - 4 * np.sqrt(0.25 * 0.75 / 2000) < np.mean(flips) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_without_crop_and_flip_a_square_picture_keeps_its_pixels():
    expected = picture()
    assert np.array_equal(augment(picture(), 24, crop=1, flip=0, key=KEY), expected)
    assert np.array_equal(center_crop(picture(), 24), expected)


def test_the_centre_is_cut_out_of_the_longer_side():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    assert (center_crop(wide, 10) == 200).all()
    assert (center_crop(wide.transpose(1, 0, 2), 10) == 200).all()


def test_crops_reach_down_to_the_smallest_share_and_every_border():
    """The pixels of the image rise from 0 to 200 along the side, so their values say where a crop begins and ends."""
    ramp = np.broadcast_to(np.arange(201, dtype=np.uint8)[None, :, None], (201, 201, 3))
    cuts = [augment(ramp, 201, crop=0.5, flip=0, key=(0, 0, sample))[0, :, 0] for sample in range(300)]
    first, last = (np.array([int(cut[place]) for cut in cuts]) for place in (0, -1))
    sides = last - first + 1
    assert 98 <= sides.min() < 110
    assert 190 < sides.max() <= 201
    assert first.min() <= 2
    assert last.max() >= 198
