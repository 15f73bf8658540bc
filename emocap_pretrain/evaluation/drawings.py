"""Computes the coordinates of the drawings on the HTML page of results. The template draws them as SVG.

All coordinates are numbers that this module has computed, so no text of a file becomes a part of a drawing's geometry.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emocap_pretrain.run_folder.results import ConfusionMatrix, Series

RADIUS = 150.0
_CELL, _SMALL_CELL, _MOST_COUNTS = 46.0, 18.0, 14
_PLOT_WIDTH, _PLOT_HEIGHT = 340.0, 180.0


@dataclass(frozen=True, slots=True)
class Point:
    """A position in a drawing, with the text of its tooltip."""

    x: float
    y: float
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Spoke:
    """An axis of a radar chart: its end, and the position, alignment and text of its label."""

    end: Point
    label: Point
    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class Web:
    """The line of one model in a radar chart: its points, and the pairs of points on neighbouring axes to connect.

    There is no point on an axis on which the model has no score.
    """

    name: str
    points: tuple[Point, ...]
    lines: tuple[tuple[Point, Point], ...]


@dataclass(frozen=True, slots=True)
class Radar:
    """A radar chart around the origin, with rings at equal distances. `rings` has the radius and the label of each."""

    spokes: tuple[Spoke, ...]
    rings: tuple[tuple[float, str], ...]
    webs: tuple[Web, ...]


def radar(axes: Sequence[str], models: Mapping[str, Sequence[float | None]]) -> Radar:
    """Returns a radar chart of scores in per cent.

    The outer ring is the highest score, rounded up to a multiple of 20, and at least 20. It is 100 if there is no
    score. A score below 0 is drawn at the centre.

    Args:
        axes: The names of the axes, at least three.
        models: For each model, by its name, the score on each axis in per cent; None where it has no score.
    """
    highest = max((each for scores in models.values() for each in scores if each is not None), default=100.0)
    top = max(20.0, math.ceil(highest / 20) * 20)

    def at(place: int, share: float, tip: str = "") -> Point:
        angle = 2 * math.pi * place / len(axes) - math.pi / 2
        return Point(round(RADIUS * share * math.cos(angle), 1), round(RADIUS * share * math.sin(angle), 1), tip)

    def spoke(place: int, text: str) -> Spoke:
        label = at(place, 1.09)
        anchor = "middle" if abs(label.x) < 12 else ("start" if label.x > 0 else "end")
        return Spoke(at(place, 1), label, anchor, text)

    def web(name: str, scores: Sequence[float | None]) -> Web:
        points = [
            None if score is None else at(place, max(0.0, score) / top, f"{name}, {axes[place]}: {score:.1f}")
            for place, score in enumerate(scores)
        ]
        pairs = zip(points, [*points[1:], points[0]], strict=True)
        lines = tuple((one, other) for one, other in pairs if one and other)
        return Web(name, tuple(point for point in points if point), lines)

    return Radar(
        spokes=tuple(spoke(place, text) for place, text in enumerate(axes)),
        rings=tuple((RADIUS * part / 4, f"{top * part / 4:g}") for part in range(1, 5)),
        webs=tuple(web(name, scores) for name, scores in models.items()),
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """A field of a confusion matrix. `share` is the count divided by the number of samples of the true class."""

    x: float
    y: float
    share: float
    text: str
    tip: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix with the true classes in rows.

    `labels` has the name of each class, and the position of the middle of its row, which is also that of its column.
    """

    size: float
    cell: float
    cells: tuple[Cell, ...]
    labels: tuple[tuple[str, float], ...]
    title: str


def matrix(found: ConfusionMatrix) -> Matrix:
    """Returns the drawing of a confusion matrix. With more than `_MOST_COUNTS` classes, its fields have no numbers."""
    count = len(found.classes)
    cell = _CELL if count <= _MOST_COUNTS else _SMALL_CELL
    cells: list[Cell] = []
    for row, (true, counts) in enumerate(zip(found.classes, found.counts, strict=True)):
        total = max(1, sum(counts))
        for column, (guess, number) in enumerate(zip(found.classes, counts, strict=True)):
            share = number / total
            text = f"{100 * share:.0f}" if count <= _MOST_COUNTS and number else ""
            tip = f"{true} as {guess}: {number:,} of {sum(counts):,}"
            cells.append(Cell(column * cell, row * cell, round(share, 3), text, tip))
    labels = tuple((name, (place + 0.5) * cell) for place, name in enumerate(found.classes))
    return Matrix(count * cell, cell, tuple(cells), labels, found.title)


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of one model.

    Attributes:
        points: The points with their tooltips.
        path: The same points as text for an SVG polyline.
        bars: The x of each error bar, and the y of its two ends.
    """

    points: tuple[Point, ...]
    path: str
    bars: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of several models over the same values of x, such as numbers of examples, drawn at equal distances.

    Attributes:
        title: The title of the drawing.
        x_title: What x counts.
        width: Width of the drawing.
        height: Height of the drawing.
        lines: The curve of each model; None for a model that has none.
        ticks: The position and the text of each value of x.
        levels: The y and the text of each horizontal line.
        chance: The y of the line at the level of chance; None if this level is unknown.
    """

    title: str
    x_title: str
    width: float
    height: float
    lines: tuple[Line | None, ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    chance: float | None


def curves(models: Sequence[Series | None]) -> Curves:
    """Returns the drawing of one series of several models.

    The titles and the level of chance are those of the first model that has the series.

    Args:
        models: The series of each model; None for a model that does not have it. At least one model has it.
    """
    first = next(each for each in models if each)
    xs = sorted({x for each in models if each for x in each.x})
    ends = [v + d for each in models if each for v, d in zip(each.values, each.deviations, strict=True)]
    top = min(1.0, max(0.2, math.ceil(max(ends) * 10) / 10))

    def x_at(x: float) -> float:
        return round(20 + xs.index(x) * (_PLOT_WIDTH - 40) / max(1, len(xs) - 1), 1)

    def y_at(value: float) -> float:
        return round(_PLOT_HEIGHT * (1 - min(max(value, 0.0), top) / top), 1)

    def line(each: Series) -> Line:
        found = list(zip(each.x, each.values, each.deviations, strict=True))
        points = tuple(Point(x_at(x), y_at(v), f"{x:g}: {v:.1%}, deviation {100 * d:.1f} points") for x, v, d in found)
        bars = tuple((x_at(x), y_at(v - d), y_at(v + d)) for x, v, d in found)
        return Line(points, " ".join(f"{point.x},{point.y}" for point in points), bars)

    return Curves(
        title=first.title,
        x_title=first.x_title,
        width=_PLOT_WIDTH,
        height=_PLOT_HEIGHT,
        lines=tuple(line(each) if each else None for each in models),
        ticks=tuple((x_at(x), f"{x:g}") for x in xs),
        levels=tuple((y_at(top * part / 4), f"{100 * top * part / 4:g}%") for part in range(5)),
        chance=y_at(first.chance) if first.chance is not None else None,
    )
