"""Tests lists of videos, each of which is a folder of frames."""

import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.sources.frames import FrameSource
from emocap_shards.writing.sources.text_tables import TextTableConfig
from pack_cases import bad_rows, samples_of
from shard_cases import encode

LABELLED = TableColumns(labels=("emotion",))
LIST = TextTableConfig(names=("image", "emotion"), delimiter="space")


@pytest.fixture
def videos(tmp_path):
    """Writes a video of 12 frames and one of 2, and returns the list that names them."""
    for name, count in (("a", 12), ("b", 2)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "in" / name / f"frame{number}.png").write_bytes(encode(number))
        (tmp_path / "in" / name / "notes.txt").write_text("x")
    (tmp_path / "in" / "test.txt").write_text("a 0\nb 1\n")
    return tmp_path / "in" / "test.txt"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["a-frame6", "b-frame1"]),
        (3, ["a-frame2", "a-frame6", "a-frame10", "b-frame0", "b-frame1"]),
    ],
)
def test_frames_at_equal_distances_are_taken_in_the_order_of_their_numbers(videos, tmp_path, count, expected):
    source = FrameSource(open_source(videos, LABELLED, text_table=LIST), count)
    pack(source, tmp_path / "out", PackConfig())
    found = samples_of(tmp_path / "out")
    assert [sample.key for sample in found] == expected
    for sample in found:
        video, frame = sample.key.split("-frame")
        assert sample.image == encode(int(frame))
        assert load_annotation(sample.annotation) == ((), {"emotion": float(video == "b"), "clip": video})


def test_a_folder_without_images_is_a_bad_row_and_other_rows_do_not_change(videos, tmp_path):
    (videos.parent / "empty").mkdir()
    (videos.parent / "one.png").write_bytes(encode(1))
    videos.write_text("empty 0\none.png 1\nmissing.png 1\n")
    source = FrameSource(open_source(videos, LABELLED, text_table=LIST), 2)
    done = pack(source, tmp_path / "out", PackConfig(skip_bad=2))
    assert [str(bad).split(": ", 1)[1] for bad in done.skipped] == [
        "empty: the folder has no images",
        "missing.png cannot be read (No such file or directory)",
    ]
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["one"]


def test_without_the_option_the_line_names_it(videos):
    told = bad_rows(videos, LABELLED, text_table=LIST)
    assert "a is a folder and not an image; if it holds the frames of a video, --frames takes some of them" in told[0]


def test_no_frames_are_refused(videos):
    with pytest.raises(RecordError, match="at least one frame"):
        FrameSource(open_source(videos, LABELLED, text_table=LIST), 0)
