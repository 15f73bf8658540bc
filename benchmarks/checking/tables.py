"""Formats the records of the checks as tables."""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.record import Measurement
from benchmarks.harness.tables import table
from emocap_pretrain.checking.movements import CODES

from . import falsified, voted
from .falsifier import KINDS

_FOUND = ["sentences", "false", "no score", "precision", "recall", "recall, if judged", "AUC"]
_BELOW = ["sentences", "no score", "no claim found", "below 0.5", "below 0.2"]


def falsified_markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table by region, one by kind, and one of the shares below 0.5 by kind and region."""
    found = [line for line in lines if line.what == falsified.FOUND]
    below = {(line.setting["region"], line.setting["kind"]): line for line in lines if line.what == falsified.BELOW}
    regions = [line.setting["region"] for line in found]
    kinds = [kind for kind in KINDS if ("all", kind) in below]
    return "\n".join(
        [
            table(["kind", *_BELOW], ([_words(kind), *_below(below["all", kind])] for kind in kinds)),
            table(["region", *_FOUND], ([line.setting["region"], *_found(line)] for line in found)),
            "Share below 0.5 of the sentences with a score (number of these):\n",
            table(
                ["region", *map(_words, kinds)],
                ([region, *(_cell(below.get((region, kind))) for kind in kinds)] for region in regions),
            ),
        ]
    )


def voted_markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table by action unit, and one by action unit, emotion and kind."""
    found = [line for line in lines if line.what == voted.FOUND]
    below = [line for line in lines if line.what == voted.BELOW]
    rows = ([_unit(line), line.setting["votes"], _said(line), *_below(line)] for line in below)
    return "\n".join(
        [
            table(["unit", *_FOUND], ([_unit(line), *_found(line)] for line in found)),
            table(["unit", "votes for", "the sentence", *_BELOW], rows),
        ]
    )


def _unit(line: Measurement) -> str:
    unit = str(line.setting["unit"])
    return f"{unit}, {_words(CODES[int(unit.removeprefix('AU'))])}"


def _said(line: Measurement) -> str:
    """Returns whether the sentence claims or denies the unit, and whether this is true."""
    is_true, is_shown = line.setting["kind"] == "true", line.setting["votes"] in voted.SHOWN
    return f"{'claims' if is_true == is_shown else 'denies'} it ({'true' if is_true else 'false'})"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _found(line: Measurement) -> list[str]:
    more: Any = line.more or {}
    precision = line.skipped or f"{_percent(line.median)} {_range(more['precision_interval'])}"
    recall = f"{_percent(more['recall'])} {_range(more['recall_interval'])}"
    area, bounds = more.get("auc"), more.get("auc_interval")
    auc = "-" if area is None else f"{area:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")
    return [*_counts(more), precision, recall, _percent(more["recall_of_judged"]), auc]


def _counts(more: Any) -> list[str]:
    return [f"{more['sentences']:,}", _percent(more["false"]), _percent(more["abstained"])]


def _below(line: Measurement) -> list[str]:
    more: Any = line.more or {}
    share = "-" if line.skipped else f"{_percent(line.median)} {_range(more['interval'])}"
    about = [f"{more['sentences']:,}", _percent(more["abstained"]), _percent(more["without_claim"])]
    return [*about, share, _percent(more["below_0.2"])]


def _cell(line: Measurement | None) -> str:
    if line is None or line.skipped:
        return "-"
    more: Any = line.more or {}
    return f"{_percent(line.median)} ({round(more['sentences'] * (1 - more['abstained'])):,})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _range(bounds: Sequence[float] | None) -> str:
    return f"[{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]" if bounds else ""
