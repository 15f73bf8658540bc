import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from emocap_shards.annotation import dump_annotation, load_annotation
from emocap_shards.decode import decode_image, image_header
from emocap_shards.errors import AnnotationError, ImageError
from emocap_shards.sample import Caption
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_cases import encode

texts = st.text(min_size=1).filter(str.strip)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    pixels = decode_image(saved(Image.new("RGB", (5, 3), "red").convert(mode)))
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8


def test_cmyk_becomes_rgb():
    assert decode_image(saved(Image.new("CMYK", (4, 4)), "JPEG"))[0, 0].tolist() == [255, 255, 255]


def test_png_pixels_are_exact():
    expected = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (decode_image(encode(3)) == expected).all()


def test_a_photograph_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.new("RGB", (6, 4)), "JPEG", exif=exif)
    assert image_header(data) == ("JPEG", 6, 4)
    assert decode_image(data).shape == (6, 4, 3)


def test_a_transparent_palette_becomes_rgb_without_a_warning():
    image = Image.new("P", (4, 4))
    image.putpalette([200, 0, 0] * 256)
    assert decode_image(saved(image, transparency=bytes(range(256))))[0, 0].tolist() == [200, 0, 0]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_an_unreadable_exif_block_leaves_the_image_as_it_is_stored():
    data = saved(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\x00\x00MM\x00*nonsense")
    assert decode_image(data).shape == (4, 6, 3)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded():
    with pytest.raises(ImageError, match="8 x 8, more than 63 pixels"):
        decode_image(encode(1), max_pixels=63)


@pytest.mark.parametrize("side", [9_000, 10_000, 60_000])
def test_a_header_that_promises_too_much_is_refused(side):
    data = bytearray(encode(1))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageError, match=r"pixels"):
        decode_image(bytes(data))


def test_another_format_is_refused():
    with pytest.raises(ImageError, match="no JPEG, PNG or WEBP image"):
        decode_image(saved(Image.new("RGB", (4, 4)), "BMP"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_cut_anywhere_is_refused_or_whole(kind):
    data = encode(1, kind=kind, size=16)
    for length in range(0, len(data) * 9 // 10, 3):
        with pytest.raises(ImageError):
            decode_image(data[:length])


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_no_scrambled_image_raises_anything_else(kind, data):
    body = bytearray(encode(1, kind=kind, size=16))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        decode_image(bytes(body))


@given(
    texts,
    st.lists(texts, max_size=5).map(tuple),
    st.text(),
    st.dictionaries(st.text(), st.one_of(st.text(), st.floats(allow_nan=False, allow_infinity=False))),
)
def test_an_annotation_survives_the_way_through_json(whole, local, summary, labels):
    caption = Caption(whole, local, summary)
    assert load_annotation(dump_annotation(caption, labels, [caption])) == ((caption, caption), labels)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"caption": []}',
        b'{"caption": {"global": 3}}',
        b'{"caption": {"global": "x", "local": "y"}}',
        b'{"caption": {"global": "x", "summary": null}}',
        b'{"caption": {"global": "x"}, "labels": []}',
        b'{"caption": {"global": "x"}, "labels": {"a": true}}',
        b'{"caption": {"global": "x"}, "labels": {"a": NaN}}',
    ],
)
def test_what_is_no_annotation_is_refused(data):
    with pytest.raises(AnnotationError):
        load_annotation(data)


def test_whole_numbers_become_the_floats_they_are_declared_to_be():
    _, labels = load_annotation(b'{"caption": {"global": "x"}, "labels": {"age": 31}}')
    assert isinstance(labels["age"], float)


@given(st.binary())
def test_no_bytes_crash_the_annotation_reader(data):
    with pytest.raises(AnnotationError):
        load_annotation(data)
