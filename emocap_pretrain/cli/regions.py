"""Defines `emocap regions`, which writes where the regions of the faces in a dataset lie."""

from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.inspecting.wording import counted

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.errors import DataError
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    data: Annotated[str, typer.Argument(help="Packed dataset; its file regions.jsonl is written.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(metavar="NPZ", help="Landmarks of photographs (`emocap landmarks`); default rendered faces."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write regions.jsonl into a dataset: where eyes, mouth and so on lie, and which of them each sentence is about."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.captions.regions import Landmarks, Missing, find, of_rendered
        from emocap_pretrain.data.regions import REGIONS_FILE, write_regions

        missing = Missing()
        found = list(find(data, Landmarks.read(landmarks).of if landmarks else of_rendered, missing))
        if not found:
            cure = "a face was found in none of its images" if landmarks else "give --landmarks for photographs"
            raise DataError(f"{data}: no sample has known regions ({', '.join(missing.examples)}): {cure}.")
        written = write_regions(data, found)
        console.print(f"{data}/{REGIONS_FILE}: regions of {counted(written, 'face')}.")
        if missing.samples:
            console.print(f"Left out: {counted(missing.samples, 'sample')}, such as {', '.join(missing.examples)}.")
        if missing.sentences:
            console.print(f"{counted(missing.sentences, 'local sentence')} name no region of the face.")
