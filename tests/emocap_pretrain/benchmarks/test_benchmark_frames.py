"""Tests which frames of a video are read, and that a long video needs no more memory than a short one."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_trees import CODECS, a_frame_folder, a_video_file

from emocap_pretrain.benchmarks import frames
from emocap_pretrain.benchmarks.frames import middles, pictures
from emocap_pretrain.benchmarks.item import CroppedImage, FrameFiles, VideoFile
from emocap_pretrain.data import videos
from emocap_pretrain.errors import DataError


def the_published_rule(count: int, segments: int) -> list[int]:
    """Computes the frames as the code of Exp-CLIP does: a segment has a real length, and its middle is rounded down."""
    if count > segments:
        length = count / segments
        return [int(length / 2 + length * segment) for segment in range(segments)]
    return [0] * segments


@pytest.mark.parametrize("segments", [1, 8, 16])
def test_the_middle_of_each_segment_is_that_of_the_published_rule(segments):
    for count in [*range(1, 400), 746, 9_999, 1_000_003]:
        assert list(middles(count, segments)) == the_published_rule(count, segments)


def test_a_video_with_no_more_frames_than_segments_is_its_first_frame():
    assert middles(16) == middles(1) == (0,) * 16
    assert middles(17) == (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16)
    assert middles(64) == tuple(range(2, 64, 4))


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_file_gives_the_middle_frames(tmp_path, suffix):
    path = a_video_file(tmp_path / f"a{suffix}", count=48)
    assert [picture.mean() for picture in pictures(VideoFile(path))] == pytest.approx(
        [4 * number for number in the_published_rule(48, 16)], abs=6
    )


def test_a_short_video_file_gives_its_first_frame_for_each_segment(tmp_path):
    found = list(pictures(VideoFile(a_video_file(tmp_path / "a.mp4", count=5)), 3))
    assert [picture.shape for picture in found] == [(32, 32, 3)] * 3
    found = list(pictures(VideoFile(a_video_file(tmp_path / "b.mp4", count=3)), 4))
    assert [round(float(picture.mean())) for picture in found] == [0] * 4


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_a_folder_gives_the_same_frames_as_a_file(tmp_path, count):
    folder = a_frame_folder(tmp_path / "clip", [f"{number:05d}.png" for number in range(count)])
    media = FrameFiles(tuple(sorted(folder.iterdir())))
    assert [int(picture.max()) for picture in pictures(media)] == the_published_rule(count, 16)


def test_the_frames_of_a_long_video_are_not_held_in_memory(tmp_path, monkeypatch):
    path = a_video_file(tmp_path / "long.avi", count=600)
    held: list[weakref.ref[np.ndarray]] = []
    converted, most = 0, 0
    upright = videos._upright  # pyright: ignore[reportPrivateUsage]

    def counted(frame):
        nonlocal converted, most
        pixels = upright(frame)
        held.append(weakref.ref(pixels))
        converted += 1
        most = max(most, sum(each() is not None for each in held))
        return pixels

    monkeypatch.setattr(videos, "_upright", counted)
    number = 0
    for number, _ in enumerate(pictures(VideoFile(path)), start=1):  # noqa: B007
        pass
    assert (number, converted) == (16, 16)
    # The new frame, and the one before it until its variable is set.
    assert most <= 2


def test_only_one_frame_of_a_folder_is_held_in_memory(tmp_path, monkeypatch):
    folder = a_frame_folder(tmp_path / "clip", [f"{number:05d}.png" for number in range(100)])
    held: list[weakref.ref[np.ndarray]] = []
    most = 0
    decode = frames.decode_image

    def counted(data):
        nonlocal most
        pixels = decode(data)
        held.append(weakref.ref(pixels))
        most = max(most, sum(each() is not None for each in held))
        return pixels

    monkeypatch.setattr(frames, "decode_image", counted)
    for _ in pictures(FrameFiles(tuple(sorted(folder.iterdir())))):
        pass
    assert len(held) == 16
    assert most <= 2


def test_a_video_without_frames_is_named(tmp_path):
    with pytest.raises(DataError, match="has no frames"):
        list(pictures(FrameFiles(())))
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.mp4: the video cannot be decoded"):
        list(pictures(VideoFile(empty)))


def test_a_video_with_sound_alone_is_named(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.mp4: the file has no video"):
        list(pictures(VideoFile(path)))


def test_a_video_that_was_cut_off_is_named(tmp_path):
    path = a_video_file(tmp_path / "a.webm", count=200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.webm: "):
        list(pictures(VideoFile(path)))


def test_a_broken_frame_of_a_folder_is_named(tmp_path):
    folder = a_frame_folder(tmp_path / "clip", ["0.png", "1.png"])
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        list(pictures(FrameFiles(tuple(sorted(folder.iterdir())))))


def _gradient(path: Path) -> Path:
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(path)
    return path


def test_a_rectangle_is_cut_out_of_its_image(tmp_path):
    (found,) = pictures(CroppedImage(_gradient(tmp_path / "a.png"), left=2, top=3, right=5, bottom=5))
    assert found[:, :, 0].tolist() == [[32, 33, 34], [42, 43, 44]]
    (found,) = pictures(CroppedImage(tmp_path / "a.png", left=-5, top=8, right=2, bottom=40))
    assert found[:, :, 0].tolist() == [[80, 81], [90, 91]]


def test_a_rectangle_out_of_its_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: the rectangle \(10, 0, 12, 4\) has no pixels .* 10 x 10"):
        list(pictures(CroppedImage(_gradient(tmp_path / "a.png"), left=10, top=0, right=12, bottom=4)))


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_an_image_is_one_picture(tmp_path, suffix):
    (found,) = pictures(_gradient(tmp_path / f"a.{suffix}"))
    assert found.shape == (10, 10, 3)
    assert found[9, 9].tolist() == [99, 99, 99]


def test_a_broken_tiff_and_a_missing_image_are_named(tmp_path):
    broken = tmp_path / "a.tiff"
    broken.write_bytes(b"II*\0" + bytes(20))
    with pytest.raises(DataError, match=r"a\.tiff: the image cannot be decoded"):
        list(pictures(broken))
    with pytest.raises(DataError, match=r"b\.png cannot be read: No such file"):
        list(pictures(tmp_path / "b.png"))


def test_grey_pixels_of_a_table_become_three_equal_channels():
    (found,) = pictures(np.array([[1, 2], [3, 4]], np.uint8))
    assert found.tolist() == [[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]]
