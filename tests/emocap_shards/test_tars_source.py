import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.manifest import read_manifest
from emocap_shards.store import open_store
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.class_folders import ClassFolderSource
from emocap_shards.writing.sources.columns import TableColumns
from pack_cases import bad_rows, folder_of, packed, samples_of
from shard_cases import encode, tar_of

BOM_TEXT = "\ufeffAnother face.\n".encode()
CAPTION = json.dumps({"caption": {"global": "Glad."}, "labels": {"emotion": "joy"}}).encode()


def foreign(path, numbers):
    """Writes a tar as other tools do: each sample has an image, its caption as text, and its class as a number."""
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
    packed(str(tmp_path / "a-{0..1}.tar"), tmp_path / "out", TableColumns(labels=("cls",)))
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples] == [f"set_{number:03d}" for number in range(5)]
    assert [sample.image for sample in samples] == [encode(number, kind="JPEG") for number in range(5)]
    (caption,), labels = load_annotation(samples[3].annotation)
    assert (caption.global_, labels) == ("Face 3.", {"cls": "1"})


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


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_tars_of_other_compressions_are_read(tmp_path, kind):
    tar_of(tmp_path / f"x.tar.{kind}", [("0.png", encode(0)), ("0.json", CAPTION)], mode=f"w:{kind}")
    assert packed(tmp_path / f"x.tar.{kind}", tmp_path / "out").manifest.samples == 1


def img2dataset(folder, numbers):
    """Writes a tar as img2dataset does: the JSON has a caption as text, and fields that are not labels."""
    members = []
    for number in numbers:
        fields = {"caption": f"Face {number}.", "url": "http://e.invalid/0", "status": "success", "width": 8}
        members += [
            (f"{number:09d}.jpg", encode(number, kind="JPEG")),
            (f"{number:09d}.json", json.dumps(fields).encode()),
            (f"{number:09d}.txt", f"Face {number}.".encode()),
        ]
    return tar_of(folder / f"{numbers[0]:05d}.tar", members)


def test_a_folder_that_img2dataset_has_written_is_packed_by_its_name(tmp_path):
    folder = tmp_path / "out [1]"
    folder.mkdir()
    img2dataset(folder, range(3))
    img2dataset(folder, range(3, 5))
    (folder / "00000_stats.json").write_text("{}")
    (folder / "00000.parquet").write_bytes(b"")
    packed(folder, tmp_path / "packed")
    captions = [load_annotation(sample.annotation)[0][0].global_ for sample in samples_of(tmp_path / "packed")]
    assert captions == [f"Face {number}." for number in range(5)]


def test_a_caption_as_text_in_the_json_is_taken_where_nothing_else_is(tmp_path):
    members = [("a.png", encode(0)), ("a.json", b'{"caption": "A face."}'), ("b.png", encode(1)), ("b.txt", BOM_TEXT)]
    packed(tar_of(tmp_path / "X.TAR", members), tmp_path / "out")
    captions = [load_annotation(sample.annotation)[0][0].global_ for sample in samples_of(tmp_path / "out")]
    assert captions == ["A face.", "Another face."]


def test_a_tar_beside_folders_of_images_is_not_what_is_packed(tmp_path):
    img2dataset(tmp_path, range(2))
    (tmp_path / "joy").mkdir()
    (tmp_path / "joy/a.bmp").write_bytes(encode(0, kind="BMP"))
    assert isinstance(open_source(tmp_path, TableColumns(labels=("emotion",))), ClassFolderSource)


def test_tars_of_several_kinds_in_one_folder_have_to_be_named(tmp_path):
    img2dataset(tmp_path, range(2))
    tar_of(tmp_path / "x.tar.gz", [("0.png", encode(0))], mode="w:gz")
    with pytest.raises(RecordError, match=r"holds tars of several kinds \(\.tar, \.tar\.gz\); name one"):
        open_source(tmp_path)


