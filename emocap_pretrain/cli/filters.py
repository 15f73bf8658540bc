"""Defines `emocap filter`, which merges filter files of one dataset into one."""

from typing import Annotated

import typer
from emocap_shards.filter_file import FilterFile, read_filter, write_filter
from emocap_shards.inspecting.wording import counted
from emocap_shards.printable import printable

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    files: Annotated[list[str], typer.Argument(help="Filter files of one dataset, as paths or URLs.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="The new filter file; an existing one is replaced.")],
    debug: Debug = False,
) -> None:
    """Merge filter files: what one of them leaves out, the new one leaves out."""
    with errors_as_lines(debug=debug):
        merged = FilterFile.merged(list(map(read_filter, files)))
        write_filter(out, merged)
        made = f"{counted(len(merged.exclusions), 'exclusion')} by {counted(len(merged.origins), 'origin')}"
        line = f"{out}: {made}, digest {merged.digest[:16]}, for the dataset {merged.dataset[:16]}."
        console.print(printable(line), markup=False)
