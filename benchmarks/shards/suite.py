"""Measures how samples are read, beside webdataset, mosaicml-streaming and litdata: `python benchmarks shards`."""

import argparse
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count, counts, say, words_of

from . import first, mixing, pictures, plots, scale, stream, tables
from .dataset import Datasets, Wanted, faces, prepare
from .host import HostError, Pythons
from .place import FILE, S3, Place, local, served, uploaded

_TEMPORARY = Path(gettempdir())


def _stream(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    pythons = _pythons(options)
    few, many = (prepare(replace(_wanted(options), samples=each), options.work, pythons) for each in options.samples)
    for store in options.only:
        with _place(store, options.work) as place_of:
            plan = stream.Plan(
                decoded=(few, place_of(few)),
                raw=(many, place_of(many)),
                workers=options.workers,
                shuffle=options.shuffle == "on",
                delivered=options.delivered,
                rounds=options.rounds,
                decoder=options.decoder,
            )
            yield from stream.measure(plan, pythons, about)


def _first(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    pythons = _pythons(options)
    dataset = prepare(_wanted(options), options.work, pythons)
    for store in options.only:
        with _place(store, options.work) as place_of:
            yield from first.measure(dataset, place_of(dataset), pythons, options.rounds, about)


def _scale(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    pythons = _pythons(options)
    one = Wanted(images=None, distinct=64, samples=64, shard_samples=64, pixels=112)
    plan = scale.Plan(shards=options.shards, ranks=options.ranks, rounds=options.rounds)
    yield from scale.measure(plan, prepare(one, options.work, pythons), options.work, pythons, about)


def _pictures(lineup: pictures.Lineup) -> Callable[[argparse.Namespace, Occasion], Iterator[Measurement]]:
    def measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
        pool = faces(replace(_wanted(options), distinct=min(options.distinct, 150)))
        yield from pictures.measure(lineup, pool, options.work, _pythons(options), options.rounds, about)

    return measure


def _shuffle(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = mixing.Plan(
        samples=1 << 18,
        batch=1024,
        shard_samples=(128, 1024),
        windows=(1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18),
        buffers=(1000, 5000),
        seeds=options.rounds,
    )
    yield from mixing.measure(plan, about)


@contextmanager
def _place(store: str, work: Path) -> Generator[Callable[[Datasets], Place]]:
    if store == FILE:
        yield lambda dataset: local(dataset, work)
        return
    with served(work) as server:
        yield lambda dataset: uploaded(dataset, work, server)


def _pythons(options: argparse.Namespace) -> Pythons:
    pythons = Pythons.of(options.peers, options.work / "hosts.log")
    if not pythons.has_peers:
        say(f"no peers in {options.peers}: ours alone (bash benchmarks/shards/peers.sh makes them)")
    return pythons


def _wanted(options: argparse.Namespace) -> Wanted:
    return Wanted(
        images=options.images,
        distinct=options.distinct,
        samples=options.samples[0],
        shard_samples=options.shard_samples,
        pixels=256,
    )


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--peers", type=Path, default=_TEMPORARY / "peer-venv", help="what peers.sh made")
    add("--work", type=Path, default=_TEMPORARY / "emocap-shard-benchmarks", help="datasets and caches, some 2 GB")


def _image_options(parser: argparse.ArgumentParser) -> None:
    _options(parser)
    add = parser.add_argument
    add("--images", type=Path, help="a folder of JPEG files; by default faces are drawn, 256 px")
    add("--distinct", type=count, default=400, help="images that differ; the rest are copies (400)")
    add("--samples", type=_pair, default=(8192, 16384), help="decoded and not decoded (8192,16384)")
    add("--shard-samples", type=count, default=512, help="in a shard of ours; the peers' are as large (512)")


def _store_options(parser: argparse.ArgumentParser) -> None:
    _image_options(parser)
    parser.add_argument("--only", type=words_of(FILE, S3), default=(FILE, S3), help="stores, of file,s3 (both)")


def _stream_options(parser: argparse.ArgumentParser) -> None:
    _store_options(parser)
    add = parser.add_argument
    add("--workers", type=counts, default=(1, 2), help="numbers of loader processes (1,2)")
    add("--shuffle", choices=("on", "off"), default="on", help="with each system's usual buffer (on)")
    add("--delivered", action="store_true", help="batches go to the main process, as tensors where decoded")
    add("--decoder", choices=("simplejpeg", "pillow"), default="simplejpeg", help="of the peers; ours keeps its own")


def _scale_options(parser: argparse.ArgumentParser) -> None:
    _options(parser)
    parser.add_argument("--shards", type=counts, default=(1_000, 100_000), help="numbers of shards (1000,100000)")
    parser.add_argument("--ranks", type=count, default=1024, help="for which steps are planned (1024)")


def _pair(text: str) -> tuple[int, ...]:
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
        "shuffle": Command(help="how well a dataset is mixed", measure=_shuffle),
    },
    reports=(
        Report(name="stream", whats=(stream.WHAT,), markdown=tables.stream, draw=plots.streams),
        Report(name="first", whats=(first.WHAT,), markdown=tables.first),
        Report(name="scale", whats=(scale.MEMORY, scale.MANIFEST, scale.PLAN), markdown=tables.scale),
        Report(name="decode", whats=(pictures.DECODERS.what,), markdown=tables.pictures),
        Report(name="resize", whats=(pictures.RESIZERS.what,), markdown=tables.pictures),
        Report(name="shuffle", whats=(mixing.WHAT,), markdown=tables.shuffle, draw=plots.shuffle),
    ),
    page="streaming-benchmarks.md",
    errors=(RuntimeError, HostError),
)
