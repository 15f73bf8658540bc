import io
import json
import tarfile

import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.store import open_store
from emocap_shards.writing.sources import tars
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import Columns
from pack_cases import bad_rows, folder_of, packed, samples_of
from shard_cases import encode

CAPTION = json.dumps({"caption": {"global": "Glad."}, "labels": {"emotion": "joy"}}).encode()


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def foreign(path, numbers):
    """A tar as other tools write it: an image, its caption as text, its class as a number."""
    members = []
    for number in numbers:
        members += [
            (f"set/{number:03d}.jpg", encode(number, kind="JPEG")),
            (f"set/{number:03d}.txt", f"Face {number}.\n".encode()),
            (f"set/{number:03d}.cls", str(number % 2).encode()),
        ]
    return tar_of(path, members)


def test_image_text_and_class_members_become_samples(tmp_path):
    foreign(tmp_path / "a-0.tar", range(2))
    foreign(tmp_path / "a-1.tar", range(2, 5))
    packed(str(tmp_path / "a-{0..1}.tar"), tmp_path / "out", Columns(labels=("cls",)))
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples] == [f"set_{number:03d}" for number in range(5)]
    assert [sample.image for sample in samples] == [encode(number, kind="JPEG") for number in range(5)]
    (caption,), labels = load_annotation(samples[3].annotation)
    assert (caption.whole, labels) == ("Face 3.", {"cls": "1"})


def test_wild_cards_and_urls_name_tars(tmp_path):
    foreign(tmp_path / "a-0.tar", range(2))
    foreign(tmp_path / "a-1.tar", range(2, 5))
    from_files = packed(str(tmp_path / "a-*.tar"), tmp_path / "out").manifest
    store = open_store("memory://tars-by-url")
    for path in tmp_path.glob("*.tar"):
        store.put_file(f"deep/{path.name}", path)
    assert packed("memory://tars-by-url/d*/a-[01].tar", tmp_path / "urls").manifest == from_files
    assert packed("memory://tars-by-url/deep/a-{0,1}.tar", tmp_path / "braces").manifest == from_files


def test_a_compressed_tar_is_read(tmp_path):
    tar_of(tmp_path / "x.tar.gz", [("0.png", encode(0)), ("0.json", CAPTION)], mode="w:gz")
    assert packed(tmp_path / "x.tar.gz", tmp_path / "out").manifest.samples == 1


def test_our_own_shards_need_no_manifest(tmp_path):
    first = packed(folder_of(tmp_path / "in", 5), tmp_path / "out", samples=2).manifest
    assert packed(str(tmp_path / "out" / "shard-*.tar"), tmp_path / "again", samples=2).manifest == first


def test_fields_of_the_json_member_are_columns(tmp_path):
    row = {"text": ["One.", "Two."], "mood": "joy", "id": "k7"}
    tar_of(tmp_path / "x.tar", [("a.json", json.dumps(row).encode()), ("a.webp", encode(0, kind="WEBP"))])
    packed(tmp_path / "x.tar", tmp_path / "out", Columns(whole="text", labels=("mood",), key="id"))
    (sample,) = samples_of(tmp_path / "out")
    captions, labels = load_annotation(sample.annotation)
    assert (sample.key, [caption.whole for caption in captions], labels) == ("k7", ["One.", "Two."], {"mood": "joy"})


def test_an_image_member_of_a_longer_name_is_found_by_it(tmp_path):
    members = [("a.left.jpg", encode(0, kind="JPEG")), ("a.right.jpg", encode(1, kind="JPEG")), ("a.txt", b"Glad.")]
    packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out", Columns(image="right.jpg"))
    assert samples_of(tmp_path / "out")[0].image == encode(1, kind="JPEG")


