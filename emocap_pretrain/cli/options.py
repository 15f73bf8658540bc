"""Defines the option `--debug`, and the options of the packing commands.

Each constant such as `Debug` is an annotated type for an argument of a command. Typer reads the flag, the help text and
the bounds of an option from this annotation.
"""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.writing.packing import DUPLICATES
from emocap_shards.writing.prepare import EXTENSIONS
from pydantic import ByteSize, TypeAdapter, ValidationError

# The cores that this process may use, which in a container or a job step may be fewer than those of the host.
DEFAULT_PROCESSES = min(32, len(os.sched_getaffinity(0)))


def byte_size(text: str) -> int:
    """Returns the number of bytes of a text such as "256MB" or "1GiB".

    >>> byte_size("256MB"), byte_size("1GiB")
    (256000000, 1073741824)

    Raises:
        BadParameter: If the text is not a size. Typer prints this error as a wrong use of the option.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a size; write it like 256MB or 1GiB.") from error


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ShardLimit = Annotated[int | None, typer.Option("--shard-samples", help="Samples in a shard (1000).", min=1)]
ShardBytes = Annotated[
    int | None, typer.Option(parser=byte_size, metavar="SIZE", help="Bytes in a shard, such as 256MB.")
]
SkipBad = Annotated[int, typer.Option(help="Largest number of bad samples to skip and report.", min=0)]
NumberKeys = Annotated[bool, typer.Option("--number-keys", help="Number the keys: 000000000 and so on.")]
Processes = Annotated[int, typer.Option(help="Worker processes.", min=1)]

# Options of `pack` that name the columns of a table.
_column = partial(typer.Option, rich_help_panel="Columns of a table, members of a tar")
Image = Annotated[str, _column(help="Path or bytes of the image.")]
Whole = Annotated[str, _column("--global", help="Global part; a list is several captions.")]
Local = Annotated[str, _column(help="Local sentences: a list, or text split by |.")]
Summary = Annotated[str, _column(help="Summary.")]
Further = Annotated[list[str] | None, _column(help="Other captions of the image; can be repeated.")]
Key = Annotated[str, _column(help="Key; default the image's path.")]
Label = Annotated[list[str] | None, _column(help="A label; can be repeated.")]
ImageRoot = Annotated[Path | None, _column(help="Folder to which paths are relative, and which they must not leave.")]

# Options of `pack` on the encoding of the images.
_encoding = partial(typer.Option, rich_help_panel="Images")
Format = Annotated[str | None, _encoding("--format", help=f"{', '.join(EXTENSIONS)}.")]
Quality = Annotated[int | None, _encoding(help="Quality of jpg and webp (92).", min=1, max=100)]
LongestPx = Annotated[int | None, _encoding(help="Shrink the longer side to this.", min=1)]
ShortestPx = Annotated[int | None, _encoding(help="Shrink the shorter side to this.", min=1)]

# Options of `pack` on duplicates.
_duplicates = partial(typer.Option, rich_help_panel="Duplicates")
FindDuplicates = Annotated[bool, _duplicates("--find-duplicates", help=f"List duplicates in {DUPLICATES}.")]
DropDuplicates = Annotated[bool, _duplicates("--drop-duplicates", help="Pack only the first of duplicates.")]
DuplicateBits = Annotated[int, _duplicates(help="Bits of 256 in which duplicates may differ.", min=0, max=15)]
