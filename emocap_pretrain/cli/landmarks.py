"""Defines `emocap landmarks`, which finds the landmarks of the faces in many images."""

import os
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.inspecting.wording import counted

from emocap_pretrain.cli.bulk import Force, Image, ImageRoot, Output, PartImages, output_place, write_from_processes
from emocap_pretrain.cli.options import Debug, OnRay
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import console, errors_as_lines

_BATCH = 64  # Images that the processes get together.


def command(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A packed dataset, a folder of images, a table, or fer2013.csv.")
    ],
    out: Annotated[Path, typer.Option(metavar="NPZ", help="The new file.")],
    workers: Annotated[
        int | None,
        typer.Option(help="Processes, of one thread each; default one for each core. With --ray, workers.", min=1),
    ] = None,
    image: Image = "image",
    image_root: ImageRoot = None,
    part_images: PartImages = 1024,
    ray: OnRay = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find the 478 landmarks of the face in each image.

    MediaPipe's face mesh finds them, which needs an older numpy than this project. So the first call installs it from
    PyPI into an environment of its own (about 400 MB in ~/.cache/emocap). Each image should show one face; if there are
    several, the landmarks are those of the face that the detector is surest of. The same command resumes an interrupted
    one.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.data.landmarks import read_landmarks
        from emocap_pretrain.faces.images import open_images
        from emocap_pretrain.faces.landmarks import LandmarkComputation

        place = output_place(out)
        if place.suffix != ".npz":
            raise ConfigError(f"--out {out}: give it the suffix .npz.")
        found = open_images(source, image=image, image_root=image_root)
        if found.has_videos:
            raise ConfigError(f"{source} holds videos, whose frames have no name of their own: give images alone.")
        computation = LandmarkComputation(
            folder=str(place.with_name(f"{place.name}.parts")),
            has_videos=False,
            batch_size=_BATCH,
            processes=1 if ray else workers or len(os.sched_getaffinity(0)),
        )
        output = Output(out, "npz", part_images, force=force)
        write_from_processes(output, found, computation, {"command": "landmarks"}, ray=ray, workers=workers)
        faces = read_landmarks(place).faces
        console.print(f"A face was found in {counted(faces, 'image')}.")
