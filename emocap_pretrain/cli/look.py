"""Defines `emocap look`, which draws attention maps: where in a face a model finds what a sentence says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emocap_pretrain.cli.files import check_picture
from emocap_pretrain.cli.options import ChosenWeights, Debug, Device, Step
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import console, errors_as_lines

if TYPE_CHECKING:
    from emocap_pretrain.evaluation.look import MappedFace
    from emocap_pretrain.inference.model import EmotionModel

_LARGEST = 10  # The largest number of sentences, as of faces (`count`): a picture must stay readable.


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, an export, or a model of another library.")],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A packed dataset, a folder of images, a table, or an image.")
    ],
    picture: Annotated[Path, typer.Option(help="The new PNG.")],
    sentence: Annotated[
        list[str] | None,
        typer.Option(help="A sentence; can be repeated. Default: the local sentences of each sample of a dataset."),
    ] = None,
    count: Annotated[int, typer.Option(help="Faces in the picture, the first ones of the input.", min=1, max=10)] = 6,
    step: Step = None,
    weights: ChosenWeights = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Draw attention maps: where in each face the model finds what a sentence says.

    No face is detected: the model reads the central square of an image or, if it was published so, the whole image.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain.inference.model import load
        from emocap_pretrain.tracking import pictures

        check_picture(picture)
        sentences = sentence or []
        if len(sentences) > _LARGEST or not all(map(str.strip, sentences)):
            raise ConfigError(f"--sentence: give at most {_LARGEST} sentences, none of which is empty.")
        loaded = load(model, step=step, weights=weights, device=device)
        faces, data = _faces(loaded, source, sentences, count)
        at = "" if loaded.step is None else f", step {loaded.step}"
        trained = "" if loaded.local is None or loaded.local.is_trained else " (not trained on local sentences)"
        rows = [(face.name, face.maps) for face in faces]
        pictures.attention_maps(rows, picture, of=f"{_name(model)}{at}{trained} · {data}")
        console.print(f"{picture}: attention maps of {len(faces)} faces.")


def _faces(model: "EmotionModel", source: str, sentences: list[str], count: int) -> "tuple[list[MappedFace], str]":
    """Returns the attention maps of the first `count` faces of the input, and the name of the input for the picture.

    Raises:
        ConfigError: If the input is of no known kind; if it has no captions, and no sentence is given; or if the model
            has no maps.
        DataError: If none of the samples has a local sentence, or if an image file or folder cannot be read.
        ShardsError: If the dataset or the table cannot be read, or an image of the dataset cannot be decoded.
    """
    from itertools import islice

    from emocap_shards.mask import masked_url

    from emocap_pretrain.bulk.inputs import DatasetInput, open_input
    from emocap_pretrain.bulk.pictures import crop_of
    from emocap_pretrain.data.videos import Sampling
    from emocap_pretrain.evaluation.look import looked_at, samples

    found = open_input(source)
    if isinstance(found, DatasetInput):
        faces = samples(model, source, count, sentences)
        if not faces:
            raise DataError(f"{masked_url(source)}: none of the first {count} samples has a local sentence: give some.")
        return faces, f"{_name(source)} ({found.digest[:16]})"
    if not sentences:
        raise ConfigError(f"{source} has no captions: give the sentences with --sentence.")
    faces: list[MappedFace] = []
    for each in islice(found.pictures(model.embedder, Sampling(1.0, None)), count):
        crop = crop_of(each.content, model.embedder)
        if isinstance(crop, DataError):
            raise DataError(f"{each.name}: {crop}.") from crop
        faces.append(looked_at(model, each.name, crop, sentences))
    return faces, _name(source)


def _name(where: str) -> str:
    """Returns the last two folders of a path or URL, without secrets."""
    from emocap_shards.mask import masked_url

    return "/".join(masked_url(where).rstrip("/").split("/")[-2:])
