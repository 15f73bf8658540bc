"""Defines options that several commands have: `--debug`, those of a trained model, and those of the packing commands.

Each constant such as `Debug` is an annotated type for an argument of a command. Typer reads the flag, the help text and
the bounds of an option from this annotation.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from emocap_shards.writing.packing import DUPLICATES
from emocap_shards.writing.prepare import EXTENSIONS
from emocap_shards.writing.sources.columns import CaptionRule
from pydantic import ByteSize, TypeAdapter, ValidationError

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.results import Weights

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


def named_values(text: str) -> dict[str, str]:
    """Returns the names of values from a text such as "1=surprise,2=fear".

    >>> named_values("1=surprise, 2=fear")
    {'1': 'surprise', '2': 'fear'}

    Raises:
        BadParameter: If a pair has no value or no name, or a value has two names. Typer prints this error.
    """
    pairs = [(value.strip(), name.strip()) for value, _, name in (each.partition("=") for each in text.split(","))]
    if not all(value and name for value, name in pairs) or len({value for value, _ in pairs}) < len(pairs):
        raise typer.BadParameter(f"{text!r} does not name each value once; write it like 1=surprise,2=fear.")
    return dict(pairs)


def split_shares(text: str) -> dict[str, float]:
    """Returns the shares of splits from a text such as "train=8,valid=1,test=1".

    >>> split_shares("train=8,test=2")
    {'train': 8.0, 'test': 2.0}

    Raises:
        BadParameter: If there are not at least two names with numbers above 0. Typer prints this error.
    """
    shares = named_values(text)
    if len(shares) < 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in shares):
        raise typer.BadParameter(f"{text!r} does not name two or more splits; write it like train=8,valid=1,test=1.")
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", share) and float(share) for share in shares.values()):
        raise typer.BadParameter(f"{text!r} has a share that is not a number above 0, such as 8 or 0.8.")
    return {name: float(share) for name, share in shares.items()}


def chosen_step(text: str) -> int | Literal["best"]:
    """Returns the step that a text such as "400" names, or "best".

    >>> chosen_step("400"), chosen_step("best")
    (400, 'best')

    Raises:
        BadParameter: If the text is neither. Typer prints this error as a wrong use of the option.
    """
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a step; give a number such as 400, or best.")
    return int(text)


def parsed_classes(text: str) -> Any:
    """Returns the classes with the words that describe them in prompts.

    `text` is a list of classes such as `joy,fear`, whose names are also their words, or a YAML mapping of classes to
    words such as `{joy: delight, fear: panic}`. What the mapping holds is not checked here.

    Raises:
        ConfigError: If the mapping is not YAML.
    """
    if not text.lstrip().startswith("{"):
        return {name: name for name in map(str.strip, text.split(",")) if name}
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--classes {text}: not valid YAML: {' '.join(str(error).split())}") from error


def lines_of(path: Path) -> list[str]:
    """Returns the lines of the file of `--prompts` that are not empty, without white space at their ends.

    Raises:
        ConfigError: If the file cannot be read, is not UTF-8 text, or has no such line.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: the file cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {path}: the file is not UTF-8 text ({error}): save it as UTF-8.") from error
    if not any(lines):
        raise ConfigError(f"--prompts {path}: the file has no prompt: write one on each line, such as 'a {{}} face'.")
    return [line for line in lines if line]


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

# Options of the commands that use a trained model.
Step = Annotated[
    Any,
    typer.Option(
        parser=chosen_step,
        metavar="N|best",
        help="Step of the checkpoint, or best (checkpoint.keep_best of the run); default the newest one.",
    ),
]
ChosenWeights = Annotated[
    Weights | None,
    typer.Option(
        "--weights",
        metavar="WEIGHTS",
        help="raw: those of the step; ema or schedule_free: their average. Default the average if the run has one.",
    ),
]
ChosenActivation = Annotated[
    Literal["quick_gelu", "gelu", "gelu_tanh"] | None,
    typer.Option(
        "--activation",
        metavar="NAME",
        help="quick_gelu, gelu or gelu_tanh, for a file of another library that does not contain its activation.",
    ),
]
OwnConfig = Annotated[Path | None, typer.Option(help="The run's YAML file, if you trust it more than the checkpoint.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Device of the model; auto is cuda where there is a GPU.")
]
OnRay = Annotated[
    bool, typer.Option("--ray", help="Compute on the Ray cluster at RAY_ADDRESS, or else on one of this host.")
]
PromptFile = Annotated[
    Path | None, typer.Option(help="File of prompts, one on each line, with {} in place of the words of a class.")
]

