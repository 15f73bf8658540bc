"""Draws synthetic faces or measures how fast they are made: `python -m emocap_pretrain.captions.rendered`."""

import argparse
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emocap_pretrain.captions.rendered.dataset import record, sample_face
from emocap_pretrain.captions.rendered.face import Face
from emocap_pretrain.captions.rendered.render import render

_LABEL_PX = 30


def sheet(count: int, *, seed: int, pixels: int) -> Image.Image:
    """Returns one image of the first `count` faces of `seed`, in rows of seven. A full row shows each emotion once."""
    columns = min(count, 7)
    rows = -(-count // columns)
    page = Image.new("RGB", (columns * pixels, rows * (pixels + _LABEL_PX)), "white")
    for index in range(count):
        row, column = divmod(index, columns)
        cell = _cell(sample_face(seed, index), pixels)
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


def rates(count: int, *, seed: int, pixels: int) -> tuple[float, float]:
    """Measures how many faces per second one core renders, and how many complete records per second it makes.

    A complete record is a rendered face as a JPEG image with its caption. One further record is made before the
    measurement, so that the caches are filled.
    """
    record(seed, count, pixels=pixels)
    faces = [sample_face(seed, index) for index in range(count)]
    start = time.perf_counter()
    for shown in faces:
        render(shown, pixels)
    middle = time.perf_counter()
    for index in range(count):
        record(seed, index, pixels=pixels)
    return count / (middle - start), count / (time.perf_counter() - middle)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with `arguments`, or with the arguments of the process if None."""
    parser = argparse.ArgumentParser(prog="python -m emocap_pretrain.captions.rendered", description=__doc__)
    parser.add_argument("--preview", type=Path, metavar="PNG", help="write a sheet of faces with labels")
    parser.add_argument("--rate", action="store_true", help="print faces per second on one core")
    parser.add_argument("--count", type=int, default=49, help="number of faces")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faces")
    parser.add_argument("--pixels", type=int, default=112, help="side of each image in pixels")
    chosen = parser.parse_args(arguments)
    if chosen.preview is None and not chosen.rate:
        parser.error("there is nothing to do; give --preview PNG or --rate.")
    if chosen.preview is not None:
        sheet(chosen.count, seed=chosen.seed, pixels=chosen.pixels).save(chosen.preview)
    if chosen.rate:
        rendered, recorded = rates(chosen.count, seed=chosen.seed, pixels=chosen.pixels)
        sys.stdout.write(f"rendered {rendered:.0f} faces/s, complete records {recorded:.0f} faces/s\n")


if __name__ == "__main__":
    main()
