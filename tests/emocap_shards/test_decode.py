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
    assert decode_image(saved(image, transparency=b"\xff" * 256))[0, 0].tolist() == [200, 0, 0]


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


@pytest.mark.parametrize(
    ("kind", "name"), [("BMP", "a BMP"), ("GIF", "a GIF"), ("TIFF", "a TIFF"), ("AVIF", "an AVIF"), ("ICO", "an icon")]
)
def test_another_format_is_refused_by_its_name(kind, name):
    data = saved(Image.new("RGB", (32, 32)), kind)
    for read in (decode_image, image_header):
        with pytest.raises(ImageError, match=f"the image is {name}, not JPEG, PNG or WebP; convert it"):
            read(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the image is empty"),
        (b"<!DOCTYPE html><p>Not found", "the image is a web page, not JPEG, PNG or WebP; download it again"),
        (b"\n<HTML>", "the image is a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "the image is a HEIC"),
        (b"version https://git-lfs.github.com/spec/v1", "the image is a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\nnothing", "its header is broken"),
        (b"nothing of the kind", "the bytes are not a JPEG, PNG or WebP image"),
    ],
)
def test_bytes_that_are_not_an_image_are_refused_by_what_they_are(data, told):
    with pytest.raises(ImageError, match=told):
        decode_image(data)


GREYS = np.array([[0, 10 << 8, 128 << 8, 65535]], dtype=np.uint16)


def test_sixteen_bits_of_grey_become_their_high_byte():
    assert decode_image(saved(Image.fromarray(GREYS)))[0, :, 1].tolist() == [0, 10, 128, 255]


def test_sixteen_bits_of_grey_with_a_transparent_grey_show_white_there():
    data = saved(Image.fromarray(GREYS))
    at = data.index(b"IDAT") - 4
    chunk = b"tRNS" + struct.pack(">H", 10 << 8)
    data = data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    assert decode_image(data)[0, :, 1].tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize(
    ("kind", "channels", "values", "expected"),
    [
        (2, 3, [65535, 128 << 8, 255], [255, 128, 0]),
        (6, 4, [65535, 128 << 8, 255, 65535], [255, 128, 0]),
        (6, 4, [65535, 128 << 8, 255, 0], [255, 255, 255]),
        (4, 2, [128 << 8, 65535], [128, 128, 128]),
    ],
)
def test_sixteen_bits_of_colour_become_their_high_byte(kind, channels, values, expected):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{channels}H", *values)))
    data = b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")
    assert decode_image(data)[0, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (0, 255), (51, 224)])
def test_transparent_pixels_show_white_and_not_the_colour_under_them(kind, alpha, expected):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(Image.new("RGBA", (4, 4), (100, 100, 100, alpha)), kind, **options)
    assert decode_image(data)[0, 0].tolist() == [expected] * 3


def test_transparent_grey_palettes_and_single_colours_show_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    grey = Image.new("L", (2, 1), 7)
    for image, options in (
        (palette, {"transparency": 0}),
        (Image.new("LA", (2, 1), (100, 0)), {}),
        (grey, {"transparency": 7}),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ):
        assert decode_image(saved(image, **options))[0, 0].tolist() == [255, 255, 255]
    assert decode_image(saved(palette, transparency=0))[0, 1].tolist() == [40, 50, 60]


def test_cmyk_is_inverted_only_where_adobe_wrote_it():
    data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    place = data.index(b"Adobe")
    length = int.from_bytes(data[place - 2 : place])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]
    without = data[: place - 4] + data[place - 2 + length :]
    # The same numbers, now read as amounts of ink: all of cyan and of black.
    assert decode_image(without)[0, 0].tolist() == [0, 0, 0]


def test_a_jpeg_with_a_second_one_inside_is_its_first():
    image = Image.new("RGB", (16, 16), (9, 9, 99))
    data = saved(image, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert image_header(data) == ("JPEG", 16, 16)
    assert decode_image(data)[0, 0].tolist() == [9, 9, 99]


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
