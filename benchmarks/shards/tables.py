"""The records as Markdown, and as lines of a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.measurement import Spread
from benchmarks.harness.record import Line, insert

Cell = Callable[[Line], str]
Key = tuple[Any, ...]


def markdown(name: str, lines: Sequence[Line]) -> str:
    """All tables of a file of records, by its name without the ending."""
    return "\n".join([*_TABLES[name](lines), *_skipped(lines)])


def _stream(lines: Sequence[Line]) -> Iterable[str]:
    for place in _distinct(lines, _stream_place):
        here = [line for line in lines if _stream_place(line) == place]
        columns = {
            (decode, workers): f"{'decoded' if decode else 'bytes'}, {workers} process{'es' if workers > 1 else ''}"
            for decode, workers in sorted({(line.setting["decode"], line.setting["workers"]) for line in here})
        }
        load = max(line.load_before for line in here)
        yield f"#### {stream_title(here[0])}\n\n{here[0].device}, load before {load:.1f}, {here[0].date}\n"
        for title, cell in (
            ("Samples per second (ours over it, in the same round)", _rate),
            ("CPU seconds for 1,000 samples (ours over it)", _cpu),
        ):
            yield f"{title}\n"
            yield _matrix(here, lambda line: (line.setting["decode"], line.setting["workers"]), columns, cell)


def _stream_place(line: Line) -> Key:
    return tuple(line.setting[name] for name in ("store", "shuffle", "delivered"))


def stream_title(line: Line) -> str:
    setting = line.setting
    where = {"file": "Local folder", "s3": "S3, nothing cached"}[setting["store"]]
    ends = "batches delivered to the main process" if setting["delivered"] else "batches counted where they are read"
    return f"{where}, shuffle {'on' if setting['shuffle'] else 'off'}, {ends}"


def _first(lines: Sequence[Line]) -> Iterable[str]:
    def column(line: Line) -> Key:
        return line.setting["store"], line.setting["position"] > 0

    names = {"file": "local folder", "s3": "S3"}
    columns = {
        (store, late): f"{names[store]}, {'at 90 % of the epoch' if late else 'begin'}"
        for store, late in sorted({column(line) for line in lines})
    }
    yield "Seconds to the first batch of 256, after the imports (from the start of the process)\n"
    yield _matrix(lines, column, columns, lambda line: f"{_s(line)} ({_more(line, 'with_start_and_imports_s'):.2f} s)")


def _scale(lines: Sequence[Line]) -> Iterable[str]:
    columns = {number: f"{number:,} shards" for number in sorted({line.setting["shards"] for line in lines})}

    def column(line: Line) -> Any:
        return line.setting["shards"]

    readers = [line for line in lines if line.what == "memory of a reader"]
    yield "Memory of a reader after four batches: USS above the imports (all of its RSS); seconds to its first batch\n"
    yield _matrix(readers, column, columns, _memory)
    yield "Ours: seconds for the manifest, and for the sample ids of every rank's step (of the step behind it)\n"
    rest = [line for line in lines if line.what != "memory of a reader"]
    yield _matrix(rest, column, columns, _plan_time, row=lambda line: line.what)


def _pictures(lines: Sequence[Line]) -> Iterable[str]:
    columns = {size: f"{size} px" for size in sorted({line.setting["pixels"] for line in lines})}
    base = next(name for line in lines for name in line.ratios or ())
    yield f"Milliseconds an image on one core ({base}; greatest and mean difference to Pillow)\n"
    yield _matrix(lines, lambda line: line.setting["pixels"], columns, _picture)


def _shuffle(lines: Sequence[Line]) -> Iterable[str]:
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
        row=lambda line: f"{line.contender}, {line.setting['kind']} {line.setting['size']:,}",
    )


_TABLES: Mapping[str, Callable[[Sequence[Line]], Iterable[str]]] = {
    "stream": _stream,
    "first": _first,
    "scale": _scale,
    "decode": _pictures,
    "resize": _pictures,
    "shuffle": _shuffle,
}


def _matrix(
    lines: Iterable[Line],
    column: Callable[[Line], Any],
    columns: Mapping[Any, str],
    cell: Cell,
    row: Callable[[Line], str] = lambda line: line.contender,
) -> str:
    """Rows in the order of their first lines."""
    table: dict[str, dict[Any, str]] = {}
    for line in lines:
        table.setdefault(row(line), {})[column(line)] = "skipped" if line.value is None else cell(line)
    body = ([name, *(cells.get(each, "") for each in columns)] for name, cells in table.items())
    rule = ["---", *("---:" for _ in columns)]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in (["", *columns.values()], rule, *body)), ""])


def _distinct(lines: Iterable[Line], key: Callable[[Line], Key]) -> list[Key]:
    return list(dict.fromkeys(map(key, lines)))


def _skipped(lines: Iterable[Line]) -> Iterable[str]:
    reasons = dict.fromkeys(f"- {line.contender}: {line.skipped}" for line in lines if line.skipped)
    return ["Skipped:\n", *reasons, ""] if reasons else []


def _median(line: Line) -> float:
    assert line.value is not None, "only measured lines get here"
    return line.value.median


def _ratio(line: Line, name: str) -> str:
    return "" if line.ratios is None else _times(line.ratios[name])


def _times(ratio: Spread) -> str:
    return f"x {ratio.median:.2f}"


def _more(line: Line, name: str) -> float:
    assert line.more is not None, "only lines that have more get here"
    value = line.more[name]
    return value.median if isinstance(value, Spread) else value["median"]


def _is_ours(line: Line) -> bool:
    return line.contender == "emocap_shards"


def _rate(line: Line) -> str:
    return f"{_median(line):,.0f}" + ("" if _is_ours(line) else f" ({_ratio(line, 'ours over it')})")


def _cpu(line: Line) -> str:
    ratio = "" if _is_ours(line) else f" ({_ratio(line, 'ours over it, CPU')})"
    return f"{_more(line, 'cpu_s_per_1000_samples'):.3f}{ratio}"


def _s(line: Line) -> str:
    return f"{_median(line):.2f} s"


def _memory(line: Line) -> str:
    grown, rss = _median(line) / 1e6, _more(line, "rss_with_imports_bytes") / 1e6
    return f"{grown:,.0f} MB ({rss:,.0f} MB); {_more(line, 'first_batch_s'):.2f} s"


def _plan_time(line: Line) -> str:
    more = line.more or {}
    return f"{_median(line):.3f} s" + (f" ({_more(line, 'next_step_s'):.3f} s)" if "next_step_s" in more else "")


def _picture(line: Line) -> str:
    assert line.more is not None, "a measured way to decode or resize has its differences"
    (ratio,) = (line.ratios or {}).values()
    apart = f"{line.more['greatest_difference']}, {line.more['mean_difference']:.2f}"
    return f"{_median(line) * 1e3:.3f} ({_times(ratio)}; {apart})"


def _mixed(line: Line) -> str:
    return f"{_median(line):,.1f} / {_more(line, 'classes'):,.1f} / {_more(line, 'displacement'):.2f}"


def progress(line: Line) -> str:
    """One line of at most 79 characters."""
    at = " ".join(f"{name[:5]}={_short(value)}" for name, value in line.setting.items() if name in _SHOWN)
    if line.value is None:
        return f"{line.contender:<18} {at} skipped: {line.skipped}"[:79]
    ratio = "" if not line.ratios or _is_ours(line) else f" {_times(next(iter(line.ratios.values())))}"
    return f"{line.contender:<18} {line.value.median:>10.4g} {line.unit[:12]}{ratio} {at}"[:79]


_SHOWN = ("store", "decode", "workers", "position", "shards", "pixels", "shard_samples", "size")


def _short(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def refresh(document: Path, records: Mapping[str, Sequence[Line]]) -> None:
    """Writes the tables of all these files of records into a document."""
    text = document.read_text()
    for name, lines in records.items():
        text = insert(text, name, markdown(name, lines))
    document.write_text(text)
