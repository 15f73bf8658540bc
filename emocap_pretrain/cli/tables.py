"""Formats what the commands print: tables, small bars, and numbers with their units."""

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
    """Returns a table of names and texts, without a header."""
    drawn = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        drawn.add_row(name, value)
    return drawn


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> RenderableType:
    """Returns a table with a header. Texts are not interpreted as markup.

    Args:
        title: A line above the table.
        columns: Names of the columns. One that is called "histogram" or "" has bars.
        rows: The cells of each row.
        left: Number of columns with texts, which are aligned left; the others have numbers.
    """
    drawn = Table(pad_edge=False, box=None)
    for number, name in enumerate(columns):
        is_text = number < left
        justify = "left" if is_text or name in {"histogram", ""} else "right"
        drawn.add_column(name, justify=justify, header_style="dim", overflow="fold", no_wrap=not is_text)
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    # Not the table's own title, which rich breaks at the width of a narrow table.
    return Group(Text(shown(title), style="bold"), drawn)


def shards(number: int) -> str:
    """Returns the number with its noun, such as "1 shard" or "1,024 shards"."""
    return f"{number:,} shard" + ("s" if number > 1 else "")


def plain(text: str, most: int | None = None) -> str:
    """Returns a text from data as one line that is safe on a terminal: without secrets and control characters.

    A text longer than `most` is cut.
    """
    line = printable(masked(text))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def sparkline(bins: Sequence[int], width: int = 24) -> str:
    """Returns a histogram in one line; neighbouring bins are added up if there are more than `width`.

    A bin far above the others is cut, so that these remain distinguishable.
    """
    together = -(-len(bins) // width)
    sums = [sum(bins[start : start + together]) for start in range(0, len(bins), together)]
    top = ceiling(sums)
    return "".join(" " if not each else _BARS[min(7, int(each * 8 / top))] for each in sums)


def bar(share: float, width: int = 24) -> str:
    """Returns a bar for a share in [0, 1], in eighths of a character; a share above 0 is always visible."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
