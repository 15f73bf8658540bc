"""Formats the measurements of the suite `cluster` as Markdown tables."""

from collections.abc import Sequence

from benchmarks.harness.record import Measurement
from benchmarks.harness.tables import matrix, table
from emocap_pretrain.dry_run.outlook import duration

from . import model, validate

# The intervals that the table of goodput shows, as multiples of Daly's interval. The figure shows more of them.
_SHOWN_TIMES_DALY = (1 / 4, 1.0, 4.0, 16.0)


def scaling(lines: Sequence[Measurement]) -> str:
    """Returns a table of weak scaling: a row for each number of ranks, a column for each objective and network."""

    def group(line: Measurement) -> tuple[str, str]:
        return line.setting["objective"], line.contender

    return matrix(
        sorted(lines, key=lambda line: line.setting["ranks"]),
        group,
        {group(line): ", ".join(group(line)) for line in lines},
        _scaled,
        name=lambda line: f"{line.setting['ranks']:,}",
        corner="ranks",
    )


def _scaled(line: Measurement) -> str:
    """Returns the text of a cell: the efficiency, and the time of a step.

    The cell also contains the percentages of this time that the loss and the network take.
    """
    more = line.more or {}
    network = (more["vectors_s"] + more["gradients_s"]) / more["step_s"]
    parts = f"loss {more['loss_s'] / more['step_s']:.0%}, network {network:.0%}"
    return f"{line.median:.0%} ({duration(more['step_s'])}; {parts})"


def goodput(lines: Sequence[Measurement]) -> str:
    """Returns a table of the goodput, with a row for each rate of failures and interval between saves.

    Goodput is the share of the time of all nodes that is spent on work which a committed checkpoint contains.
    One column has the goodput by the formula. There is another column for each simulated policy, which says how the job
    continues after a failure. Only some of the intervals are shown.
    """
    whos = (model.FORMULA, model.SIMULATED, model.CONTINUES, model.WAITS)
    found = {(line.contender, line.at): line for line in lines}
    rows: list[list[str]] = []
    for first in (line for line in lines if line.contender == model.FORMULA):
        days, interval_s = first.setting["node_mtbf_days"], first.setting["interval_s"]
        times = interval_s / (first.more or {})["daly_s"]
        if any(abs(times / each - 1) < 0.02 for each in _SHOWN_TIMES_DALY):
            best = " (Daly)" if abs(times - 1) < 0.02 else ""
            shares = [f"{found[who, first.at].median:.2%}" if (who, first.at) in found else "" for who in whos]
            rows.append([f"{days:g} days", f"{duration(interval_s)}{best}", *shares])
    return table(["a node fails every", "interval", *whos], rows)


def validation(lines: Sequence[Measurement]) -> str:
    """Returns a table of the predicted and the measured time of a step for each model."""
    found = {(line.setting["name"], line.contender): line for line in lines}
    rows: list[list[str]] = []
    for name in dict.fromkeys(line.setting["name"] for line in lines):
        predicted, measured = found[name, validate.PREDICTED], found[name, validate.MEASURED]
        (over,) = (predicted.ratios or {}).values()
        times = [predicted.median, measured.median, measured.spread_of("one_rank_alone_s").median]
        before, after, alone = map(duration, times)
        rows.append([name, before, after, f"{over.median:.2f}", alone])
    return table(["", "model", "measured", "model over measured", "one rank alone"], rows)


def small_jobs(lines: Sequence[Measurement]) -> str:
    """Returns a table of the times of starts, steps, saves and restarts of small jobs."""
    rows: list[list[str]] = []
    for line in lines:
        value, setting = line.spread_of("value"), line.setting
        quartiles = f"{duration(value.low_quartile)} to {duration(value.high_quartile)}"
        towers = f"{setting['depth']} x {setting['width']}" if "depth" in setting else "none"
        over = "; ".join(
            f"{name}: {ratio.median:.3f} ({ratio.low_quartile:.3f} to {ratio.high_quartile:.3f})"
            for name, ratio in (line.ratios or {}).items()
        )
        rows.append([line.what, line.contender, str(setting["ranks"]), towers, duration(value.median), quartiles, over])
    return table(["", "by", "ranks", "towers", "median", "quartiles", "ratio (quartiles)"], rows)
