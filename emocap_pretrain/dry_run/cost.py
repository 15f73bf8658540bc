"""Computes the hours and the cost of a run on several numbers of nodes, for `--dry-run --price`.

The run keeps its global batch and its steps, so each rank has fewer rows on more nodes. The time of the towers is
assumed to be proportional to the rows of a rank. This is too optimistic for a few rows, which do not fill a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from emocap_pretrain.dry_run.failures import goodput
from emocap_pretrain.dry_run.outlook import Outlook, Row, duration
from emocap_pretrain.dry_run.step import Speed, step_time

NODES = (1, 4, 16)
HOUR_S = 3600.0


def cost_rows(outlook: Outlook, *, steps: int, global_batch: int, price: float, device: str) -> list[Row]:
    """Returns a row of `--dry-run` for each number of nodes: the duration of the run, and its cost.

    The time that failures cost is included. The start, evaluations and waiting for data are not.

    Args:
        outlook: The forecast of the run.
        steps: Number of steps of the run.
        global_batch: Samples of a step over all ranks.
        price: Price of one device for an hour, in any currency.
        device: What a rank uses, such as "GPU".
    """
    if outlook.speed is None:
        return [("cost", "unknown here: give --step-seconds, of one rank alone")]
    rows = list(_lines(outlook, outlook.speed, steps, global_batch, price, device))
    return [("" if number else "cost", row) for number, row in enumerate(rows)]


def _lines(outlook: Outlook, speed: Speed, steps: int, global_batch: int, price: float, device: str) -> Iterator[str]:
    for nodes in NODES:
        ranks = nodes * outlook.fabric.ranks_per_node
        where = f"{nodes} node{'s' if nodes > 1 else ''}, {ranks} {device}{'s' if ranks > 1 else ''}"
        if ranks > global_batch:
            yield f"{where}: more ranks than the {global_batch} samples of a batch"
            continue
        seconds = run_s(outlook, speed, ranks, steps=steps, global_batch=global_batch)
        if math.isinf(seconds):
            yield f"{where}: failures would leave no time for new work"
            continue
        yield f"{where}: {duration(seconds)}, cost {seconds / HOUR_S * ranks * price:,.2f}"


def run_s(outlook: Outlook, speed: Speed, ranks: int, *, steps: int, global_batch: int) -> float:
    """Returns the seconds of the whole run on `ranks` ranks, including the time that failures cost.

    The result is infinite if failures are so frequent that no new work is done.
    """
    rows = -(-global_batch // ranks)  # The rank with the most rows decides.
    work = replace(outlook.work, rows=rows)
    towers_s = speed.towers_s * rows / outlook.work.rows
    step_s = step_time(work, ranks, replace(speed, towers_s=towers_s), outlook.fabric).total_s
    share = goodput(replace(outlook, ranks=ranks).failure_model, outlook.every_steps * step_s)
    return steps * step_s / share if share else math.inf
