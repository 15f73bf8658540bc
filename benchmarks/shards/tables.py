"""The records as Markdown, and as lines of a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness import tables
from benchmarks.harness.record import Measurement, Spread

from .host import OURS
from .scale import MEMORY, PLAN

Cell = Callable[[Measurement], str]
Table = Callable[[Sequence[Measurement]], str]
Key = tuple[Any, ...]


def _with_reasons(parts: Callable[[Sequence[Measurement]], Iterable[str]]) -> Table:
    """Appends why contenders were skipped."""
    return lambda lines: "\n".join([*parts(lines), *tables.skipped(lines)])


@_with_reasons
def stream(lines: Sequence[Measurement]) -> Iterable[str]:
    for place in dict.fromkeys(map(_stream_place, lines)):
        here = [line for line in lines if _stream_place(line) == place]
        columns = {
            (decode, workers): f"{'decoded' if decode else 'bytes'}, {workers} process{'es' if workers > 1 else ''}"
            for decode, workers in sorted({(line.setting["decode"], line.setting["workers"]) for line in here})
        }
        load = max(line.load_before or 0.0 for line in here)
        yield f"#### {stream_title(here[0])}\n\n{here[0].device}, load before {load:.1f}, {here[0].date}\n"
        for title, cell in (
            ("Samples per second (ours over it, in the same round)", _rate),
            ("CPU seconds for 1,000 samples (ours over it)", _cpu),
        ):
            yield f"{title}\n"
            yield _matrix(here, lambda line: (line.setting["decode"], line.setting["workers"]), columns, cell)


def _stream_place(line: Measurement) -> Key:
    return tuple(line.setting[name] for name in ("store", "shuffle", "delivered"))


def stream_title(line: Measurement) -> str:
    setting = line.setting
    where = {"file": "Local folder", "s3": "S3, nothing cached"}[setting["store"]]
    ends = "batches delivered to the main process" if setting["delivered"] else "batches counted where they are read"
    return f"{where}, shuffle {'on' if setting['shuffle'] else 'off'}, {ends}"


@_with_reasons
def first(lines: Sequence[Measurement]) -> Iterable[str]:
    def column(line: Measurement) -> Key:
        return line.setting["store"], line.setting["position"] > 0

    names = {"file": "local folder", "s3": "S3"}
    columns = {
        (store, late): f"{names[store]}, {'at 90 % of the epoch' if late else 'begin'}"
        for store, late in sorted({column(line) for line in lines})
    }
    yield "Seconds to the first batch of 256, after the imports (from the start of the process)\n"
    yield _matrix(lines, column, columns, _opened)


@_with_reasons
def scale(lines: Sequence[Measurement]) -> Iterable[str]:
    columns = {number: f"{number:,} shards" for number in sorted({line.setting["shards"] for line in lines})}

    def column(line: Measurement) -> Any:
        return line.setting["shards"]

    readers = [line for line in lines if line.what == MEMORY]
    yield "Memory of a reader after four batches: USS above the imports (all of its RSS); seconds to its first batch\n"
    yield _matrix(readers, column, columns, _memory)
    yield "Ours: seconds for the manifest, and for the sample ids of every rank's step (of the step after it)\n"
    rest = [line for line in lines if line.what != MEMORY]
    yield _matrix(rest, column, columns, _plan_time, name=lambda line: line.what)


@_with_reasons
def pictures(lines: Sequence[Measurement]) -> Iterable[str]:
    columns = {size: f"{size} px" for size in sorted({line.setting["pixels"] for line in lines})}
    base = next(name for line in lines for name in line.ratios or ())
    yield f"Milliseconds an image on one core ({base}; greatest and mean difference to Pillow)\n"
    yield _matrix(lines, lambda line: line.setting["pixels"], columns, _picture)


@_with_reasons
def shuffle(lines: Sequence[Measurement]) -> Iterable[str]:
    yield (
        "Times what a perfect shuffle has: how often stored neighbours meet in a batch / variance of the share of a "
        "class in a batch, stored class by class / mean displacement\n"
    )
    columns = {each: f"shards of {each:,}" for each in sorted({line.setting["shard_samples"] for line in lines})}
    yield _matrix(
        sorted(lines, key=lambda line: (line.contender, line.setting["size"])),
        lambda line: line.setting["shard_samples"],
        columns,
        _mixed,
        name=lambda line: f"{line.contender}, {line.setting['kind']} {line.setting['size']:,}",
    )


def _matrix(
    lines: Iterable[Measurement],
    column: Callable[[Measurement], Any],
    columns: Mapping[Any, str],
    cell: Cell,
    name: Callable[[Measurement], str] = lambda line: line.contender,
) -> str:
    def written(line: Measurement) -> str:
        return "skipped" if line.value is None else cell(line)

    return tables.matrix(lines, column, columns, written, name=name)


def _ratio(line: Measurement, name: str) -> str:
    return "" if line.ratios is None else _times(line.ratios[name])


def _times(ratio: Spread) -> str:
    return f"x {ratio.median:.2f}"


def _is_ours(line: Measurement) -> bool:
    return line.contender == OURS.name


def _rate(line: Measurement) -> str:
    return f"{line.median:,.0f}" + ("" if _is_ours(line) else f" ({_ratio(line, 'ours over it')})")


def _cpu(line: Measurement) -> str:
    ratio = "" if _is_ours(line) else f" ({_ratio(line, 'ours over it, CPU')})"
    return f"{line.spread_of('cpu_s_per_1000_samples').median:.3f}{ratio}"


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
    return f"{line.median * 1e3:.3f} ({_times(ratio)}; {apart})"


def _mixed(line: Measurement) -> str:
    return f"{line.median:,.1f} / {line.spread_of('classes').median:,.1f} / {line.spread_of('displacement').median:.2f}"
