"""Tests the images that a pack converts or makes smaller because training cannot read them as they are."""

import io
import json
import struct

import numpy as np
import pillow_heif
import pytest
from emocap_shards.decode import decode_image
from emocap_shards.errors import ImageError, RecordError
from emocap_shards.writing import conversion
from emocap_shards.writing.conversion import convert, look
from emocap_shards.writing.prepare import EncodingConfig, PrepareConfig
from pack_cases import bad_rows, folder_of, packed, samples_of, table_row, write_lines
from PIL import Image
from shard_cases import encode

TO_PNG = PrepareConfig(EncodingConfig("png"))
FORMATS = {"a.avif": "AVIF", "a.bmp": "BMP", "a.gif": "GIF", "a.jp2": "JPEG2000", "a.pgm": "PPM", "a.tiff": "TIFF"}
GREYS = np.array([[0, 10 << 8, 128 << 8, 65535]], dtype=np.uint16)
RED = Image.new("RGB", (8, 6), (255, 0, 0))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data):
    """Returns the pixels of an image that is converted without being made smaller."""
    return convert(data, lambda width, height: (width, height))


def tiff(data, *, bits, photometric=1, form=1, order="<", width=4, **tags):
    """Returns a TIFF of one grey row; `data` are its bytes."""
    found = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 279: len(data), 339: form}
    found |= {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(found) + 1) + 4
    entries = (struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted((found | {273: start}).items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(found) + 1)
    return head + b"".join(entries) + bytes(4) + data


@pytest.mark.parametrize("kind", FORMATS.values())
def test_a_format_that_training_cannot_read_is_converted(kind):
    data = saved(RED, kind)
    assert look(data) == conversion.ImageLook(kind, 8, 6, has_frames=False)
    assert np.abs(pixels(data).astype(int) - np.asarray(RED)).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_every_mode_of_a_tiff_becomes_rgb(mode):
    white = Image.new("RGB", (4, 4), "white").convert("RGBA" if mode == "RGBX" else mode)
    assert pixels(saved(white, "TIFF"))[0, 0].tolist() == [255, 255, 255]


def test_lab_becomes_srgb():
    image = Image.merge("LAB", [Image.new("L", (2, 2), 255), *[Image.new("L", (2, 2), 128)] * 2])
    assert pixels(saved(image, "TIFF"))[0, 0].tolist() == pytest.approx([255, 255, 255], abs=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data": GREYS.tobytes(), "bits": 16}, [0, 10, 128, 255]),
        ({"data": GREYS.astype(">u2").tobytes(), "bits": 16, "order": ">"}, [0, 10, 128, 255]),
        ({"data": GREYS.tobytes(), "bits": 16, "photometric": 0}, [255, 245, 127, 0]),
        ({"data": (GREYS.astype(np.uint32) << 16).tobytes(), "bits": 32}, [0, 10, 128, 255]),
        # Four values of 12 bits: 000, 0A0, 80F, FFF.
        ({"data": bytes([0x00, 0x00, 0xA0, 0x80, 0xFF, 0xFF]), "bits": 12}, [0, 10, 128, 255]),
    ],
    ids=["16", "16, big endian", "16, white is 0", "32", "12"],
)
def test_grey_values_of_more_than_8_bits_become_their_highest_8(options, expected):
    assert pixels(tiff(**options))[0, :, 1].tolist() == expected


def test_sixteen_bits_of_a_pgm_and_of_a_jpeg_2000_become_their_highest_8():
    image = Image.fromarray(GREYS.repeat(4, axis=0))
    for kind in ("PPM", "JPEG2000"):
        assert pixels(saved(image, kind))[0, :, 0].tolist() == [0, 10, 128, 255]


@pytest.mark.parametrize(("form", "values"), [(2, GREYS.astype(np.int16)), (3, GREYS.astype(np.float32))])
def test_values_without_a_known_range_are_refused(form, values):
    with pytest.raises(ImageError, match="negative or floating-point values"):
        pixels(tiff(values.tobytes(), bits=8 * values.itemsize, form=form))


def test_the_preview_of_a_raw_photograph_is_refused():
    with pytest.raises(ImageError, match="a raw photograph of a camera"):
        look(tiff(bytes(4), bits=8, t254=1))


