"""Reads the frames of videos with PyAV, one at a time, so that a long video needs no more memory than a short one.

This is the only module that imports PyAV (`av`). PyAV itself has a BSD licence, but its wheels contain FFmpeg with
libraries under the GPL. Therefore it is not a dependency of the package, but the extra `video`.

A video may come from a stranger. FFmpeg opens only the file itself, as one of four containers: a playlist that names
other files or URLs is refused.
"""

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from emocap_shards.decode import MAX_PIXELS
from jaxtyping import UInt8

from emocap_pretrain.errors import ConfigError, DataError

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv"})
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,webm,avi,flv"}
_MISSING_S = 1.0  # A video that ends this much earlier than its header says counts as cut off.


@dataclass(frozen=True, slots=True)
class Sampling:
    """Says which frames of a video are read.

    Attributes:
        fps: Frames per second. For each multiple of 1/fps seconds after the first frame, the first frame at or after
            this time is read. If the video has fewer frames per second, each of its frames is read once.
        every: If it is not None, the frames whose number is a multiple of `every` are read, and `fps` has no effect.
    """

    fps: float = 1.0
    every: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise ConfigError(f"fps={self.fps} must be above 0.")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"every={self.every} must be at least 1.")


class Frame(NamedTuple):
    """Holds a frame of a video: its number, counted from 0, its time after the first frame, and its pixels.

    `share` is the share of the video that has been decoded with this frame, in [0, 1].
    """

    number: int
    time_s: float
    pixels: UInt8[np.ndarray, "height width 3"]
    share: float


def need_av() -> None:
    """Checks that PyAV is installed.

    Raises:
        ConfigError: If it is not installed.
    """
    if find_spec("av") is None:
        raise ConfigError("the input has videos, which need PyAV: pip install 'emocap-pretrain[video]'.")


def frames(path: str | Path, sampling: Sampling) -> Iterator[Frame]:
    """Yields the chosen frames of a video in the order of their times, upright and in RGB.

    A packet that cannot be decoded is left out, and the frames after it are yielded.

    Raises:
        DataError: If the file is not a video that can be read. If only a part of it is damaged or missing, the error is
            raised after the last frame that can be decoded.
    """
    with _opened(path) as reading:
        yield from reading.frames(sampling)


def count(path: str | Path) -> int:
    """Returns how many frames of a video can be decoded, which is the number that `numbered` counts.

    The number in the header is not used: it is absent in some containers and wrong in others. Every frame is decoded,
    but only one at a time is in memory.

    Raises:
        DataError: If the file is not a video that can be read, or if a part of it is damaged or missing.
    """
    with _opened(path) as reading:
        return reading.count()


def numbered(path: str | Path, numbers: Collection[int]) -> Iterator[Frame]:
    """Yields the frames with these numbers, counted from 0, in the order of time. The frames after them are not read.

    Raises:
        DataError: If the file is not a video that can be read, or ends before the last of these frames.
    """
    with _opened(path) as reading:
        yield from reading.numbered(frozenset(numbers))


@contextmanager
def _opened(path: str | Path) -> "Generator[_Reading]":
    import av
    from av.error import FFmpegError

    try:
        # With this prefix FFmpeg treats every name as that of a file, also a name that looks like a URL.
        with av.open(f"file:{Path(path).absolute()}", container_options=_OPTIONS) as container:
            yield _Reading(container)
    except (FFmpegError, OSError, ValueError) as error:
        raise DataError(f"the video cannot be decoded ({getattr(error, 'strerror', None) or error})") from error


@dataclass(slots=True)
class _Reading:
    container: Any
    damaged: int = 0
    begins_s: float = 0.0
    ends_s: float = 0.0

    def frames(self, sampling: Sampling) -> Iterator[Frame]:
        stream = self._stream()
        duration, tick, number = self._duration_s(stream), 0, -1
        for number, frame in enumerate(self._decoded(stream)):
            time_s = self._time_s(frame, number, stream)
            is_chosen = time_s * sampling.fps >= tick - 1e-6 if sampling.every is None else number % sampling.every == 0
            if is_chosen:
                tick = int(time_s * sampling.fps + 1e-6) + 1
                yield self._frame(frame, number, time_s, duration)
        self._check_end(number + 1, duration)

    def count(self) -> int:
        stream = self._stream()
        number = -1
        for number, frame in enumerate(self._decoded(stream)):
            self._time_s(frame, number, stream)
        self._check_end(number + 1, self._duration_s(stream))
        return number + 1

    def numbered(self, numbers: frozenset[int]) -> Iterator[Frame]:
        stream = self._stream()
        duration, missing = self._duration_s(stream), set(numbers)
        for number, frame in enumerate(self._decoded(stream)):
            time_s = self._time_s(frame, number, stream)
            if number in missing:
                missing.discard(number)
                yield self._frame(frame, number, time_s, duration)
            if not missing:
                return
        raise DataError(f"the video has no frame {min(missing)}")

    def _stream(self) -> Any:
        if not self.container.streams.video:
            raise DataError("the file has no video, only sound or other data")
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise DataError(f"the video is {context.width} x {context.height}, more than {MAX_PIXELS} pixels")
        return stream

    def _frame(self, frame: Any, number: int, time_s: float, duration: float | None) -> Frame:
        return Frame(number, time_s, _upright(frame), min(1.0, time_s / duration) if duration else 0.0)

    def _decoded(self, stream: Any) -> Iterator[Any]:
        from av.error import InvalidDataError

        for packet in self.container.demux(stream):
            try:
                yield from packet.decode()
            except InvalidDataError:
                self.damaged += 1

    def _time_s(self, frame: Any, number: int, stream: Any) -> float:
        """Returns the time of a frame after the first one. Without time stamps, a constant frame rate is assumed."""
        time_s = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
        if number == 0:
            self.begins_s = time_s
        self.ends_s = time_s - self.begins_s
        return self.ends_s

    def _duration_s(self, stream: Any) -> float | None:
        """Returns the duration in seconds according to the header; None if it is not known.

        The duration of the container is used only if the video is its only stream, because a sound track may be longer.
        """
        if stream.duration:
            return float(stream.duration * stream.time_base)
        is_alone = len(self.container.streams) == 1 and self.container.duration
        return self.container.duration / 1e6 if is_alone else None

    def _check_end(self, decoded: int, duration: float | None) -> None:
        if decoded == 0:
            raise DataError("no frame of the video can be decoded")
        if duration is not None and self.ends_s < duration - max(_MISSING_S, 2 * duration / decoded):
            raise DataError(f"the video ends at {self.ends_s:.1f} s of {duration:.1f} s: it has been cut off")
        if self.damaged:
            raise DataError(f"{self.damaged} packets of the video are damaged, so some frames are missing or wrong")


def _upright(frame: Any) -> UInt8[np.ndarray, "height width 3"]:
    pixels = frame.to_ndarray(format="rgb24")
    # Phones store how a frame must be turned, in degrees anticlockwise.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))) if frame.rotation else pixels
