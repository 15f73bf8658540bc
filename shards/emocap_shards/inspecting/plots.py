"""Computes the bars of the page's histograms and bar charts. The template of the page draws them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emocap_shards.inspecting.counters import Counts, Spread
from emocap_shards.inspecting.wording import number, percent

WIDTH, HEIGHT = 320.0, 90.0
_LEAST_VISIBLE = 1.5


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Describes one bar of a histogram. `tip` is the text of its tooltip.

    `x` and `y` are the position of the bar's upper left corner; `y` is counted from the top of the plot. `is_cut` is
    True if the bar would be higher than the plot, and is cut there.
    """

    x: float
    y: float
    width: float
    height: float
    tip: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """Holds the bars of a histogram and the texts below it.

    `mean_x` is the horizontal position of the mean in the plot. If one bar is so high that it is cut, `peak` is a text
    that says which values this bar counts, and what share of the sampled values they are; otherwise `peak` is empty.
    """

    name: str
    unit: str
    bars: tuple[Rectangle, ...]
    least: str
    most: str
    mean: str
    mean_x: float
    median: str
    peak: str


@dataclass(frozen=True, slots=True)
class Balance:
    """Holds one row for each of the most frequent values of a text label.

    A row has the value, its count, its share of all values (0 to 1), and the width of its bar in percent of the widest
    one.
    """

    name: str
    counts: Counts
    rows: tuple[tuple[str, int, float, float], ...]

    @property
    def hidden(self) -> int:
        """Returns the number of values that have no row."""
        return self.counts.distinct - len(self.rows)


def histogram(name: str, spread: Spread, unit: str = "") -> Histogram:
    top = ceiling(spread.bins)
    bars = tuple(_bars(spread, top))
    first, last = spread.edges[0], spread.edges[-1]
    mean_x = (spread.mean - first) / (last - first) * WIDTH if last > first else 0.0
    texts = [number(value) for value in (spread.least, spread.most, spread.mean, spread.median)]
    least, most, mean, median = texts
    peak = _peak(spread) if max(spread.bins) > top else ""
    return Histogram(name, unit, bars, least, most, mean, round(mean_x, 1), median, peak)


def balance(name: str, counts: Counts, most: int) -> Balance:
    shown = counts.top[:most]
    highest = max((count for _, count in shown), default=1)
    rows = tuple((value, count, count / counts.total, round(100 * count / highest, 2)) for value, count in shown)
    return Balance(name, counts, rows)


def ceiling(bins: Sequence[int]) -> float:
    """Returns the count at which a bar fills the whole height of a plot.

    This is the highest count of a bin. But if it is more than four times the second highest, the result is 1.25 times
    the second highest. The highest bar is then cut, so that the heights of the other bars can be distinguished.
    """
    *_, second, highest = sorted([0, *bins])
    return float(max(second * 1.25 if 0 < second * 4 < highest else highest, 1))


def _peak(spread: Spread) -> str:
    """Returns a text with the values in the highest bar and their share of all values."""
    place = max(range(len(spread.bins)), key=lambda each: spread.bins[each])
    return f"{_values(spread, place)}: {percent(spread.bins[place], sum(spread.bins))}"


def _bars(spread: Spread, top: float) -> Iterator[Rectangle]:
    width = WIDTH / len(spread.bins)
    gap = min(1.5, width / 8)
    for place, count in enumerate(spread.bins):
        height = max(min(count / top, 1) * HEIGHT, _LEAST_VISIBLE) if count else 0.0
        yield Rectangle(
            x=round(place * width + gap / 2, 2),
            y=round(HEIGHT - height, 2),
            width=round(width - gap, 2),
            height=round(height, 2),
            tip=f"{_values(spread, place)}: {count:,}",
            is_cut=count > top,
        )


def _values(spread: Spread, place: int) -> str:
    """Returns a text with the values that the bin with the index `place` counts.

    A bin of integers begins and ends at a half, such as 0.5, so that each integer lies inside a bin.
    """
    low, high = spread.edges[place], spread.edges[place + 1]
    if low % 1 == high % 1 == 0.5:
        low, high = low + 0.5, min(high - 0.5, spread.most)
    return number(low) if low == high else f"{number(low)} to {number(high)}"
