"""Draws pictures for the tracker: a preview of samples, confusion matrices, scores of interpolations, attention maps.

Each picture contains a line that names the run or the model and the datasets.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from emocap_shards.sample import Sample
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.inference.model import AttentionMap
from emocap_pretrain.run_folder.results import ConfusionMatrix, Curve

_LABELS = 16  # The most labels that the preview shows of a sample without a caption.
MAP_PX, MAP_COLUMNS = 170, 28  # The side of an attention map, and the letters in a line below it.
CELL_PX, FACE_PX, FONT_PX = 680, 240, 11  # The width of a sample's cell, the side of its image, the size of its text.
FORM_PX = 120  # The side of an image as it is trained; two of them have the height of `FACE_PX`.


def subject(run: str, data: Sequence[DatasetUse], *, step: int | None = None) -> str:
    """Returns the line of text that is drawn into a picture and names its run, its step and its datasets.

    For each dataset, the line contains the name and the short digest that `emocap inspect` prints. If `step` is None,
    the line contains no step.
    """
    at = "" if step is None else f", step {step}"
    return f"run {run}{at} · " + " + ".join(f"{each.name} ({each.short_digest})" for each in data)


def preview(samples: Sequence[Sample], path: Path, *, of: str, forms: Sequence[Sequence[Sample]] = ()) -> None:
    """Draws samples with all parts of their captions into the file `path`, in two columns below the title `of`.

    A sample without a caption is shown with its labels. The picture is drawn by Pillow. Matplotlib would take about one
    second to draw so much text, which would delay the start of each new run.

    Args:
        samples: The samples as they are stored.
        path: The file that is written.
        of: The title; `subject` returns it.
        forms: Four forms of each sample in which it is trained, beside the stored one. If it is empty, only the stored
            form is drawn.
    """
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_PX)
    shown = forms or [()] * len(samples)
    cells = [_cell(sample, forms_of, font) for sample, forms_of in zip(samples, shown, strict=True)]
    rows = [cells[first : first + 2] for first in range(0, len(cells), 2)]
    heights = [max(cell.height for cell in row) for row in rows]
    how = "\nLarge: as stored. Small: as trained, in the epochs 0 to 3." if forms else ""
    top = (5 if forms else 3) * FONT_PX
    width = cells[0].width
    page = Image.new("RGB", (2 * width, top + sum(heights)), "white")
    ImageDraw.Draw(page).multiline_text((FONT_PX, FONT_PX), of + how, "black", font)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (column * width, top))
        top += height
    page.save(path)


def _cell(sample: Sample, forms: Sequence[Sample], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Returns a picture of one sample: its image, its forms, and beside them its key, and its caption or labels."""
    # Two columns of forms; the gap before the text is that between the border and the image.
    beside = 2 * FORM_PX + FONT_PX if forms else 0
    words = (2 * FONT_PX + FACE_PX + beside, FONT_PX)
    text = f"{sample.key}\n\n{_caption(sample)}"
    _, _, _, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox(words, text, font)
    cell = Image.new("RGB", (CELL_PX + beside, int(max(bottom, FONT_PX + FACE_PX)) + FONT_PX), "white")
    cell.paste(Image.fromarray(sample.image).resize((FACE_PX, FACE_PX)), (FONT_PX, FONT_PX))
    for place, form in enumerate(forms):
        left, top = 2 * FONT_PX + FACE_PX + place % 2 * FORM_PX, FONT_PX + place // 2 * FORM_PX
        # A mirrored image is a view of reversed columns, which Pillow does not read. A white line divides the forms.
        small = Image.fromarray(np.ascontiguousarray(form.image)).resize((FORM_PX - 2, FORM_PX - 2))
        cell.paste(small, (left, top))
    ImageDraw.Draw(cell).multiline_text(words, text, "black", font)
    return cell


def _caption(sample: Sample) -> str:
    if sample.caption is None:
        labels = [f"{name}: {value}" for name, value in sample.labels.items()]
        return "\n".join(textwrap.shorten(each, 62, placeholder="…") for each in labels[:_LABELS])
    parts = [f"Global: {sample.caption.global_}", *(f"· {text}" for text in sample.caption.local)]
    parts.append(f"Summary: {sample.caption.summary}")
    return "\n".join(textwrap.fill(part, 62, subsequent_indent="  ") for part in parts)


