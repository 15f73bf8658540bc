"""Tests how videos are read, with files that FFmpeg has written."""

from pathlib import Path

import av
import numpy as np
import pytest
from bulk_fakes import SquaresOf8, an_image, computed, rows_of

from emocap_pretrain.bulk.inputs import open_input
from emocap_pretrain.bulk.parts import VIDEO_WEIGHT
from emocap_pretrain.data.videos import Sampling, count, frames, numbered
from emocap_pretrain.errors import ConfigError, DataError

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx-vp9", ".flv": "flv"}


def a_video(path: Path, *, count: int = 40, rate: int = 10) -> Path:
    """Writes a video whose frame n is grey with the value 6 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * number % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_one_frame_for_each_second_is_read_of_every_container(tmp_path, suffix):
    found = list(frames(a_video(tmp_path / f"a{suffix}"), Sampling()))
    assert [(frame.number, round(frame.time_s, 2)) for frame in found] == [(0, 0), (10, 1), (20, 2), (30, 3)]
    assert [frame.pixels.mean() for frame in found] == pytest.approx([0, 60, 120, 180], abs=6)
    assert found[0].pixels.shape == (48, 64, 3)
    assert [frame.share for frame in found] == pytest.approx([0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("sampling", "numbers"),
    [
        (Sampling(fps=2), [0, 5, 10, 15, 20, 25, 30, 35]),
        (Sampling(fps=4), [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38]),
        (Sampling(fps=0.1), [0]),
        (Sampling(fps=1000), list(range(40))),
        (Sampling(every=15), [0, 15, 30]),
    ],
)
def test_the_sampling_chooses_the_frames(tmp_path, sampling, numbers):
    assert [frame.number for frame in frames(a_video(tmp_path / "a.mp4"), sampling)] == numbers


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": float("inf")}, {"every": 0}])
def test_a_sampling_that_chooses_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Sampling(**wrong)


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_counted_by_decoding_and_read_by_their_numbers(tmp_path, suffix):
    path = a_video(tmp_path / f"a{suffix}")
    assert count(path) == 40
    found = list(numbered(path, (39, 3, 3, 20)))
    assert [frame.number for frame in found] == [3, 20, 39]
    assert [frame.pixels.mean() for frame in found] == pytest.approx([18, 120, 234], abs=6)


def test_a_frame_after_the_end_of_a_video_is_an_error(tmp_path):
    with pytest.raises(DataError, match="the video has no frame 40"):
        list(numbered(a_video(tmp_path / "a.mp4"), (3, 40, 50)))


def test_a_frame_is_turned_upright(tmp_path):
    path = a_video(tmp_path / "a.mp4", count=2)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    # The matrix of the track, after its name: the identity becomes a rotation by 90 degrees.
    one = (1 << 16).to_bytes(4)
    identity = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4)
    rotation = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, signed=True) + bytes(16) + (1 << 30).to_bytes(4)
    place = data.rindex(identity)
    (tmp_path / "b.mp4").write_bytes(data[:place] + rotation + data[place + 36 :])
    (first,) = frames(tmp_path / "b.mp4", Sampling())
    assert first.pixels.shape == (64, 48, 3)


def test_a_video_that_was_cut_off_gives_its_frames_and_then_an_error(tmp_path):
    data = a_video(tmp_path / "a.webm").read_bytes()
    (tmp_path / "a.webm").write_bytes(data[: len(data) // 2])
    found = frames(tmp_path / "a.webm", Sampling(every=1))
    assert next(found).number == 0
    with pytest.raises(DataError, match=r"the video ends at 1\.1 s of 4\.0 s: it has been cut off"):
        list(found)


def test_a_video_with_a_damaged_packet_gives_its_other_frames_and_an_error(tmp_path):
    data = bytearray(a_video(tmp_path / "a.mov").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "a.mov").write_bytes(data)
    times: list[float] = []

    def read() -> None:
        for frame in frames(tmp_path / "a.mov", Sampling(every=1)):
            times.append(frame.time_s)  # noqa: PERF401 - the list is needed after the error

    with pytest.raises(DataError, match="packets of the video are damaged"):
        read()
    assert 20 < len(times) < 40
    assert times[-1] == pytest.approx(3.9)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.mp4", b"no video", "Invalid data"),
        ("a.mp4", b"", "Invalid data"),
        ("a.mp4", b"ffconcat version 1.0\nfile b.mp4\n", "Invalid argument"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n", "Invalid data"),
        ("missing.mp4", None, "No such file"),
        ("concat:a.mp4", None, "No such file"),
    ],
)
def test_a_file_that_is_no_video_is_an_error_and_a_playlist_is_not_followed(tmp_path, name, data, message):
    a_video(tmp_path / "b.mp4", count=2)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(frames(tmp_path / name, Sampling()))
    assert "\n" not in str(caught.value)


def test_a_file_with_sound_alone_is_an_error(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="flt", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video"):
        list(frames(tmp_path / "a.mp4", Sampling()))


def test_images_and_videos_of_a_folder_are_mixed_and_frames_have_their_time(tmp_path):
    an_image(tmp_path / "in" / "a.png")
    a_video(tmp_path / "in" / "b.mp4")
    (tmp_path / "in" / "c.avi").write_bytes(b"no video")
    an_image(tmp_path / "in" / "d.png")
    source = open_input(str(tmp_path / "in"))
    assert list(source.weights()) == [1, VIDEO_WEIGHT, VIDEO_WEIGHT, 1]
    rows = rows_of(computed(source, tmp_path / "parts", has_videos=True, sampling=Sampling(fps=0.5)))
    found = [(row["name"], row["time_s"], row["frame"], row["error"] is None) for row in rows]
    assert found == [
        ("a.png", None, None, True),
        ("b.mp4", 0.0, 0, True),
        ("b.mp4", 2.0, 20, True),
        ("c.avi", None, None, False),
        ("d.png", None, None, True),
    ]
    assert sum(picture.weight for picture in source.pictures(SquaresOf8(), Sampling())) <= 2 + 2 * VIDEO_WEIGHT


def test_a_long_video_is_not_kept_in_memory(tmp_path):
    taken = frames(a_video(tmp_path / "a.mp4", count=400), Sampling(every=1))
    first = next(taken)
    assert first.number == 0
    taken.close()  # The rest is not decoded.


def test_videos_without_pyav_are_refused_with_the_extra(monkeypatch):
    from emocap_pretrain.data import videos

    monkeypatch.setattr(videos, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'emocap-pretrain\[video\]'"):
        videos.need_av()