def test_transparent_pixels_become_white_and_an_unused_alpha_is_ignored():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pixels(saved(clear, "TIFF"))[0, 0].tolist() == [255, 255, 255]
    # A BMP of 32 bits with masks (BITMAPV4HEADER), whose bytes of the alpha are all 0.
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(108 - 40 - 16)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + head + bytes([1, 2, 200, 0] * 2)
    assert pixels(data)[0].tolist() == [[200, 2, 1], [200, 2, 1]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_taken(kind):
    data = saved(RED, kind, save_all=True, append_images=[Image.new("RGB", RED.size, "blue")])
    assert look(data).has_frames
    assert pixels(data)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=4)


def folder_of_formats(folder):
    folder.mkdir()
    for name, kind in FORMATS.items():
        (folder / name).write_bytes(saved(RED, kind))
    (folder / "a.json").write_text('{"caption": {"global": "A face."}}')
    return folder


def test_a_folder_and_a_table_of_other_formats_are_converted_with_format(tmp_path):
    folder = folder_of_formats(tmp_path / "in")
    table = write_lines(folder / "faces.jsonl", [table_row(0, image=name) for name in FORMATS])
    for source, out in ((folder, "a"), (table, "b")):
        done = packed(source, tmp_path / out, recipe=TO_PNG)
        assert not done.skipped
        found = samples_of(tmp_path / out)
        assert [sample.key for sample in found] == [name.replace(".", "_") for name in FORMATS]
        assert all(sample.extension == "png" for sample in found)
        assert all(decode_image(sample.image)[0, 0, 0] >= 250 for sample in found)


@pytest.mark.parametrize("encoding", [None, EncodingConfig(longest_px=4)])
def test_without_format_each_of_them_is_refused_by_name_with_the_option(tmp_path, encoding):
    folder = folder_of_formats(tmp_path / "in")
    (folder / "b.png").write_bytes(encode(1))
    (folder / "b.json").write_text('{"caption": {"global": "A face."}}')
    done = packed(folder, tmp_path / "out", recipe=PrepareConfig(encoding), skip_bad=10)
    assert len(done.skipped) == len(FORMATS)
    listed = json.loads((tmp_path / "out" / "skipped.json").read_bytes())
    assert [each["file"] for each in listed] == list(FORMATS)
    for each, name in zip(listed, ("an AVIF", "a BMP", "a GIF", "a JPEG 2000", "a PPM", "a TIFF"), strict=True):
        expected = f"the image is {name}, not JPEG, PNG or WebP; convert it with --format jpg (or png, webp)"
        assert each["reason"] == expected


def test_a_format_that_cannot_be_converted_is_named_in_a_folder(tmp_path):
    folder = folder_of(tmp_path / "in", 1)
    (folder / "0000.svg").write_bytes(b"<svg></svg>")
    (told,) = bad_rows(folder)
    assert "0000.svg: the image is an SVG" in told


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_without_the_library_a_heic_is_refused_with_the_extra_that_converts_it(monkeypatch, brand):
    conversion._reads_heic.cache_clear()
    monkeypatch.setattr(conversion, "find_spec", lambda _: None)
    with pytest.raises(ImageError, match=r"the image is a HEIC.* after pip install 'emocap-pretrain\[heic\]'$"):
        look(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + bytes(40))
    conversion._reads_heic.cache_clear()


@pytest.fixture
def heic():
    """Returns a function that encodes images as HEIC."""
    pillow_heif.register_heif_opener()
    return lambda image, **options: saved(image, "HEIF", quality=-1, chroma=444, **options)


def test_a_heic_is_converted_with_its_orientation_its_alpha_and_more_than_8_bits(heic):
    halves = np.zeros((64, 96, 3), np.uint8)
    halves[:32] = 200, 30, 30
    image = Image.fromarray(halves)
    exif = Image.Exif()
    exif[0x112] = 6
    turned = pixels(heic(image, exif=exif.tobytes()))
    assert turned.shape == (96, 64, 3)
    assert turned[48, 60].tolist() == pytest.approx([200, 30, 30], abs=4)
    assert turned[48, 4].tolist() == pytest.approx([0, 0, 0], abs=4)
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert pixels(heic(clear))[0, 0].tolist() == [255, 255, 255]
    grey = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    assert pixels(heic(grey))[0, 0].tolist() == pytest.approx([128, 128, 128], abs=1)


