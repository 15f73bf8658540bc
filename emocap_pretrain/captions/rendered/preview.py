"""Helps to look at the faces: a contact sheet with labels, and the rate of rendering."""

import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emocap_pretrain.captions.rendered.dataset import face, record
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.render import render

_LABEL_PX = 30


def sheet(count: int, *, seed: int, pixels: int) -> Image.Image:
    """Returns the first `count` faces of `seed` in rows of seven, so that each row shows every emotion."""
    columns = min(count, 7)
    rows = -(-count // columns)
    page = Image.new("RGB", (columns * pixels, rows * (pixels + _LABEL_PX)), "white")
    for index in range(count):
        row, column = divmod(index, columns)
        cell = _cell(face(seed, index), pixels)
        page.paste(cell, (column * pixels, row * (pixels + _LABEL_PX)))
    return page


def _cell(shown: Face, pixels: int) -> Image.Image:
    cell = Image.new("RGB", (pixels, pixels + _LABEL_PX), "white")
    cell.paste(Image.fromarray(render(shown, pixels)))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(9)
    units = " ".join(str(unit) for unit in shown.actions)
    draw.text((2, pixels + 1), f"{shown.emotion} {shown.intensity:.2f}", "black", font)
    draw.text((2, pixels + 11), f"V {shown.valence:+.2f} A {shown.arousal:+.2f}", "dimgray", font)
    draw.text((2, pixels + 20), units, "dimgray", font)
    return cell


def save_sheet(path: Path, *, count: int, seed: int, pixels: int) -> None:
    sheet(count, seed=seed, pixels=pixels).save(path)


@dataclass(frozen=True, slots=True)
class Rate:
    """Faces per second on one core: only drawn, and as complete records with JPEG and caption."""

    drawn: float
    recorded: float


def rate(count: int, *, seed: int, pixels: int) -> Rate:
    """Measures the time for `count` faces, after one more face that fills the caches."""
    record(seed, count, pixels=pixels)
    faces = [face(seed, index) for index in range(count)]
    start = time.perf_counter()
    for shown in faces:
        render(shown, pixels)
    middle = time.perf_counter()
    for index in range(count):
        record(seed, index, pixels=pixels)
    return Rate(count / (middle - start), count / (time.perf_counter() - middle))
