"""The sizes of tiles and chunks of the local loss. This needs Triton's package, but no GPU."""

import pytest

pytest.importorskip("triton")

from emocap_kernels.region.fused.tiling import gradient_chunks, pieces_of, score_chunks
from hypothesis import given
from hypothesis import strategies as st


@given(patches=st.integers(1, 256))
def test_pieces_cover_the_patches_and_fit_into_registers(patches):
    pieces = pieces_of(patches, 256)
    sizes = [size for size in pieces if size > 1]
    assert patches <= sum(sizes) <= 256
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
    assert sum(sizes[:-1]) < patches


@pytest.mark.parametrize(
    ("patches", "pieces"),
    [(196, (128, 64, 16)), (49, (64, 1, 1)), (256, (256, 1, 1)), (144, (128, 16, 1)), (1, (16, 1, 1))],
)
def test_usual_numbers_of_patches_get_few_pieces(patches, pieces):
    assert pieces_of(patches, 256) == pieces


@given(images=st.integers(0, 50), sentences=st.integers(1, 50_000), pair_bytes=st.integers(16, 2048))
def test_chunks_cover_everything_once_and_hold_at_least_one_pair(images, sentences, pair_bytes):
    rows, columns = gradient_chunks(images, sentences, pair_bytes)
    for blocks, length in ((rows, images), (columns, sentences), (score_chunks(images, sentences), images)):
        assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(length))
