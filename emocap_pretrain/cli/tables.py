"""Formats what the commands print: rows of a name and a text, small bars, numbers in words."""

from collections.abc import Iterable, Sequence

from emocap_shards.inspecting.plots import ceiling
from emocap_shards.mask import masked
from emocap_shards.printable import printable
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emocap_pretrain.logs import shown

_BARS = "▁▂▃▄▅▆▇█"


def table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    drawn = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        drawn.add_row(name, value)
    return drawn


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> RenderableType:
    """A table with a header; the first `left` columns are texts, then come numbers. No text is markup.

    A column called "histogram" or "" holds bars.
    """
    drawn = Table(pad_edge=False, box=None)
    for number, name in enumerate(columns):
        is_text = number < left
        justify = "left" if is_text or name in {"histogram", ""} else "right"
        drawn.add_column(name, justify=justify, header_style="dim", overflow="fold", no_wrap=not is_text)
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    # Not the table's own title, which is broken where the table is narrow.
    return Group(Text(shown(title), style="bold"), drawn)


def shards(number: int) -> str:
    return f"{number:,} shard" + ("s" if number > 1 else "")


def plain(text: str, most: int | None = None) -> str:
    """Text from data as it may be shown on a terminal: one line without secrets, of which nothing steers it."""
    line = printable(masked(text))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def sparkline(bins: Sequence[int], width: int = 24) -> str:
    """A histogram of one line; neighbouring bins are joined where there are more than `width`.

    One bin far above the others is cut, so that these can be told apart.
    """
    together = -(-len(bins) // width)
    sums = [sum(bins[start : start + together]) for start in range(0, len(bins), together)]
    top = ceiling(sums)
    return "".join(" " if not each else _BARS[min(7, int(each * 8 / top))] for each in sums)


def bar(share: float, width: int = 24) -> str:
    """A bar in eighths of a character; a share above zero is never invisible."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
