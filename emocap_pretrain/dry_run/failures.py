r"""Computes how often to save, and the share of time that is new work, if failures are a Poisson process.

A failure costs the restart, and the work since the last checkpoint that counts. With \(M\) the mean time between
failures of the job, \(\delta\) what a save stalls, \(\tau\) the work between two saves, \(R\) a restart and \(D\) how
long after its snapshot a checkpoint counts, the share of time that is new work is exactly

$$\frac{\tau\,e^{-(R + D)/M}}{M\,(e^{(\tau + \delta)/M} - 1)}.$$

Without D this is Daly's expected run time (J. T. Daly, A higher order estimate of the optimum checkpoint interval for
restart dumps, Future Generation Computer Systems 22, 2006) turned over. D multiplies: a failure at time x after a
restart finds floor((x - D)/(tau + delta)) checkpoints that count, and x has no memory. So neither R nor D moves the
best interval.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The failures and delays that a job must expect; all in seconds.

    Attributes:
        node_mtbf_s: Mean time between failures of one node; infinite is none.
        nodes: Number of nodes of the job; the loss of any one ends the attempt.
        stall_s: How much longer a step takes because it saves (the snapshot).
        commit_s: From the snapshot until the checkpoint counts; an upload is taken to end before the next one begins.
        restart_s: From a failure to the next new step: detection, processes, restore.
    """

    node_mtbf_s: float
    nodes: int
    stall_s: float
    commit_s: float
    restart_s: float

    @property
    def mtbf_s(self) -> float:
        """Mean time between failures of the whole job."""
        return self.node_mtbf_s / self.nodes


def young(trouble: Trouble) -> float:
    """Seconds of work between saves at best, to first order (J. W. Young, Communications of the ACM 17(9), 1974)."""
    return math.sqrt(2 * trouble.stall_s * trouble.mtbf_s)


def daly(trouble: Trouble) -> float:
    """Seconds of work between saves at best, to higher order (Daly 2006, equation 37)."""
    stall, mtbf = trouble.stall_s, trouble.mtbf_s
    if math.isinf(mtbf):
        return math.inf
    if stall >= 2 * mtbf:
        return mtbf
    half = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(half) / 3 + half / 9) - stall


def goodput(trouble: Trouble, interval_s: float) -> float:
    """Share of the time that is new work, with `interval_s` seconds of work between saves; in [0, 1]."""
    mtbf = trouble.mtbf_s
    if math.isinf(mtbf):
        return interval_s / (interval_s + trouble.stall_s)
    try:
        grown = math.expm1((interval_s + trouble.stall_s) / mtbf)
    except OverflowError:
        return 0.0
    return interval_s / mtbf * math.exp(-(trouble.restart_s + trouble.commit_s) / mtbf) / grown
