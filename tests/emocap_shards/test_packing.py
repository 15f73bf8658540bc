import io
import json
import random
import tempfile
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.errors import RecordError
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import read_manifest
from emocap_shards.store import open_store
from emocap_shards.writing import shards
from emocap_shards.writing.duplicates import (
    DIGEST_BYTES,
    MAX_BITS,
    DuplicateConfig,
    FingerprintIndex,
    perceptual_hash,
)
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.prepare import EncodingConfig, PrepareConfig
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.tar import TarFile
from pack_cases import files_of, folder_of, packed, samples_of, table_of, table_row, write_lines
from PIL import Image

EVERYTHING = {
    "recipe": PrepareConfig(EncodingConfig("webp", 80, longest_px=6), fingerprints=True),
    "duplicates": DuplicateConfig(bits=4, drop=True),
    "skip_bad": 10,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Returns a table of 180 rows: 30 of them repeat the image of another row, and the image of seven is missing."""
    folder = tmp_path_factory.mktemp("mixed")
    table_of(folder, 150)
    rows = [table_row(number, image=f"{number - number % 10}.png", key=f"k{number}") for number in range(0, 150, 5)]
    rows += [table_row(number) for number in range(150)]
    for number in range(0, 60, 9):
        rows[number]["image"] = "missing.png"
    return write_lines(folder / "mixed.jsonl", rows)


def test_the_bytes_do_not_depend_on_the_number_of_processes(mixed, tmp_path):
    """The options include re-encoding and near-duplicates, so rows are dropped and skipped."""
    source, options = open_source(mixed), PackConfig(ShardSize(30), **EVERYTHING)
    alone = pack(source, tmp_path / "1", options)
    assert pack(source, tmp_path / "3", options, processes=3) == alone
    assert files_of(tmp_path / "3") == files_of(tmp_path / "1")
    assert len(alone.skipped) == 7
    assert len(alone.duplicates) > 10
    assert alone.manifest.samples + len(alone.skipped) + len(alone.duplicates) == 180
    assert verify(tmp_path / "1").whole


def test_a_shard_grows_no_larger_than_its_bytes(tmp_path):
    folder = folder_of(tmp_path / "in", 30)
    pack(open_source(folder), tmp_path / "out", PackConfig(ShardSize(None, 12_000)))
    sizes = [shard.bytes for shard in read_manifest(tmp_path / "out").shards]
    assert len(sizes) > 3
    assert max(sizes) <= 12_000
    assert min(sizes[:-1]) > 12_000 - 2_500
    assert [(tmp_path / "out" / path).stat().st_size for path in ("shard-000000.tar",)] == sizes[:1]


def test_a_sample_larger_than_the_limit_has_a_shard_of_its_own(tmp_path):
    manifest = pack(open_source(folder_of(tmp_path / "in", 3)), tmp_path / "out", PackConfig(ShardSize(5, 10))).manifest
    assert manifest.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("limits", [(0, None), (None, None), (None, 0)])
def test_a_shard_without_a_limit_or_room_is_refused(limits):
    with pytest.raises(RecordError):
        ShardSize(*limits)


def test_bad_rows_are_let_go_up_to_a_number_and_all_are_reported(tmp_path):
    source = table_of(tmp_path / "in", 8)
    for number in (2, 5):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"<html>")
    with pytest.raises(RecordError, match=r"faces\.jsonl:3: .*not JPEG.*or allow a number of them with --skip-bad"):
        packed(source, tmp_path / "none")
    with pytest.raises(RecordError, match=r"2 bad rows, 1 are allowed; the last: .*faces\.jsonl:6"):
        packed(source, tmp_path / "one", skip_bad=1)
    done = packed(source, tmp_path / "two", skip_bad=2)
    assert done.manifest.samples == 6
    report = json.loads((tmp_path / "two" / "skipped.json").read_bytes())
    assert [row["where"].rsplit(":")[-1] for row in report] == ["3", "6"]
    assert "not JPEG" in report[0]["reason"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (tempfile, "mkdtemp"),
        (TarFile, "__init__"),
        (TarFile, "add"),
        (shards, "seal"),
        (Path, "unlink"),
        (tempfile.TemporaryDirectory, "_rmtree"),
    ],
)
def test_a_full_local_disk_is_one_line(tmp_path, monkeypatch, owner, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    source = table_of(tmp_path / "in", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Some of the errors leave a folder there.
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(RecordError, match=r"No space left on device.*or set TMPDIR"):
        packed(source, f"memory://{uuid.uuid4().hex}")


def test_a_machine_without_a_usable_folder_of_temporary_files_is_one_line(tmp_path, monkeypatch):
    source = table_of(tmp_path / "in", 2)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with pytest.raises(RecordError, match=r"No usable temporary directory found.*or set TMPDIR"):
        packed(source, tmp_path / "out")


def test_two_samples_of_one_key_are_told_by_both_places(tmp_path):
    source = table_of(tmp_path / "in", 3)
    write_lines(source, [table_row(0, key="a"), table_row(1), table_row(2, key="a")])
    with pytest.raises(RecordError, match=r"faces\.jsonl:3: the key 'a' is taken by .*faces\.jsonl:1;"):
        packed(source, tmp_path / "out")
    (bad,) = packed(source, tmp_path / "out", skip_bad=1).skipped
    assert "every sample needs its own key (--number-keys)" in str(bad)


def test_numbered_keys_count_rows(tmp_path):
    source = table_of(tmp_path / "in", 3)
    write_lines(source, [table_row(0, key="a"), {}, table_row(2, key="a")])
    packed(source, tmp_path / "out", number_keys=True, skip_bad=1)
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["000000000", "000000002"]


def test_progress_counts_rows_samples_and_what_is_stored(tmp_path):
    told = []
    source = open_source(folder_of(tmp_path / "in", 7))
    pack(source, tmp_path / "out", PackConfig(ShardSize(3)), progress=told.append)
    last = told[-1]
    assert (last.rows, last.samples, last.stored) == (7, 7, 7)
    assert last.bytes == read_manifest(tmp_path / "out").total_bytes
    assert all(before.rows <= after.rows <= before.rows + 1 for before, after in pairwise(told))


def photo(seed, size=(96, 64)):
    """Returns a picture with the spectrum of photographs: the amplitudes fall as 1 / frequency."""
    height, width = size[::-1]
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    waves = np.fft.irfft2(noise / np.maximum(frequency, 0.01), (height, width))
    grey = 40 * waves / waves.std() + 120
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_images_stay_the_bytes_that_they_are_by_default(tmp_path):
    source = table_of(tmp_path / "in", 1)
    (tmp_path / "in" / "0.png").write_bytes(data := saved(photo(1), comment=b"kept"))
    packed(source, tmp_path / "out")
    assert samples_of(tmp_path / "out")[0].image == data


@pytest.mark.parametrize(
    ("encoding", "extension", "size"),
    [
        (EncodingConfig("webp"), "webp", (64, 96)),
        (EncodingConfig("png", longest_px=48), "png", (32, 48)),
        (EncodingConfig(shortest_px=32), "jpg", (32, 48)),
        (EncodingConfig(longest_px=500), "jpg", (64, 96)),
        (EncodingConfig(longest_px=48, shortest_px=16), "jpg", (16, 24)),
        (EncodingConfig(longest_px=1), "jpg", (1, 1)),
    ],
)
def test_encoded_again_an_image_is_upright_smaller_and_without_metadata(tmp_path, encoding, extension, size):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "private"  # turned by 90 degrees; a description
    source = table_of(tmp_path / "in", 1)
    (tmp_path / "in" / "0.png").write_bytes(saved(photo(1), exif=exif))
    packed(source, tmp_path / "out", recipe=PrepareConfig(encoding))
    (sample,) = samples_of(tmp_path / "out")
    image = Image.open(io.BytesIO(sample.image))
    assert (sample.extension, image.size) == (extension, size)
    assert not image.getexif()
    assert b"private" not in sample.image


def test_a_lower_quality_makes_a_smaller_file():
    pixels = np.asarray(photo(1))
    assert len(EncodingConfig("jpg", 30).encode(pixels, "jpg")[0]) < len(
        EncodingConfig("jpg", 95).encode(pixels, "jpg")[0]
    )


@pytest.mark.parametrize("wrong", [{"extension": "gif"}, {"quality": 0}, {"quality": 101}, {"longest_px": -1}])
def test_an_encoding_that_cannot_be_is_refused(wrong):
    with pytest.raises(RecordError):
        EncodingConfig(**wrong)


def test_exact_and_near_duplicates_are_reported_and_kept(tmp_path):
    source = table_of(tmp_path / "in", 5)
    files = [saved(photo(1)), saved(photo(2)), saved(photo(1)), saved(photo(1), quality=40), saved(photo(3))]
    for number, data in enumerate(files):
        (tmp_path / "in" / f"{number}.png").write_bytes(data)
    search = {"recipe": PrepareConfig(fingerprints=True)}
    done = packed(source, tmp_path / "kept", duplicates=DuplicateConfig(), **search)
    assert done.manifest.samples == 5
    report = json.loads((tmp_path / "kept" / "duplicates.json").read_bytes())
    assert [(row["key"], row["like"], row["exact"]) for row in report] == [("2", "0", True), ("3", "0", False)]
    assert 0 < report[1]["bits"] <= 12
    assert report[1]["where"].endswith("faces.jsonl:4")
    strict = packed(source, tmp_path / "strict", duplicates=DuplicateConfig(bits=0, drop=True), **search)
    assert [sample.key for sample in samples_of(tmp_path / "strict")] == ["0", "1", "3", "4"]
    assert len(strict.duplicates) == 1


@pytest.mark.parametrize("change", ["quality", "half", "brighter"])
def test_the_hash_hardly_changes_with_the_file_and_wholly_with_the_picture(change):
    changes = {
        "quality": lambda image: Image.open(io.BytesIO(saved(image, quality=30))),
        "half": lambda image: image.resize((48, 32)),
        "brighter": lambda image: image.point(lambda value: min(255, value + 8)),
    }
    assert _distance(photo(1), changes[change](photo(1))) <= 12
    assert min(_distance(photo(1), photo(other)) for other in range(2, 20)) > 50


def _distance(first, second):
    hashes = [int.from_bytes(perceptual_hash(np.asarray(image.convert("RGB")))) for image in (first, second)]
    return (hashes[0] ^ hashes[1]).bit_count()


def test_an_even_image_has_a_hash():
    assert perceptual_hash(np.full((8, 8, 3), 7, np.uint8)) == perceptual_hash(np.full((9, 9, 3), 7, np.uint8))


@pytest.mark.parametrize("bits", [0, 7, MAX_BITS])
def test_the_bands_find_what_comparing_with_each_finds(bits):
    """The hashes are close to each other, so that all distances around the limit occur."""
    chance = random.Random(bits)
    centre = chance.getrandbits(256)
    hashes = [
        centre ^ sum(1 << place for place in chance.sample(range(256), chance.randint(0, 12))) for _ in range(300)
    ]
    lookalikes = FingerprintIndex(bits)
    for number, value in enumerate(hashes):
        print_ = number.to_bytes(DIGEST_BYTES) + value.to_bytes(32)
        found = lookalikes.find(print_)
        best = min(((value ^ other).bit_count() for other in hashes[:number]), default=256)
        assert (found[1] if found else None) == (best if best <= bits else None)
        lookalikes.add(str(number), print_)


def test_more_bits_than_the_bands_can_find_are_refused():
    with pytest.raises(RecordError, match="between 0 and 15 of 256"):
        DuplicateConfig(16)


def test_without_bad_rows_and_duplicates_there_is_no_report_and_no_journal(tmp_path):
    packed(folder_of(tmp_path / "in", 3), "memory://tidy", samples=2)
    assert [entry.path for entry in open_store("memory://tidy").list()] == [
        "manifest.json",
        "shard-000000.npy",
        "shard-000000.tar",
        "shard-000001.npy",
        "shard-000001.tar",
    ]
