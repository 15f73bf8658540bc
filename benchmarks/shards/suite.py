"""Defines the suite of `python benchmarks shards`.

It compares how samples are read by our package, webdataset, mosaicml-streaming and litdata.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count, counts, say, words_of

from . import mixing, pictures, plots, scale, stream, tables
from .dataset import Wanted, faces, prepare
from .host import HostError, Pythons
from .place import FILE, S3, opened

_TEMPORARY = Path(gettempdir())


def _stream(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `stream`: measures the rate and the CPU time of whole epochs."""
    pythons = _pythons(options)
    few, many = (prepare(replace(_wanted(options), samples=each), options.work, pythons) for each in options.samples)
    for store in options.only:
        with opened(store, options.work) as place_of:
            plan = stream.StreamPlan(
                sources={True: (few, place_of(few)), False: (many, place_of(many))},
                workers=options.workers,
                shuffle=options.shuffle == "on",
                delivered=options.delivered,
                rounds=options.rounds,
            )
            yield from stream.epochs(plan, pythons, about)


def _first(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `first`: measures the time to the first batch."""
    pythons = _pythons(options)
    dataset = prepare(_wanted(options), options.work, pythons)
    for store in options.only:
        with opened(store, options.work) as place_of:
            yield from stream.first_batches(dataset, place_of(dataset), pythons, options.rounds, about)


def _scale(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `scale`: measures the memory of reading processes and the time to plan a step, with many shards."""
    pythons = _pythons(options)
    one = prepare(Wanted(images=None, distinct=64, samples=64, shard_samples=64, pixels=112), options.work, pythons)
    numbers = {"shards": options.shards, "ranks": options.ranks, "rounds": options.rounds}
    yield from scale.measure(one, options.work, pythons, about, **numbers)


def _pictures(lineup: pictures.Lineup) -> Callable[[argparse.Namespace, Occasion], Iterator[Measurement]]:
    """Returns the function that runs one command of the suite: `decode` or `resize`.

    `lineup` is the group of libraries that the command compares: decoders for `decode`, and resizers for `resize`.
    """

    def measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
        pool = faces(replace(_wanted(options), distinct=min(options.distinct, 150)))
        yield from pictures.measure(lineup, pool, options.work, _pythons(options), options.rounds, about)

    return measure


def _pythons(options: argparse.Namespace) -> Pythons:
    """Returns the Python interpreters that read datasets: ours, and that of the other libraries (peers).

    Prints a line if the latter is missing.
    """
    pythons = Pythons.of(options.peers, options.work / "hosts.log")
    if not pythons.has_peers:
        say(f"no peers in {options.peers}: ours alone (bash benchmarks/shards/peers.sh makes them)")
    return pythons


def _wanted(options: argparse.Namespace) -> Wanted:
    """Returns the description of the dataset whose samples are decoded.

    The dataset for raw samples differs from it only in the number of samples.
    """
    return Wanted(
        images=options.images,
        distinct=options.distinct,
        samples=options.samples[0],
        shard_samples=options.shard_samples,
        pixels=256,
    )


def _options(parser: argparse.ArgumentParser) -> None:
    """Adds two options that several commands have: `--peers` and `--work`.

    They choose the Python environment of the other libraries, and the folder of datasets and caches.
    """
    add = parser.add_argument
    add("--peers", type=Path, default=_TEMPORARY / "peer-venv", help="the environment that peers.sh has made")
    add(
        "--work",
        type=Path,
        default=_TEMPORARY / "emocap-shard-benchmarks",
        help="the folder of datasets and caches, some 2 GB",
    )


def _image_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--peers` and `--work`, and the options that describe a dataset of images."""
    _options(parser)
    add = parser.add_argument
    add("--images", type=Path, help="a folder of JPEG files; by default faces are drawn, 256 px")
    add("--distinct", type=count, default=400, help="images that differ; the other samples are copies of them (400)")
    add(
        "--samples",
        type=_pair,
        default=(8192, 16384),
        help="samples of the decoded and of the raw dataset (8192,16384)",
    )
    add(
        "--shard-samples",
        type=count,
        default=512,
        help="samples in a shard of ours; the peers' shards are as large (512)",
    )


def _store_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `_image_options`, and the option that chooses the stores from which the dataset is read."""
    _image_options(parser)
    parser.add_argument(
        "--only", type=words_of(FILE, S3), default=(FILE, S3), help="stores: file, s3 or both, as file,s3 (both)"
    )


def _stream_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `stream`."""
    _store_options(parser)
    add = parser.add_argument
    add("--workers", type=counts, default=(1, 2), help="numbers of loader processes (1,2)")
    add("--shuffle", choices=("on", "off"), default="on", help="shuffle with each system's usual buffer (on)")
    add("--delivered", action="store_true", help="send batches to the main process, as tensors if decoded")


def _scale_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scale`."""
    _options(parser)
    parser.add_argument("--shards", type=counts, default=(1_000, 100_000), help="numbers of shards (1000,100000)")
    parser.add_argument("--ranks", type=count, default=1024, help="ranks for which a step is planned (1024)")


def _pair(text: str) -> tuple[int, ...]:
    """Reads two integers that are separated by a comma."""
    if len(numbers := counts(text)) != 2:
        raise argparse.ArgumentTypeError(f"{text} must be two numbers, as 8192,16384")
    return numbers


SUITE = Suite(
    name="shards",
    description="Measures how samples are read beside webdataset, mosaicml-streaming and litdata.",
    commands={
        "stream": Command(help="samples per second and CPU time", measure=_stream, options=_stream_options),
        "first": Command(help="time to the first batch", measure=_first, options=_store_options),
        "scale": Command(help="memory and planning with many shards", measure=_scale, options=_scale_options),
        "decode": Command(help="JPEG decoders", measure=_pictures(pictures.DECODERS), options=_image_options),
        "resize": Command(help="crop and resize", measure=_pictures(pictures.RESIZERS), options=_image_options),
        "shuffle": Command(
            help="how well a dataset is mixed",
            measure=lambda options, about: mixing.measure(about, options.rounds),
        ),
    },
    reports=(
        Report(name="stream", whats=(stream.RATE,), markdown=tables.stream, draw=plots.streams),
        Report(name="first", whats=(stream.FIRST,), markdown=tables.first),
        Report(name="scale", whats=(scale.MEMORY, scale.MANIFEST, scale.PLAN), markdown=tables.scale),
        Report(name="decode", whats=(pictures.DECODERS.what,), markdown=tables.pictures),
        Report(name="resize", whats=(pictures.RESIZERS.what,), markdown=tables.pictures),
        Report(name="shuffle", whats=(mixing.WHAT,), markdown=tables.shuffle, draw=plots.shuffle),
    ),
    page="streaming-benchmarks.md",
    errors=(RuntimeError, HostError),
)
