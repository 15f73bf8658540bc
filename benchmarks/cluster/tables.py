"""The records as Markdown, and as lines of a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.record import Line, insert
from emocap_pretrain.forecast.outlook import duration

from . import model, validate

# The figure has more of them.
_SHOWN_TIMES_DALY = (1 / 4, 1.0, 4.0, 16.0)


def markdown(name: str, lines: Sequence[Line]) -> str:
    """The table of a file of records, by its name without the ending."""
    return "\n".join(_TABLES[name](lines)) + "\n"


def refresh(document: Path, records: Mapping[str, Sequence[Line]]) -> None:
    """Write the tables of all these files of records into a document."""
    text = document.read_text()
    for name, lines in records.items():
        text = insert(text, name, markdown(name, lines))
    document.write_text(text)


def progress(line: Line) -> str:
    """One line of at most 79 characters."""
    at = " ".join(f"{name[:6]}={value}" for name, value in line.setting.items())
    return f"{line.contender[:18]:<18} {_median(line):>8.4g} {at}"[:79]


def _scaling(lines: Sequence[Line]) -> Iterable[str]:
    groups = list(dict.fromkeys((line.setting["objective"], line.contender) for line in lines))
    yield from _head("ranks", [f"{objective}, {fabric}" for objective, fabric in groups])
    found = {(line.setting["objective"], line.contender, line.setting["ranks"]): line for line in lines}
    for ranks in sorted({line.setting["ranks"] for line in lines}):
        yield _row(f"{ranks:,}", [_scaled(found[(*group, ranks)]) for group in groups])


def _scaled(line: Line) -> str:
    more = line.more or {}
    network = (more["vectors_s"] + more["gradients_s"]) / more["step_s"]
    parts = f"loss {more['loss_s'] / more['step_s']:.0%}, network {network:.0%}"
    return f"{_median(line):.0%} ({duration(more['step_s'])}; {parts})"


def _goodput(lines: Sequence[Line]) -> Iterable[str]:
    whos = (model.FORMULA, model.SIMULATED, model.GOES_ON, model.WAITS)
    yield from _head("a node fails every", ["interval", *whos])
    found = {(line.contender, *line.at[2:3]): line for line in lines}
    for first in (line for line in lines if line.contender == model.FORMULA):
        days, interval_s = first.setting["node_mtbf_days"], first.setting["interval_s"]
        times = interval_s / (first.more or {})["daly_s"]
        if not any(abs(times / each - 1) < 0.02 for each in _SHOWN_TIMES_DALY):
            continue
        best = " (Daly)" if abs(times - 1) < 0.02 else ""
        shares = [_percent(found.get((who, first.at[2]))) for who in whos]
        yield _row(f"{days:g} days", [f"{duration(interval_s)}{best}", *shares])


def _validate(lines: Sequence[Line]) -> Iterable[str]:
    yield from _head("", ["model", "measured", "model over measured", "one rank alone"])
    found = {(line.setting["name"], line.contender): line for line in lines}
    for name in dict.fromkeys(line.setting["name"] for line in lines):
        said, seen = found[name, validate.PREDICTED], found[name, validate.MEASURED]
        (over,) = (said.ratios or {}).values()
        alone = (seen.more or {})["one_rank_alone_s"]["median"]
        yield _row(name, [_s(said), _s(seen), f"{over.median:.2f}", duration(alone)])


def _measured(lines: Sequence[Line]) -> Iterable[str]:
    yield from _head("", ["by", "ranks", "towers", "median", "quartiles", "ratio (quartiles)"])
    for each in lines:
        value = each.value
        assert value is not None, "nothing is skipped"
        quartiles = f"{duration(value.low_quartile)} to {duration(value.high_quartile)}"
        towers = f"{each.setting['depth']} x {each.setting['width']}" if "depth" in each.setting else "none"
        over = [
            f"{name}: {ratio.median:.3f} ({ratio.low_quartile:.3f} to {ratio.high_quartile:.3f})"
            for name, ratio in (each.ratios or {}).items()
        ]
        yield _row(
            each.what, [each.contender, str(each.setting["ranks"]), towers, _s(each), quartiles, "; ".join(over)]
        )


_TABLES: Mapping[str, Callable[[Sequence[Line]], Iterable[str]]] = {
    "scaling": _scaling,
    "goodput": _goodput,
    "cluster-model": _validate,
    "cluster": _measured,
}
NAMES = tuple(_TABLES)
# Which file a measurement goes to, by its command.
FILES = {
    "validate": "cluster-model",
    "start": "cluster",
    "overhead": "cluster",
    "stall": "cluster",
    "recover": "cluster",
    "restarts": "cluster",
}


def _head(first: str, columns: Sequence[str]) -> Iterable[str]:
    return [_row(first, columns), _row("---", ["---:"] * len(columns))]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def _median(line: Line) -> float:
    assert line.value is not None, "nothing is skipped"
    return line.value.median


def _percent(line: Line | None) -> str:
    return "" if line is None else f"{_median(line):.2%}"


def _s(line: Line) -> str:
    return duration(_median(line))
