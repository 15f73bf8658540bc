"""Computes the hours and the cost of a run on several numbers of nodes, for `--dry-run --price`.

The run keeps its global batch and its steps, so each rank has fewer rows on more nodes. The time of the towers is
assumed to be proportional to the rows of a rank. This is too optimistic for a few rows, which do not fill a GPU.
"""

import math
from dataclasses import replace

from emocap_pretrain.dry_run.failures import goodput
from emocap_pretrain.dry_run.outlook import Outlook, Row, digits
from emocap_pretrain.dry_run.step import Speed, step_time

NODES = (1, 4, 16)
HOUR_S = 3600.0


def cost_rows(outlook: Outlook, *, steps: int, global_batch: int, price: float, device: str) -> list[Row]:
    """Returns the rows of `--dry-run` about the cost: a table with a line for each number of nodes, and what it says.

    The time that failures cost is included. The start, evaluations and waiting for data are not.

    Args:
        outlook: The forecast of the run.
        steps: Number of steps of the run.
        global_batch: Samples of a step over all ranks.
        price: Price of one device for an hour, in any currency.
        device: What a rank uses, such as "GPU".
    """
    if outlook.speed is None:
        return [("cost", "unknown, because the time of a step is unknown (above)")]
    lines = [_cells(outlook, outlook.speed, nodes, steps, global_batch, price) for nodes in NODES]
    table = [("nodes", f"{device}s", "hours", "cost"), *lines]
    # The last cell of a line may be a sentence, which does not widen its column.
    widths = [max(len(cells[column]) for cells in table if len(cells) == len(table[0])) for column in range(4)]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False)) for cells in table]
    rows.append(f"at {price:g} for an hour of a {device}; with failures, without evaluations")
    return [("" if number else "cost", row) for number, row in enumerate(rows)]


def _cells(outlook: Outlook, speed: Speed, nodes: int, steps: int, global_batch: int, price: float) -> tuple[str, ...]:
    """Returns the cells of a line: nodes, devices, hours and cost; or nodes, devices, and why there is no result."""
    ranks = nodes * outlook.fabric.ranks_per_node
    first = (str(nodes), f"{ranks:,}")
    if ranks > global_batch:
        return *first, f"more ranks than the {global_batch} samples of a batch"
    hours = run_s(outlook, speed, ranks, steps=steps, global_batch=global_batch) / HOUR_S
    if math.isinf(hours):
        return *first, "failures would leave no time for new work"
    return *first, digits(hours), f"{hours * ranks * price:,.2f}"


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
