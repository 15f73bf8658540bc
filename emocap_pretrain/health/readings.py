"""The metrics of a row from what every rank measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from emocap_pretrain.health.stragglers import Report
from emocap_pretrain.health.timing import SECTIONS


def metrics(ranks: Sequence[Mapping[str, float]], report: Report | None) -> dict[str, float]:
    """Rates are of the whole job; memory is the largest of a rank; a section has its mean and its slowest rank.

    Args:
        ranks: In rank order, each with `meter.OWN` and the seconds of `SECTIONS`.
        report: Of the slowest rank, where there are several.
    """
    seconds = max(each["seconds"] for each in ranks)
    step_s = seconds / max(1.0, ranks[0]["steps"])
    row = {
        "samples_per_s": sum(each["samples"] for each in ranks) / seconds,
        "text_tokens_per_s": sum(each["tokens"] for each in ranks) / seconds,
        "data_wait_share": fmean(each["data"] for each in ranks) / step_s,
        "memory_gib": max(each["memory_gib"] for each in ranks),
        "time/step_s": step_s,
    }
    for name in SECTIONS:
        row[f"time/{name}_s"] = fmean(each[name] for each in ranks)
        row[f"time/{name}_s_slowest"] = max(each[name] for each in ranks)
    if any(each["device_memory_gib"] for each in ranks):
        row["device_memory_gib"] = max(each["device_memory_gib"] for each in ranks)
        row["device_utilization"] = fmean(each["device_utilization"] for each in ranks)
        row["device_utilization_lowest"] = min(each["device_utilization"] for each in ranks)
    if report:
        row |= {"straggler_rank": float(report.rank), "straggler_factor": report.factor}
    return row
