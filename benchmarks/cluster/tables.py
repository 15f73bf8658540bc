"""The records as Markdown, and as lines of a terminal."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.harness.record import Measurement
from benchmarks.harness.tables import head, row
from emocap_pretrain.dry_run.outlook import duration

from . import model, validate

Rows = Callable[[Sequence[Measurement]], Iterable[str]]

# The figure has more of them.
_SHOWN_TIMES_DALY = (1 / 4, 1.0, 4.0, 16.0)


def _table(rows: Rows) -> Callable[[Sequence[Measurement]], str]:
    return lambda lines: "\n".join([*rows(lines), ""])


@_table
def scaling(lines: Sequence[Measurement]) -> Iterable[str]:
    groups = list(dict.fromkeys((line.setting["objective"], line.contender) for line in lines))
    yield from head(["ranks", *(f"{objective}, {fabric}" for objective, fabric in groups)])
    found = {(line.setting["objective"], line.contender, line.setting["ranks"]): line for line in lines}
    for ranks in sorted({line.setting["ranks"] for line in lines}):
        yield row([f"{ranks:,}", *(_scaled(found[(*group, ranks)]) for group in groups)])


def _scaled(line: Measurement) -> str:
    more = line.more or {}
    network = (more["vectors_s"] + more["gradients_s"]) / more["step_s"]
    parts = f"loss {more['loss_s'] / more['step_s']:.0%}, network {network:.0%}"
    return f"{line.median:.0%} ({duration(more['step_s'])}; {parts})"


@_table
def goodput(lines: Sequence[Measurement]) -> Iterable[str]:
    whos = (model.FORMULA, model.SIMULATED, model.GOES_ON, model.WAITS)
    yield from head(["a node fails every", "interval", *whos])
    found = {(line.contender, line.at): line for line in lines}
    for first in (line for line in lines if line.contender == model.FORMULA):
        days, interval_s = first.setting["node_mtbf_days"], first.setting["interval_s"]
        times = interval_s / (first.more or {})["daly_s"]
        if not any(abs(times / each - 1) < 0.02 for each in _SHOWN_TIMES_DALY):
            continue
        best = " (Daly)" if abs(times - 1) < 0.02 else ""
        shares = [_percent(found.get((who, first.at))) for who in whos]
        yield row([f"{days:g} days", f"{duration(interval_s)}{best}", *shares])


@_table
def validation(lines: Sequence[Measurement]) -> Iterable[str]:
    yield from head(["", "model", "measured", "model over measured", "one rank alone"])
    found = {(line.setting["name"], line.contender): line for line in lines}
    for name in dict.fromkeys(line.setting["name"] for line in lines):
        said, seen = found[name, validate.PREDICTED], found[name, validate.MEASURED]
        (over,) = (said.ratios or {}).values()
        alone = seen.spread_of("one_rank_alone_s").median
        yield row([name, _s(said), _s(seen), f"{over.median:.2f}", duration(alone)])


@_table
def small_jobs(lines: Sequence[Measurement]) -> Iterable[str]:
    yield from head(["", "by", "ranks", "towers", "median", "quartiles", "ratio (quartiles)"])
    for each in lines:
        value = each.spread_of("value")
        quartiles = f"{duration(value.low_quartile)} to {duration(value.high_quartile)}"
        towers = f"{each.setting['depth']} x {each.setting['width']}" if "depth" in each.setting else "none"
        over = [
            f"{name}: {ratio.median:.3f} ({ratio.low_quartile:.3f} to {ratio.high_quartile:.3f})"
            for name, ratio in (each.ratios or {}).items()
        ]
        yield row([each.what, each.contender, str(each.setting["ranks"]), towers, _s(each), quartiles, "; ".join(over)])


def _percent(line: Measurement | None) -> str:
    return "" if line is None else f"{line.median:.2%}"


def _s(line: Measurement) -> str:
    return duration(line.median)
