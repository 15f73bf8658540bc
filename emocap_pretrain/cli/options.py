"""Defines the options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.writing.packing import DUPLICATES
from emocap_shards.writing.prepare import EXTENSIONS
from pydantic import ByteSize, TypeAdapter, ValidationError

DEFAULT_PROCESSES = min(32, len(os.sched_getaffinity(0)))


def byte_size(text: str) -> int:
    """Returns the number of bytes of a text such as "256MB" or "1GiB"."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a size; write it like 256MB or 1GiB.") from error


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ShardSamples = Annotated[int, typer.Option("--shard-samples", "--samples-per-shard", help="Samples in a shard.", min=1)]
ShardLimit = Annotated[int | None, typer.Option("--shard-samples", help="Samples in a shard (1000).", min=1)]
ShardBytes = Annotated[
    int | None, typer.Option(parser=byte_size, metavar="SIZE", help="Bytes in a shard, such as 256MB.")
]
SkipBad = Annotated[int, typer.Option(help="Largest number of bad samples to skip and report.", min=0)]
NumberKeys = Annotated[bool, typer.Option("--number-keys", help="Number the keys: 000000000 and so on.")]
Processes = Annotated[int, typer.Option(help="Worker processes.", min=1)]

# Options of `pack` that name the columns of a table.
_COLUMNS = "Columns of a table, members of a tar"
Image = Annotated[str, typer.Option(help="Path or bytes of the image.", rich_help_panel=_COLUMNS)]
Whole = Annotated[
    str, typer.Option("--global", help="Global part; a list is several captions.", rich_help_panel=_COLUMNS)
]
Local = Annotated[str, typer.Option(help="Local sentences: a list, or text split by |.", rich_help_panel=_COLUMNS)]
Summary = Annotated[str, typer.Option(help="Summary.", rich_help_panel=_COLUMNS)]
Further = Annotated[
    list[str] | None, typer.Option(help="Other captions of the image; can be repeated.", rich_help_panel=_COLUMNS)
]
Key = Annotated[str, typer.Option(help="Key; default the image's path.", rich_help_panel=_COLUMNS)]
Label = Annotated[list[str] | None, typer.Option(help="A label; can be repeated.", rich_help_panel=_COLUMNS)]
ImageRoot = Annotated[
    Path | None,
    typer.Option(help="Folder to which paths are relative, and which they must not leave.", rich_help_panel=_COLUMNS),
]

# Options of `pack` on the encoding of the images.
_IMAGES = "Images"
Format = Annotated[str | None, typer.Option("--format", help=f"{', '.join(EXTENSIONS)}.", rich_help_panel=_IMAGES)]
Quality = Annotated[
    int | None, typer.Option(help="Quality of jpg and webp (92).", min=1, max=100, rich_help_panel=_IMAGES)
]
LongestPx = Annotated[int | None, typer.Option(help="Shrink the longer side to this.", min=1, rich_help_panel=_IMAGES)]
ShortestPx = Annotated[
    int | None, typer.Option(help="Shrink the shorter side to this.", min=1, rich_help_panel=_IMAGES)
]

_DUPLICATES = "Duplicates"
FindDuplicates = Annotated[
    bool, typer.Option("--find-duplicates", help=f"List duplicates in {DUPLICATES}.", rich_help_panel=_DUPLICATES)
]
DropDuplicates = Annotated[
    bool,
    typer.Option("--drop-duplicates", help="Pack only the first of duplicates.", rich_help_panel=_DUPLICATES),
]
DuplicateBits = Annotated[
    int,
    typer.Option(help="Bits of 256 in which duplicates may differ.", min=0, max=15, rich_help_panel=_DUPLICATES),
]