BAD_GROUPS = {
    "no image": ([("a.txt", b"Glad.")], "it has no image, but txt"),
    "json that is a list": ([("a.png", encode(0)), ("a.json", b"[1]")], '"json" member is list, no object'),
    "json that is none": ([("a.png", encode(0)), ("a.json", b"{")], '"json" member is no JSON'),
    "text that is none": ([("a.png", encode(0)), ("a.txt", b"\xff")], "'txt' is no UTF-8"),
    "no caption": ([("a.png", encode(0)), ("a.cls", b"1")], "no column 'global'"),
    "climbing name": ([("../../a.png", encode(0)), ("../../a.json", CAPTION)], "leads out of the tar"),
    "absolute name": ([("/a.png", encode(0)), ("/a.json", CAPTION)], "leads out of the tar"),
    "image by path": ([("a.png", encode(0)), ("a.json", b'{"global": "x", "key": {}}')], "unusable key"),
    "name without extension": ([("README", b"x")], "README: its name has no extension"),
    "name for a terminal": ([("\x1b[2J", b"x")], "x.tar: \ufffd[2J: its name has no extension"),
    "one name twice": ([("a.png", encode(0)), ("a.json", CAPTION), ("a.PNG", encode(1))], "two members of this name"),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_a_bad_sample_of_a_tar_is_named_and_the_next_one_is_read(tmp_path, name):
    members, reason = BAD_GROUPS[name]
    good = [("z.png", encode(9)), ("z.json", b"{}")]
    told = bad_rows(tar_of(tmp_path / "x.tar", [*members, *good]))
    assert len(told) == 2
    assert told[0].startswith(f"{tmp_path}/x.tar: ")
    assert reason in told[0]
    assert "z: there is no column 'global'" in told[1]


def test_links_in_a_tar_are_reported_and_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (told,) = bad_rows(tmp_path / "x.tar")
    assert "x.tar: a.png: it is no plain file, but a link or a device" in told


def test_a_key_that_stands_in_two_tars_is_told_and_numbers_tell_them_apart(tmp_path):
    foreign(tmp_path / "a-0.tar", range(2))
    foreign(tmp_path / "a-1.tar", range(2))
    with pytest.raises(
        RecordError, match=r"a-1.tar: set/000: the key 'set_000' is taken by .*a-0.tar: set/000; .*number"
    ):
        packed(str(tmp_path / "a-*.tar"), tmp_path / "out")
    assert packed(str(tmp_path / "a-*.tar"), tmp_path / "out", number_keys=True).manifest.samples == 4


def test_a_tar_that_is_cut_or_overwritten_in_the_middle_is_told(tmp_path):
    whole = foreign(tmp_path / "x.tar", range(4)).read_bytes()
    position = whole.index(b"set/002.jpg")
    broken = {
        "cut in a member": whole[: position + 600],
        "cut in a header": whole[: position + 100],
        "no header": whole[:position] + b"x" * 512 + whole[position + 512 :],
    }
    for name, data in broken.items():
        (tmp_path / "x.tar").write_bytes(data)
        (told,) = bad_rows(tmp_path / "x.tar")
        assert "x.tar: the tar cannot be read to its end, and what follows is lost" in told, name


def test_a_tar_that_is_none_or_not_there_is_told(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>" * 1000)
    assert "cannot be read" in bad_rows(tmp_path / "x.tar")[0]
    with pytest.raises(RecordError, match=r"y\.tar is not there; correct its name"):
        bad_rows(tmp_path / "y.tar")
    foreign(tmp_path / "a-0.tar", range(2))
    with pytest.raises(RecordError, match=r"a-1\.tar is not there"):
        bad_rows(tmp_path / "a-{0..1}.tar")
    with pytest.raises(RecordError, match="names no file"):
        list(open_source(tmp_path / "z-*.tar").rows())


def test_members_that_nobody_asked_for_are_not_read(tmp_path, monkeypatch):
    """Ten of them would fill the memory, each below the limit of a member."""
    monkeypatch.setattr(tars, "_MAX_SAMPLE_BYTES", 2000)
    bulk = [(f"a.bulk{number}", bytes(1500)) for number in range(10)]
    members = [("a.png", encode(0)), ("a.json", CAPTION), *bulk]
    packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out")
    assert samples_of(tmp_path / "out")[0].image == encode(0)


def test_a_sample_whose_members_are_too_large_together_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "_MAX_SAMPLE_BYTES", 2000)
    members = [
        ("a.png", encode(0)),
        ("a.txt", b"x" * 1000),
        ("a.json", b" " * 1000),
        ("b.png", encode(1)),
        ("b.txt", b"B"),
    ]
    (told,) = bad_rows(tar_of(tmp_path / "x.tar", members))
    assert told.endswith("x.tar: a: its members have more than 2000 bytes together; make them smaller")


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_header_of_megabytes_is_refused(tmp_path, format_):
    with tarfile.open(tmp_path / "x.tar", "w", format=format_) as tar:
        tar.addfile(tarfile.TarInfo("n" * (1 << 21) + ".png"))
    (told,) = bad_rows(tmp_path / "x.tar")
    assert "a header has 20971" in told
    assert "the limit is 1048576" in told
