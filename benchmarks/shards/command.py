"""The command line."""

import argparse
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from benchmarks.harness import record
from benchmarks.harness.measurement import REPOSITORY
from benchmarks.harness.record import Line, Occasion, occasion

from . import first, mixing, pictures, plots, scale, stream, tables
from .dataset import Datasets, Wanted, faces, prepare
from .host import HostError, Pythons
from .place import FILE, S3, Place, local, served, uploaded

_RECORDS = REPOSITORY / "docs" / "benchmarks"
_PAGE = REPOSITORY / "docs" / "streaming-benchmarks.md"
_TEMPORARY = Path(gettempdir())
_MEASURES = ("stream", "first", "scale", "decode", "resize", "shuffle")


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    try:
        _run(options)
    except (OSError, ValueError, RuntimeError, HostError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "table":
        _tables(options)
    elif options.command == "plot":
        for name, lines in _records(options.out).items():
            for path in plots.draw(name, lines, options.out):
                _say(str(path))
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    about = occasion("benchmarks")
    target = options.out / f"{options.command}.jsonl"
    _say(f"{about.device}; load {about.load_before:.2f} before; records go to {target}")
    lines = {
        "stream": _stream,
        "first": _first,
        "scale": _scale,
        "decode": _pictures,
        "resize": _pictures,
        "shuffle": _shuffle,
    }[options.command]
    found: list[Line] = []
    for each in lines(options, about):
        record.append(target, [each])
        found.append(each)
        _say(tables.progress(each))
    _say("\n" + tables.markdown(options.command, found))


def _stream(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
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


def _first(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
    pythons = _pythons(options)
    dataset = prepare(replace(_wanted(options), samples=options.samples[0]), options.work, pythons)
    for store in options.only:
        with _place(store, options.work) as place_of:
            yield from first.measure(dataset, place_of(dataset), pythons, options.rounds, about)


def _scale(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
    pythons = _pythons(options)
    one = Wanted(images=None, distinct=64, samples=64, shard_samples=64, pixels=112)
    plan = scale.Plan(shards=options.shards, ranks=options.ranks, rounds=options.rounds)
    yield from scale.measure(plan, prepare(one, options.work, pythons), options.work, pythons, about)


def _pictures(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
    module, sizes = ("decoders", (112, 256, 1024)) if options.command == "decode" else ("resizers", (256, 1024))
    pool = faces(replace(_wanted(options), distinct=min(options.distinct, 150)))
    yield from pictures.measure(module, pool, sizes, options.work, _pythons(options), options.rounds, about)


def _shuffle(options: argparse.Namespace, about: Occasion) -> Iterator[Line]:
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
        _say(f"no peers in {options.peers}: ours alone (bash benchmarks/shards/peers.sh makes them)")
    return pythons


def _wanted(options: argparse.Namespace) -> Wanted:
    return Wanted(
        images=options.images,
        distinct=options.distinct,
        samples=options.samples[0],
        shard_samples=options.shard_samples,
        pixels=256,
    )


def _records(folder: Path) -> dict[str, list[Line]]:
    paths = {name: folder / f"{name}.jsonl" for name in _MEASURES}
    return {name: record.read(path) for name, path in paths.items() if path.exists()}


def _tables(options: argparse.Namespace) -> None:
    records = _records(options.out)
    if options.write:
        tables.refresh(_PAGE, records)
        _say(str(_PAGE))
        return
    for name, lines in records.items():
        _say(f"## {name}\n\n{tables.markdown(name, lines)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks shards",
        description="Measures how samples are read beside webdataset, mosaicml-streaming and litdata.",
    )
    add = parser.add_argument
    add("command", choices=(*_MEASURES, "plot", "table"))
    add("--only", type=_stores, default=(FILE, S3), help="stores, of file,s3; both by default")
    add("--rounds", type=_count, default=5, help="of which median and spread are taken (5)")
    add("--workers", type=_numbers, default=(1, 2), help="numbers of loader processes (1,2)")
    add("--shuffle", choices=("on", "off"), default="on", help="with each system's usual buffer (on)")
    add("--delivered", action="store_true", help="batches go to the main process, as tensors where decoded")
    add("--decoder", choices=("simplejpeg", "pillow"), default="simplejpeg", help="of the peers; ours keeps its own")
    add("--images", type=Path, help="a folder of JPEG files; by default faces are drawn, 256 px")
    add("--distinct", type=_count, default=400, help="images that differ; the rest are copies (400)")
    add("--samples", type=_pair, default=(8192, 16384), help="decoded and not decoded (8192,16384)")
    add("--shard-samples", type=_count, default=512, help="in a shard of ours; the peers' are as large (512)")
    add("--shards", type=_numbers, default=(1_000, 100_000), help="of scale (1000,100000)")
    add("--ranks", type=_count, default=1024, help="of scale (1024)")
    add("--peers", type=Path, default=_TEMPORARY / "peer-venv", help="what peers.sh made")
    add("--work", type=Path, default=_TEMPORARY / "emocap-shard-benchmarks", help="datasets and caches, some 2 GB")
    add("--out", type=Path, default=_RECORDS, help="the folder of the records and figures")
    add("--write", action="store_true", help="table: into docs/streaming-benchmarks.md")
    return parser


def _stores(text: str) -> tuple[str, ...]:
    for word in (words := tuple(text.split(","))):
        if word not in {FILE, S3}:
            raise argparse.ArgumentTypeError(f"{word} is neither {FILE} nor {S3}")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in text.split(","))


def _pair(text: str) -> tuple[int, ...]:
    if len(numbers := _numbers(text)) != 2:
        raise argparse.ArgumentTypeError(f"{text} must be two numbers, as 8192,16384")
    return numbers


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
