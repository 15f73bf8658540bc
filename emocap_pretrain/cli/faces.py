"""Defines `emocap faces`, which finds faces in photographs and videos, and cuts them out."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from emocap_pretrain.cli.bulk import (
    Every,
    Force,
    Fps,
    Image,
    ImageRoot,
    Output,
    PartImages,
    output_place,
    sampling_of,
    write_from_processes,
)
from emocap_pretrain.cli.options import Debug, OnRay
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import errors_as_lines

_BATCH = 16  # Images that the processes get together; a photograph of 12 megapixels has 36 MB.


def command(  # noqa: PLR0913, PLR0917 - one argument for each option
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A folder of images and videos, a table, a packed dataset or a video."),
    ],
    out: Annotated[Path, typer.Option(metavar="PARQUET", help="The new table, with a row for each face.")],
    smallest: Annotated[float, typer.Option(metavar="PX", help="Smallest side of a face in pixels.", min=16)] = 64,
    align: Annotated[
        Literal["eyes_mouth", "box"], typer.Option(help="Turn faces upright, or cut out upright boxes.")
    ] = "eyes_mouth",
    pixels: Annotated[int, typer.Option(help="Side of the squares in pixels.", min=16, max=2048)] = 224,
    encoding: Annotated[Literal["png", "jpg", "webp"], typer.Option("--format", help="Format of the squares.")] = "png",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes, of one thread each; default one for each core. With --ray, workers.", min=1),
    ] = None,
    image: Image = "image",
    image_root: ImageRoot = None,
    fps: Fps = None,
    every: Every = None,
    part_images: PartImages = 256,
    ray: OnRay = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find the faces in photographs and videos, and cut them out.

    The table has a row for each face: the square, the landmarks in it, the size and pose of the face, sharpness,
    exposure, and a key that is a hash. An image without a face has a row with an error. `emocap pack` packs the table.
    The same command resumes an interrupted one.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.data.videos import need_av
        from emocap_pretrain.faces.alignment import VERSIONS
        from emocap_pretrain.faces.detection import FaceComputation, FaceCut
        from emocap_pretrain.faces.images import open_images

        place = output_place(out)
        if place.suffix != ".parquet":
            raise ConfigError(f"--out {out}: give it the suffix .parquet.")
        sampling = sampling_of(fps, every)
        found = open_images(source, image=image, image_root=image_root)
        if found.has_videos:
            need_av()
        computation = FaceComputation(
            folder=str(place.with_name(f"{place.name}.parts")),
            has_videos=found.has_videos,
            batch_size=_BATCH,
            sampling=sampling,
            cut=FaceCut(align, pixels, encoding),
            smallest_px=smallest,
            processes=1 if ray else workers or len(os.sched_getaffinity(0)),
        )
        state = {
            "command": "faces",
            "alignment": VERSIONS[align],
            "pixels": pixels,
            "format": encoding,
            "smallest_px": smallest,
            "fps": sampling.fps if found.has_videos else None,
            "every": sampling.every if found.has_videos else None,
        }
        output = Output(out, "parquet", part_images, force=force)
        write_from_processes(output, found, computation, state, ray=ray, workers=workers)