def test_heics_of_a_folder_are_packed_with_format_and_refused_when_they_are_damaged(heic, tmp_path):
    folder = folder_of(tmp_path / "in", 1)
    whole = heic(Image.fromarray(np.full((64, 64, 3), 90, np.uint8)))
    for name, data in {"a": whole, "b": whole[:-40], "c": whole[:60]}.items():
        (folder / f"{name}.heic").write_bytes(data)
        (folder / f"{name}.json").write_text('{"caption": {"global": "A face."}}')
    done = packed(folder, tmp_path / "out", recipe=TO_PNG, skip_bad=2)
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["0000", "a_heic"]
    assert ["cannot be decoded" in str(bad) for bad in done.skipped] == [True, True]
    assert "the image is a HEIC, not JPEG, PNG or WebP; convert it with --format jpg" in bad_rows(folder)[0]


@pytest.mark.parametrize("head", [b"II*\0\x08" + bytes(9), b"GIF89a", b"BM"])
def test_a_broken_header_of_a_format_that_is_converted_is_no_reason_to_convert_it(head):
    with pytest.raises(ImageError, match=r"^the image is a (TIFF|GIF|BMP) that cannot be decoded: its header is"):
        look(head)


def test_frames_that_are_left_out_are_counted_also_after_an_interruption(tmp_path):
    folder = folder_of(tmp_path / "in", 6)
    for number in (0, 1, 4):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
        (folder / f"{number:04d}.png").unlink()
        (folder / f"{number:04d}.webp").write_bytes(data)
    (folder / "0005.png").write_bytes(b"")
    with pytest.raises(RecordError, match=r"0005\.png: the image is empty"):
        packed(folder, tmp_path / "out", samples=2)
    done = packed(folder, tmp_path / "out", samples=2, skip_bad=1)
    assert done.resumed
    assert done.notes == {conversion.FIRST_FRAME: 3}


@pytest.fixture
def small_limit(monkeypatch):
    """Makes images of more than 4,000 pixels large ones, and refuses those of more than 40,000."""
    monkeypatch.setattr("emocap_shards.writing.conversion.MAX_PIXELS", 4000)
    monkeypatch.setattr("emocap_shards.writing.prepare.MAX_PIXELS", 4000)
    monkeypatch.setattr("emocap_shards.writing.conversion.MAX_SHRUNK_PIXELS", 40_000)
    monkeypatch.setattr("emocap_shards.writing.conversion._STRIP_PIXELS", 1000)


def gradient(width, height):
    across = np.tile(np.linspace(0, 255, width), (height, 1))
    return np.stack([across, np.zeros_like(across), np.full_like(across, 9)], -1).astype(np.uint8)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_image_is_made_smaller_like_a_small_one(kind, orientation):
    image = Image.fromarray(gradient(190, 130))
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(image, kind, exif=exif)
    size = EncodingConfig(longest_px=40).size
    small = convert(data, size)
    upright = np.asarray(image) if orientation == 1 else np.rot90(np.asarray(image), -1)
    wanted = size(upright.shape[1], upright.shape[0])
    # At least twice the new size is left for the last and better resampling, and less than all of the image.
    sides = zip(wanted, small.shape[1::-1], upright.shape[1::-1], strict=True)
    assert all(2 * new <= side < old for new, side, old in sides)
    expected = Image.fromarray(upright).resize(small.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16"])
def test_every_mode_of_a_large_image_becomes_rgb(mode):
    white = Image.new("I;16", (200, 100), 65535) if mode == "I;16" else Image.new("L", (200, 100), 255).convert(mode)
    assert (convert(saved(white, "PNG"), EncodingConfig(longest_px=20).size) == 255).all()


@pytest.mark.usefixtures("small_limit")
def test_a_large_image_needs_an_option_that_makes_it_small_enough(tmp_path):
    folder = folder_of(tmp_path / "in", 1)
    (folder / "0000.png").write_bytes(saved(Image.new("RGB", (200, 100)), "PNG"))
    for encoding in (None, EncodingConfig("jpg"), EncodingConfig(longest_px=150)):
        with pytest.raises(RecordError, match="200 x 100, more than 4000 pixels; make it smaller with --longest-px"):
            packed(folder, tmp_path / "none", recipe=PrepareConfig(encoding))
    packed(folder, tmp_path / "out", recipe=PrepareConfig(EncodingConfig(longest_px=50)))
    (sample,) = samples_of(tmp_path / "out")
    assert decode_image(sample.image).shape == (25, 50, 3)


@pytest.mark.usefixtures("small_limit")
def test_an_image_beyond_the_second_limit_is_refused_before_it_is_decoded():
    data = saved(Image.new("1", (300, 200)), "PNG")
    with pytest.raises(ImageError, match="300 x 200, more than 40000 pixels"):
        look(data)