def attention_maps(faces: Sequence[tuple[str, Sequence[tuple[str, AttentionMap]]]], path: Path, *, of: str) -> None:
    """Draws faces, each beside the attention maps of sentences, into the file `path` below the title `of`.

    Each face is a row: first the image as the tower has read it, then one picture for each sentence, in which bright
    colours are large weights. Each map has its own scale of colours, so the largest weight is printed below it.

    Args:
        faces: The name of each face, and its sentences with their maps. Every face has at least one map.
        path: The file that is written.
        of: The title, which names the model and the data; `subject` returns such a line.
    """
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_PX)
    rows = [
        [_labelled(maps[0][1].image, textwrap.fill(name, MAP_COLUMNS), font)]
        + [_labelled(_overlay(found), _map_text(sentence, found), font) for sentence, found in maps]
        for name, maps in faces
    ]
    head = f"{of}\nAttention maps: bright colours are large weights; each map has its own scale of colours."
    top = 4 * FONT_PX
    width = max(sum(cell.width for cell in row) for row in rows)
    page = Image.new(
        "RGB", (max(width, 60 * FONT_PX), top + sum(max(cell.height for cell in row) for row in rows)), "white"
    )
    ImageDraw.Draw(page).multiline_text((FONT_PX, FONT_PX // 2), head, "black", font)
    for row in rows:
        for column, cell in enumerate(row):
            page.paste(cell, (column * cell.width, top))
        top += max(cell.height for cell in row)
    page.save(path)


def _overlay(found: AttentionMap) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the image blended with the colours of its attention map, which is scaled to the size of the image."""
    colours = mpl.colormaps["inferno"](found.resized())[..., :3] * 255
    return np.rint(0.45 * found.image + 0.55 * colours).astype(np.uint8)


def _map_text(sentence: str, found: AttentionMap) -> str:
    shares = f"largest weight {found.weights.max():.1%} (uniform {1 / found.weights.size:.1%})"
    return textwrap.fill(sentence, MAP_COLUMNS) + "\n" + textwrap.fill(shares, MAP_COLUMNS)


def _labelled(image: UInt8[np.ndarray, "height width 3"], text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Returns a picture with the image, resized to a square of `MAP_PX` pixels, and the text below it."""
    words = FONT_PX, FONT_PX // 2 + MAP_PX
    _, _, _, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox(words, text, font)
    cell = Image.new("RGB", (MAP_PX + 2 * FONT_PX, int(bottom) + FONT_PX), "white")
    cell.paste(Image.fromarray(image).resize((MAP_PX, MAP_PX), Image.Resampling.BILINEAR), (FONT_PX, 0))
    ImageDraw.Draw(cell).multiline_text(words, text, "black", font)
    return cell


def confusion(matrix: ConfusionMatrix, path: Path, *, of: str) -> None:
    """Draws a confusion matrix into the file `path`.

    Each field shows a count, and its colour shows the count divided by the number of samples of the true class.

    Args:
        matrix: The counts.
        path: The file that is written.
        of: The line that is drawn below the title; `subject` returns it.
    """
    # A run draws this at its end: its start does not wait for the import.
    from matplotlib.figure import Figure

    size = max(5.0, 0.8 * len(matrix.classes) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    counts = np.array(matrix.counts)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(share, vmin=0, vmax=1, cmap=mpl.colormaps["Blues"])
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    # `parse_math=False`: names come from datasets and users, and a `$` in them must not begin a formula.
    ticks = range(len(matrix.classes))
    axes.set_xticks(ticks, matrix.classes, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(ticks, matrix.classes, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{matrix.title}\n{of}", fontsize=10, parse_math=False)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=110)


def interpolation(curves: Sequence[Curve], path: Path, *, of: str) -> None:
    """Draws the scores of interpolations between the weights of the start and the trained ones into the file `path`.

    Each task has a plot of its own, because the scores of tasks have different scales. A dashed line shows the score
    that needs no model, if there is one.

    Args:
        curves: The main score of each task; there is at least one.
        path: The file that is written.
        of: The line that is drawn below the title; `subject` returns it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 1 + 3 * len(curves)), layout="constrained")
    figure.suptitle(f"Interpolation between start and training\n{of}", fontsize=10, parse_math=False)
    for axes, curve in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves, strict=True):
        shares, scores = zip(*curve.points, strict=True)
        axes.plot(shares, [each.value for each in scores], marker="o")
        for share, score in curve.points:
            label = f"{score.value:.1%}" if score.is_share else f"{score.value:.4g}"
            axes.annotate(
                label, (share, score.value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9
            )
        if baseline := scores[-1].baseline:
            axes.axhline(baseline.value, linestyle="--", color="grey", label=baseline.name)
            axes.legend(fontsize=9)
        axes.margins(y=0.2)
        axes.set(xlabel="share of the trained weights (0 is the start, 1 the end of training)")
        axes.set_ylabel(curve.title, parse_math=False)
    figure.savefig(path, dpi=110)