# Options of the packing commands.
ShardLimit = Annotated[int | None, typer.Option("--shard-samples", help="Samples in a shard (1000).", min=1)]
ShardBytes = Annotated[
    int | None, typer.Option(parser=byte_size, metavar="SIZE", help="Bytes in a shard, such as 256MB.")
]
SkipBad = Annotated[int, typer.Option(help="Largest number of bad samples to skip and report.", min=0)]
OnlyKeys = Annotated[
    str | None, typer.Option("--only-keys", metavar="PATTERN", help="Pack only rows with such a key: 'train_*'.")
]
WithoutKeys = Annotated[
    Path | None,
    typer.Option("--without-keys", metavar="FILE", help="Leave out the keys that a file lists, one a line."),
]
Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="FILE", help="Filter file: leave out the samples and sentences that it names."),
]
Splits = Annotated[
    dict[str, float] | None,
    typer.Option(
        parser=split_shares,
        metavar="SHARES",
        help="Divide at random, such as train=8,valid=1,test=1, into OUT/train ...",
    ),
]
SplitBy = Annotated[
    str | None,
    typer.Option("--split-by", metavar="LABEL", help="Keep rows with an equal label, a person, in one split."),
]
NumberKeys = Annotated[bool, typer.Option("--number-keys", help="Number the keys: 000000000 and so on.")]
Processes = Annotated[int, typer.Option(help="Worker processes.", min=1)]

# Options of `pack` that name the columns of a table.
_column = partial(typer.Option, rich_help_panel="Columns of a table, members of a tar")
Image = Annotated[str, _column(help="Path or bytes of the image.")]
Global = Annotated[str, _column("--global", help="Global part; a list is several captions.")]
Local = Annotated[str, _column(help="Local sentences: a list, or text split by |.")]
Summary = Annotated[str, _column(help="Summary.")]
Further = Annotated[list[str] | None, _column(help="Other captions of the image; can be repeated.")]
Key = Annotated[str, _column(help="Key; default the image's path.")]
Label = Annotated[list[str] | None, _column(help="A label; can be repeated.")]
LabelNames = Annotated[
    dict[str, str] | None,
    _column(parser=named_values, metavar="NAMES", help="Names of the label's values, such as 1=surprise,2=fear."),
]
Captions = Annotated[
    CaptionRule,
    _column(
        metavar="RULE",
        help="Whether rows need captions: required, optional, none, or auto (not if they have labels and no column "
        "looks like captions).",
    ),
]
ImageRoot = Annotated[Path | None, _column(help="Folder to which paths are relative, and which they must not leave.")]

ImageName = Annotated[
    str,
    _column(metavar="NAME", help="Name of the image's file if it is another one, such as '{stem}_aligned.jpg'."),
]
Columns = Annotated[
    str | None, _column(metavar="NAMES", help="Columns of a table or list without a header, such as image,emotion.")
]
Delimiter = Annotated[
    str | None, _column(help="Delimiter of a text table: a character, or comma, tab, semicolon, bar, space.")
]
TextEncoding = Annotated[
    str | None, _column("--encoding", help="Encoding of a text table, such as gb18030; default UTF-8.")
]
Frames = Annotated[
    int | None,
    _column(help="Frames to take of each video whose row names a folder; 1: the middle one.", min=1),
]
Flat = Annotated[bool, _column("--flat", help="Divide captions of several sentences into global, local and summary.")]

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
