"""Formats the measurements of the suite `shards` as Markdown tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness import tables
from benchmarks.harness.record import Measurement, grouped

from .host import OURS
from .scale import MEMORY, PLAN

Key = tuple[Any, ...]


def _with_reasons(parts: Callable[[Sequence[Measurement]], Iterable[str]]) -> Callable[[Sequence[Measurement]], str]:
    """Returns a function that joins the parts of a report and appends why measurements were skipped."""
    return lambda lines: "\n".join([*parts(lines), *tables.skipped(lines)])


@_with_reasons
def stream(lines: Sequence[Measurement]) -> Iterable[str]:
    """Yields tables of the rates and the CPU times, for each combination of store, shuffling and delivery of batches.

    Batches are delivered to the main process, or counted in the loader processes (see `stream_title`).
    """

    def column(line: Measurement) -> Key:
        return line.setting["decode"], line.setting["workers"]

    for title, here in grouped(lines, stream_title).items():
        columns = {
            (decode, workers): f"{'decoded' if decode else 'bytes'}, {workers} process{'es' if workers > 1 else ''}"
            for decode, workers in sorted(set(map(column, here)))
        }
        load = max(line.load_before or 0.0 for line in here)
        rounds = " or ".join(map(str, sorted({line.repetitions for line in here if line.repetitions})))
        yield f"#### {title}\n\n{here[0].device}, {rounds} rounds, load before {load:.1f}, {here[0].date}\n"
        yield "Samples per second (ours over it, in the same round)\n"
        yield _matrix(here, column, columns, lambda line: f"{line.median:,.0f}{_beside_ours(line, 'ours over it')}")
        yield "CPU seconds for 1,000 samples (ours over it)\n"
        yield _matrix(here, column, columns, _cpu)


def stream_title(line: Measurement) -> str:
    """Returns a text about the store, whether samples are shuffled, and whether batches go to the main process."""
    setting = line.setting
    where = {"file": "Local folder", "s3": "S3, nothing cached"}[setting["store"]]
    ends = "batches delivered to the main process" if setting["delivered"] else "batches counted where they are read"
    return f"{where}, shuffle {'on' if setting['shuffle'] else 'off'}, {ends}"


@_with_reasons
def first(lines: Sequence[Measurement]) -> Iterable[str]:
    """Yields a table of the times to the first batch, by store and by position in the epoch."""

    def column(line: Measurement) -> Key:
        return line.setting["store"], line.setting["position"] > 0

    names = {"file": "local folder", "s3": "S3"}
    columns = {
        (store, late): f"{names[store]}, {'at 90 % of the epoch' if late else 'begin'}"
        for store, late in sorted(set(map(column, lines)))
    }
    yield "Seconds to the first batch of 256, after the imports (from the start of the process)\n"
    yield _matrix(lines, column, columns, _opened)


@_with_reasons
def scale(lines: Sequence[Measurement]) -> Iterable[str]:
    """Yields two tables with a column for each number of shards.

    The first one has the memory of each library. The second one has the times to read our manifest, and to compute
    which samples each rank reads in a step.
    """
    columns = _columns(lines, "shards", "{:,} shards")
    readers = [line for line in lines if line.what == MEMORY]
    yield "Memory of a reader after four batches: USS above the imports (all of its RSS); seconds to its first batch\n"
    yield _matrix(readers, _setting("shards"), columns, _memory)
    yield (
        "Ours: seconds to read the manifest; seconds to compute which samples each rank reads in the first step (in "
        "brackets: in the next step)\n"
    )
    rest = [line for line in lines if line.what != MEMORY]
    yield _matrix(rest, _setting("shards"), columns, _plan_time, name=lambda line: line.what)


@_with_reasons
def pictures(lines: Sequence[Measurement]) -> Iterable[str]:
    """Yields a table of decoders or resizers by size of the images: their times, and how their pixels differ."""
    base = next(name for line in lines for name in line.ratios or ())
    yield f"Milliseconds an image on one core ({base}; greatest and mean difference to Pillow)\n"
    yield _matrix(lines, _setting("pixels"), _columns(lines, "pixels", "{} px"), _picture)


@_with_reasons
def shuffle(lines: Sequence[Measurement]) -> Iterable[str]:
    """Yields a table of the quality of each shuffle, by size of a shard."""
    yield (
        "Three numbers, each divided by that of a perfect shuffle: how often stored neighbours meet in a batch; the "
        "variance of the share of a class in a batch, for a dataset that is stored class by class; how far a sample "
        "moves\n"
    )
    yield _matrix(
        sorted(lines, key=lambda line: (line.contender, line.setting["size"])),
        _setting("shard_samples"),
        _columns(lines, "shard_samples", "shards of {:,}"),
        _mixed,
        name=lambda line: f"{line.contender}, {line.setting['kind']} {line.setting['size']:,}",
    )


def _setting(name: str) -> Callable[[Measurement], Any]:
    """Returns a function that returns the value `name` of the setting of a measurement."""
    return lambda line: line.setting[name]


def _columns(lines: Sequence[Measurement], name: str, title: str) -> dict[Any, str]:
    """Returns the column title of each value of the setting `name`, in ascending order; `title` is its format."""
    return {value: title.format(value) for value in sorted({line.setting[name] for line in lines})}


def _matrix(
    lines: Iterable[Measurement],
    column: Callable[[Measurement], Any],
    columns: Mapping[Any, str],
    cell: Callable[[Measurement], str],
    name: Callable[[Measurement], str] = tables.contender_of,
) -> str:
    """Returns a table like `tables.matrix`. The cell of a measurement that was skipped contains "skipped"."""

    def written(line: Measurement) -> str:
        return "skipped" if line.value is None else cell(line)

    return tables.matrix(lines, column, columns, written, name=name)


def _beside_ours(line: Measurement, name: str) -> str:
    """Returns the ratio `name` in parentheses; an empty text for our own measurement."""
    if line.contender == OURS.name:
        return ""
    return f" (x {line.ratios[name].median:.2f})" if line.ratios else " ()"


def _cpu(line: Measurement) -> str:
    return f"{line.spread_of('cpu_s_per_1000_samples').median:.3f}{_beside_ours(line, 'ours over it, CPU')}"


def _opened(line: Measurement) -> str:
    return f"{line.median:.2f} s ({line.spread_of('with_start_and_imports_s').median:.2f} s)"


def _memory(line: Measurement) -> str:
    grown, rss = line.median / 1e6, line.spread_of("rss_with_imports_bytes").median / 1e6
    return f"{grown:,.0f} MB ({rss:,.0f} MB); {line.spread_of('first_batch_s').median:.2f} s"


def _plan_time(line: Measurement) -> str:
    next_ = f" ({line.spread_of('next_step_s').median:.3f} s)" if line.what == PLAN else ""
    return f"{line.median:.3f} s{next_}"


def _picture(line: Measurement) -> str:
    assert line.more is not None, "a measured way to decode or resize has its differences"
    (ratio,) = (line.ratios or {}).values()
    apart = f"{line.more['greatest_difference']}, {line.more['mean_difference']:.2f}"
    return f"{line.median * 1e3:.3f} (x {ratio.median:.2f}; {apart})"


def _mixed(line: Measurement) -> str:
    return f"{line.median:,.1f} / {line.spread_of('classes').median:,.1f} / {line.spread_of('displacement').median:.2f}"