def test_what_macos_adds_and_members_that_nothing_asks_for_are_counted(tmp_path):
    members = [
        ("a.png", encode(0)),
        ("a.json", CAPTION),
        ("a.cls", b"1"),
        ("._a.png", b"x"),
        ("__MACOSX/._b.png", b"x"),
        ("folder/.DS_Store", b"x"),
    ]
    done = packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out")
    assert done.skipped == ()
    assert dict(done.left_out) == {"._* of macOS": 2, ".cls": 1, "hidden": 1}


@pytest.mark.parametrize("name", ["__key__", "__URL__"])
def test_a_member_with_a_name_that_webdataset_uses_itself_is_left_out(tmp_path, name):
    members = [("a.png", encode(0)), (f"a.{name}", b"x"), ("a.json", CAPTION)]
    source = open_source(tar_of(tmp_path / "x.tar", members))
    (row,) = source.rows()
    assert row.image == encode(0)
    assert source.left_out == {f".{name}": 1}


def test_a_strangers_extensions_are_counted_by_name_up_to_a_bound(tmp_path):
    members = [("a.png", encode(0)), ("a.json", CAPTION), *((f"a.x{number}", b"") for number in range(1200))]
    left_out = packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out").left_out
    assert len(left_out) == 1001
    assert left_out["of other kinds"] == 200


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "a.csv.zst",
            r"has a compression that is not supported; unpack it \(`zstd -d a\.csv\.zst`\), and pack the result",
        ),
        ("a.zip", r"unpack it \(`unzip a\.zip`"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RecordError, match=told):
        open_source(tmp_path / name)


@pytest.mark.parametrize("members", [["s.input.jpg", "s.out.txt"], ["f.0.jpg", "f.1.jpg"]])
def test_other_dots_in_the_names_of_members_are_explained(tmp_path, members):
    (told,) = bad_rows(str(tar_of(tmp_path / "x.tar", [(name, encode(0)) for name in members])))
    assert "what follows the first dot of a name is its extension: other dots split samples" in told


def test_our_own_shards_need_no_manifest(tmp_path):
    first = packed(folder_of(tmp_path / "in", 5), tmp_path / "out", samples=2).manifest
    assert packed(str(tmp_path / "out" / "shard-*.tar"), tmp_path / "again", samples=2).manifest == first


def test_fields_of_the_json_member_are_columns(tmp_path):
    row = {"text": ["One.", "Two."], "mood": "joy", "id": "k7"}
    tar_of(tmp_path / "x.tar", [("a.json", json.dumps(row).encode()), ("a.webp", encode(0, kind="WEBP"))])
    packed(tmp_path / "x.tar", tmp_path / "out", TableColumns(global_="text", labels=("mood",), key="id"))
    (sample,) = samples_of(tmp_path / "out")
    captions, labels = load_annotation(sample.annotation)
    assert (sample.key, [caption.global_ for caption in captions], labels) == ("k7", ["One.", "Two."], {"mood": "joy"})


def test_an_image_member_of_a_longer_name_is_found_by_it(tmp_path):
    members = [("a.left.jpg", encode(0, kind="JPEG")), ("a.right.jpg", encode(1, kind="JPEG")), ("a.txt", b"Glad.")]
    packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out", TableColumns(image="right.jpg"))
    assert samples_of(tmp_path / "out")[0].image == encode(1, kind="JPEG")


