"""Defines `emocap synth`, which renders synthetic faces and packs them.

A face depends only on the seed and on the index of the face. So neither the number of processes nor the number of faces
changes a face. The faces for the evaluation have the indices that follow those of the faces for training.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Annotated

import typer
from emocap_shards.errors import ManifestError
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import read_manifest
from emocap_shards.sample import Record
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from tqdm import tqdm

from emocap_pretrain.captions.rendered.dataset import record
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import console, errors_as_lines

RENDERED_TOGETHER = 50
"""Number of faces that a process renders before it returns them."""


def command(
    out: Annotated[str, typer.Argument(help="Folder or URL in which the datasets train and test are written.")],
    train: Annotated[int, typer.Option(help="Number of faces for training.", min=1)] = 1800,
    test: Annotated[int, typer.Option(help="Number of further faces for evaluation.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.", min=0)] = 0,
    pixels: Annotated[int, typer.Option(help="Side of the images in pixels.", min=16)] = 112,
    samples_per_shard: Annotated[int, typer.Option("--shard-samples", help="Samples in a shard.", min=1)] = 200,
    named_as_before: Annotated[int | None, typer.Option("--samples-per-shard", hidden=True, min=1)] = None,
    debug: Debug = False,
) -> None:
    """Render synthetic faces with captions and pack them; an existing dataset is kept."""
    with errors_as_lines(debug=debug):
        for name, first, count in (("train", 0, train), ("test", train, test)):
            url = f"{out.rstrip('/')}/{name}"
            if count and not _exists(url, count):
                faces = _rendered(range(first, first + count), seed, pixels)
                faces = tqdm(faces, f"rendering {name}", count, unit="face", disable=None)
                manifest = write_shards(faces, url, samples_per_shard=named_as_before or samples_per_shard)
                size = f"{counted(len(manifest.shards), 'shard')}, {manifest.total_bytes / 1e6:.1f} MB"
                console.print(f"{url}: {counted(manifest.samples, 'sample')} in {size}.")


def _exists(url: str, samples: int) -> bool:
    """Returns whether a dataset with this number of samples exists at the URL.

    Raises:
        ManifestError: If a dataset with another number of samples exists there.
        StoreError: If the store cannot be reached.
    """
    store = open_store(url)
    if not store.exists("manifest.json"):
        return False
    found = read_manifest(store).samples
    if found != samples:
        raise ManifestError(
            f"{url} contains a dataset of {counted(found, 'sample')}, not {samples:,}; delete it or choose another "
            "place."
        )
    console.print(f"{url}: a dataset of {counted(samples, 'sample')} exists already.")
    return True


def _rendered(indexes: range, seed: int, pixels: int) -> Iterator[Record]:
    # `map` returns the records in the order of their numbers, whichever process renders them.
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(record, seed, pixels=pixels), indexes, chunksize=RENDERED_TOGETHER)
