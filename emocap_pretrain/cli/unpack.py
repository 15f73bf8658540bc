"""Defines `emocap unpack`, which writes the samples of a dataset as files."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from emocap_shards.manifest import read_manifest
from emocap_shards.writing.unpack import unpack
from tqdm import tqdm

from emocap_pretrain.cli.options import Debug, SkipBad
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    folder: Annotated[Path, typer.Argument(help="New folder for pairs of an image and a .json file.")],
    skip_bad: SkipBad = 0,
    debug: Debug = False,
) -> None:
    """Write every sample as an image and a .json file; `emocap pack` makes the same shards from them."""
    with errors_as_lines(debug=debug):
        total = read_manifest(url).samples
        with tqdm(total=total, desc="unpacking", unit=" samples", disable=None, dynamic_ncols=True, leave=False) as bar:
            unpacked = unpack(url, folder, skip_bad=skip_bad, progress=lambda _: _step(bar))
        for damage in unpacked.damaged:
            console.print(str(damage))
        left_out = f", {len(unpacked.damaged)} damaged ones left out" if unpacked.damaged else ""
        console.print(f"{folder}: {unpacked.samples:,} samples{left_out}.")


def _step(bar: "tqdm[NoReturn]") -> None:
    bar.update()
