"""Writes tiny copies of benchmarks with videos, for the tests of their readers and frames."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.benchmarks.layouts import ClassFolders, FileNames, FrameLabels, Table

CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9", ".mkv": "libx264", ".flv": "flv"}


def a_video_file(path: Path, count: int = 4) -> Path:
    """Writes a video whose frame n is grey with the value 4 n, from 0 again after 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(count):
            grey = np.full((32, 32, 3), 4 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def a_frame_folder(path: Path, names: list[str]) -> Path:
    """Writes the frames of a video as images. The grey value of each is its place in `names`."""
    path.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", (8, 8), (place, place, place)).save(path / name)
    return path


def a_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# Paths of which a regular expression is the pattern, by the name of the card: the person and the code of the class.
FILE_NAMES = {
    "crema_d": "VideoFlash/{person}_DFA_{code}_XX.flv",
    "enterface05": "subject {person}/{code}/sentence 1/s{person}_1.avi",
    "ravdess": "Actor_{person}/02-01-{code}-01-01-01-{person}.mp4",
}
FRAMES = ["00001", "00002", "00003"]


def build_video(card: Card, root: Path) -> None:
    """Writes a copy of a benchmark of videos, or of labels of frames, in the first layout of its card.

    Each class occurs in each split, and in each fold as far as the layout has lists of folds.
    """
    layout = card.layouts[0]
    match layout:
        case ClassFolders():
            for folder in layout.folders.values():
                for code in layout.codes:
                    for clip in range(3):
                        a_frame_folder(root / folder / code / f"clip_{clip}", [f"{each}.png" for each in FRAMES])
        case Table():
            _lists(card, layout, root)
        case FileNames():
            persons = [person for fold in layout.folds for person in fold[:2]]
            for person in persons:
                for code in layout.codes:
                    a_video_file(root / FILE_NAMES[card.name].format(person=person, code=code), 2)
        case FrameLabels():
            _labels_of_frames(layout, root)
        case _:
            raise KeyError(card.name)


def _lists(card: Card, layout: Table, root: Path) -> None:
    suffix = layout.frames.rpartition("*")[2] if layout.frames else ".png"
    codes = list(layout.codes) or ["a calm face", "a sad face", "a happy face"]
    numbers = {
        split: range(1 + 2 * place * len(codes), 1 + 2 * (place + 1) * len(codes))
        for place, split in enumerate(layout.files)
    }
    for split, file in layout.files.items():
        for fold in range(1, (card.folds or 1) + 1):
            rows = [list(map(str, layout.columns.values()))] if layout.header else []
            for number in numbers[split]:
                code = codes[number % len(codes)]
                name = f"Scene/{code}/{number:04d}" if card.name == "ferv39k" else f"{number:05d}.mp4"
                cells = [name, code] if layout.codes else [name, "calm", "-", code]
                rows.append([f"{number}" if layout.header else cells[0], *cells[1:]])
            lines = "".join(layout.separator.join(row) + "\n" for row in rows)
            a_text(root / file.replace("{fold}", str(fold)), lines, layout.encoding)
        for number in numbers[split]:
            clip = f"Scene/{codes[number % len(codes)]}/{number:04d}" if card.name == "ferv39k" else f"{number:05d}"
            folder = layout.media.replace("{file:05d}", clip).replace("{file}", clip).replace("{stem}", clip)
            if not (root / folder).exists():
                a_frame_folder(root / folder, [f"{each}{suffix}" for each in FRAMES])


def _labels_of_frames(layout: FrameLabels, root: Path) -> None:
    for place, (split, files) in enumerate(layout.files.items()):
        for video in range(12):
            # Of the 600 clips of AFEW-VA, every 25th: in each fold, one of those to train on is held out for choices.
            name = f"{split}_{video}" if layout.form == "rows" else f"{25 * video + 1:03d}"
            values = [_values(layout, video + frame) for frame in range(3)]
            if layout.form == "afew_va":
                frames = {
                    f"{number:05d}": {"landmarks": [[4.0, 4.0]] * 68, **dict(zip(layout.names, each, strict=True))}
                    for number, each in enumerate(values)
                }
                a_text(root / f"{name}/{name}.json", json.dumps({"frames": frames}))
                a_frame_folder(root / name, [f"{number:05d}.png" for number in range(3)])
                continue
            rows = "".join(",".join(map(str, each)) + "\n" for each in values)
            folder = files.replace("*Annotations", "3rd_ABAW_Annotations").replace("EXPR_*", "EXPR_Classification")
            a_text(root / folder.replace("*.txt", f"{name}.txt"), f"{layout.header}\n{rows}")
            a_frame_folder(root / "cropped_aligned" / name, [f"{each}.jpg" for each in FRAMES])
        if layout.form == "afew_va" and place == 0:
            return


def _values(layout: FrameLabels, number: int) -> list[float]:
    if layout.codes:
        return [number % len(layout.codes)]
    if layout.names[0] == "valence":
        return [number % 7 - 3, 3 - number % 5] if layout.form == "afew_va" else [number % 7 / 10, number % 5 / 10]
    return [(number + place) % 2 for place in range(len(layout.names))]
