"""Formats the output of commands: tables, small bars, and numbers with their units.

Texts from outside, such as keys, labels and messages of servers, are shown as plain text: `grid` and `plain` mask
secrets and replace control characters.
"""

from collections.abc import Iterable, Sequence

from emocap_shards.inspecting.plots import ceiling
from emocap_shards.mask import masked
from emocap_shards.printable import printable
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emocap_pretrain.logs import shown

_LONGEST_NAME = 42  # Characters; longer names in a table may be wrapped.
_BARS = "▁▂▃▄▅▆▇█"


def table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Returns a table without a header, whose rows are pairs of a name and a text."""
    drawn, found = Table(title=title, title_justify="left", show_header=False), list(rows)
    # On a narrow terminal, long texts are wrapped, and names only if they are long too.
    drawn.add_column(no_wrap=max((len(name) for name, _ in found), default=0) <= _LONGEST_NAME)
    drawn.add_column(overflow="fold")  # An address that is longer than a line stays complete.
    for name, value in found:
        drawn.add_row(name, value)
    return drawn


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> RenderableType:
    """Returns a table with a title and a header. Markup in its texts is not interpreted.

    Args:
        title: A line above the table.
        columns: Names of the columns. A column with the name "histogram" or "" contains bars.
        rows: The cells of each row.
        left: Number of columns with texts. They come first and are aligned left. All others contain numbers or bars.
    """
    drawn = Table(pad_edge=False, box=None)
    for number, name in enumerate(columns):
        is_text = number < left
        justify = "left" if is_text or name in {"histogram", ""} else "right"
        drawn.add_column(name, justify=justify, header_style="dim", overflow="fold", no_wrap=not is_text)
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    # This is not the table's own title, because rich would break that one at the width of a narrow table.
    return Group(Text(shown(title), style="bold"), drawn)


def plain(text: str, most: int | None = None) -> str:
    """Returns a text as one line that is safe on a terminal, without secrets and control characters.

    A text with more than `most` characters is cut.
    """
    line = printable(masked(text))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def sparkline(bins: Sequence[int], width: int = 24) -> str:
    """Returns a histogram as one line of at most `width` characters.

    If there are more than `width` bins, neighbouring bins are added up. A bin that is far higher than the others is
    drawn lower than it is, so that the others remain distinguishable.
    """
    # Each character has eight levels. `ceiling` gives the height that counts as full.
    together = -(-len(bins) // width)
    sums = [sum(bins[start : start + together]) for start in range(0, len(bins), together)]
    top = ceiling(sums)
    return "".join(" " if not each else _BARS[min(7, int(each * 8 / top))] for each in sums)


def bar(share: float, width: int = 24) -> str:
    """Returns a bar of at most `width` characters for a share in [0, 1]; a share above 0 is always visible.

    >>> bar(0.5, 4), bar(0.001, 4)
    ('██', '▏')
    """
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