BAD_GROUPS = {
    "no image": ([("a.txt", b"Glad.")], "it has no image, but txt"),
    "json that is a list": ([("a.png", encode(0)), ("a.json", b"[1]")], '"json" member is list, not a JSON object'),
    "json that is none": ([("a.png", encode(0)), ("a.json", b"{")], '"json" member is not JSON'),
    "text that is none": ([("a.png", encode(0)), ("a.txt", b"\xff")], "'txt' is not UTF-8"),
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


def test_keys_that_differ_in_case_alone_are_two_samples(tmp_path):
    members = [("A.png", encode(0)), ("A.json", CAPTION), ("a.PNG", encode(1)), ("a.json", CAPTION)]
    packed(tar_of(tmp_path / "x.tar", members), tmp_path / "out")
    assert [(sample.key, sample.image) for sample in samples_of(tmp_path / "out")] == [
        ("A", encode(0)),
        ("a", encode(1)),
    ]


def test_links_in_a_tar_are_reported_and_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (told,) = bad_rows(tmp_path / "x.tar")
    assert "x.tar: a.png: it is not a plain file, but a link or a device" in told


def test_a_key_that_is_in_two_tars_is_told_and_numbers_tell_them_apart(tmp_path):
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
        assert "x.tar: the tar cannot be read to its end, and the samples that follow are lost" in told, name


def test_a_tar_that_is_none_or_not_there_is_told(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>" * 1000)
    assert "cannot be read" in bad_rows(tmp_path / "x.tar")[0]
    with pytest.raises(RecordError, match=r"y\.tar does not exist; correct its name"):
        bad_rows(tmp_path / "y.tar")
    foreign(tmp_path / "a-0.tar", range(2))
    with pytest.raises(RecordError, match=r"a-1\.tar does not exist"):
        bad_rows(tmp_path / "a-{0..1}.tar")
    with pytest.raises(RecordError, match="matches no file"):
        list(open_source(tmp_path / "z-*.tar").rows())


def test_members_that_nobody_asked_for_are_not_read(tmp_path):
    """Each of the ten members is below the limit of a sample, but together they exceed it."""
    bulk = [(f"a.bulk{number}", bytes(1500)) for number in range(10)]
    members = [("a.png", encode(0)), ("a.json", CAPTION), *bulk]
    source = replace(open_source(tar_of(tmp_path / "x.tar", members)), most_bytes=2000)
    assert [row.image for row in source.rows()] == [encode(0)]


def test_a_sample_whose_members_are_too_large_together_is_a_bad_row(tmp_path):
    members = [
        ("a.png", encode(0)),
        ("a.txt", b"x" * 1000),
        ("a.json", b" " * 1000),
        ("b.png", encode(1)),
        ("b.txt", b"B"),
    ]
    source = replace(open_source(tar_of(tmp_path / "x.tar", members)), most_bytes=2000)
    told = [str(row) for row in source.rows()]
    assert told[0].endswith("x.tar: a: its members together have more than 2000 bytes; make them smaller")


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_header_of_megabytes_is_refused(tmp_path, format_):
    with tarfile.open(tmp_path / "x.tar", "w", format=format_) as tar:
        tar.addfile(tarfile.TarInfo("n" * (1 << 21) + ".png"))
    (told,) = bad_rows(tmp_path / "x.tar")
    assert "a header has 20971" in told
    assert "the limit is 1048576" in told


def test_a_tar_of_zstandard_is_read_from_front_to_back_in_any_number_of_frames(tmp_path):
    data = foreign(tmp_path / "a.tar", range(40)).read_bytes()
    packed(str(tmp_path / "a.tar"), tmp_path / "plain")
    half = len(data) // 2
    frames = pa.compress(data[:half], "zstd", asbytes=True) + pa.compress(data[half:], "zstd", asbytes=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar.zst").write_bytes(frames)
    assert packed(tmp_path / "in/a.tar.zst", tmp_path / "out").manifest == read_manifest(tmp_path / "plain")
    assert packed(tmp_path / "in", tmp_path / "folder").manifest == read_manifest(tmp_path / "plain")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[::-1]])
def test_a_damaged_tar_of_zstandard_is_a_bad_row(tmp_path, damage):
    data = pa.compress(foreign(tmp_path / "a.tar", range(40)).read_bytes(), "zstd", asbytes=True)
    (tmp_path / "a.tar.zst").write_bytes(damage(data))
    *_, told = bad_rows(tmp_path / "a.tar.zst")
    assert "the tar cannot be read to its end" in told


def test_a_tar_of_class_folders_says_to_unpack_it(tmp_path):
    tar_of(tmp_path / "x.tar", [("joy/0.png", encode(0)), ("fear/0.png", encode(1))])
    found = bad_rows(tmp_path / "x.tar", TableColumns(labels=("emotion",)))
    cure = "if the folders in the tar are classes, unpack it, and pack its folder with --label"
    assert [cure in bad for bad in found] == [True, True]
