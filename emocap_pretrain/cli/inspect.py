"""`emocap inspect`."""

from collections.abc import Mapping
from typing import Annotated

import typer
from emocap_shards.inspect import Spread, Summary, summarise, verify
from rich.table import Table

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    check: Annotated[bool, typer.Option("--verify", help="Read every byte and check every digest.")] = False,
    debug: Debug = False,
) -> None:
    """Show what stands in a dataset; with --verify, whether it is whole (exit code 1 if not)."""
    with errors_as_lines(debug=debug):
        console.print(_summary_table(summarise(url)))
        faults = verify(url) if check else []
        for fault in faults:
            console.print(fault, markup=False)
        if check:
            console.print(f"{len(faults)} faults found." if faults else "Every digest holds.")
        raise typer.Exit(1 if faults else 0)


def _summary_table(summary: Summary) -> Table:
    rows = [
        ("samples", f"{summary.samples:,} in {tables.shards(summary.shards)}, {summary.bytes / 1e6:,.1f} MB"),
        ("looked at", f"{summary.looked_at:,} samples, {summary.damaged} damaged"),
        ("image", f"{_spread(summary.width_px)} wide, {_spread(summary.height_px)} high, pixels"),
        *((f"words, {part}", _spread(words)) for part, words in summary.words.items()),
        ("local sentences", _spread(summary.sentences)),
        *((name, _counts(counts)) for name, counts in summary.labels.items()),
        *((name, _spread(numbers)) for name, numbers in summary.numbers.items()),
    ]
    return tables.table(summary.url, rows)


def _spread(spread: Spread) -> str:
    if spread.least == spread.most:
        return f"{spread.least:g}"
    return f"{spread.least:.3g} to {spread.most:.3g}, mean {spread.mean:.3g}"


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:12]]
    return ", ".join(shown) + (f", {len(counts) - 12} more" if len(counts) > 12 else "")
