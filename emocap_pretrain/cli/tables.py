"""What the commands print: rows of a name and a text, and numbers in words."""

from collections.abc import Iterable

from rich.table import Table


def table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    drawn = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        drawn.add_row(name, value)
    return drawn


def shards(number: int) -> str:
    return f"{number} shard" + ("s" if number > 1 else "")
