r"""Computes how often to save, and the fraction of time in which new work is done, if failures are a Poisson process.

A failure costs the time of the restart, and the work since the newest committed checkpoint. Let \(M\) be the mean time
between failures of the job, \(\delta\) the time for which a save stalls training, \(\tau\) the time of the work between
two saves, \(R\) the time of a restart and \(D\) the time from a snapshot until its checkpoint is committed. The
fraction of time in which new work is done is exactly

$$\frac{\tau\,e^{-(R + D)/M}}{M\,(e^{(\tau + \delta)/M} - 1)}.$$

For \(D = 0\) this is the inverse of Daly's expected run time for one unit of work (J. T. Daly, A higher order estimate
of the optimum checkpoint interval for restart dumps, Future Generation Computer Systems 22, 2006). \(R\) and \(D\)
appear only in the factor \(e^{-(R + D)/M}\), which does not depend on \(\tau\). So neither of them changes the best
interval.

The formula follows from the number of checkpoints that are committed between two failures. The \(k\)-th checkpoint is
committed at the time \(t_k = R + k(\tau + \delta) + D\) after a failure, if no other failure occurs before. The
probability of this is \(e^{-t_k/M}\). The sum of these probabilities over \(k \ge 1\) is the mean number of
checkpoints. Each of them keeps the work of the time \(\tau\), and the mean time between two failures is \(M\).

The simulation in `benchmarks/cluster` handles random failures of this kind one by one, and agrees with the formula.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureModel:
    """Holds how often a job fails, and how long its saves and restarts take. All times are in seconds.

    Attributes:
        node_mtbf_s: Mean time between failures of one node; infinite if nodes never fail.
        nodes: Number of nodes of the job. The loss of any node ends the attempt.
        stall_s: Time for which a save delays training, which is the time of the snapshot.
        commit_s: Time from the snapshot until the checkpoint is committed. It must be shorter than the interval between
            two saves.
        restart_s: Time from a failure to the next new step. It includes the detection of the failure, the start of the
            processes and the restoring of the checkpoint.
    """

    node_mtbf_s: float
    nodes: int
    stall_s: float
    commit_s: float
    restart_s: float

    @property
    def mtbf_s(self) -> float:
        """Returns the mean time between failures of the whole job."""
        return self.node_mtbf_s / self.nodes


def young(model: FailureModel) -> float:
    """Returns the best interval between saves in seconds, to first order (J. W. Young, CACM 17(9), 1974).

    The approximation holds if the time of a save is much shorter than the time between failures. `daly` has no such
    condition.
    """
    return math.sqrt(2 * model.stall_s * model.mtbf_s)


def daly(model: FailureModel) -> float:
    """Returns the best interval between saves in seconds, to higher order (Daly 2006, equation 37).

    The interval is infinite if nodes never fail.
    """
    stall, mtbf = model.stall_s, model.mtbf_s
    if math.isinf(mtbf):
        return math.inf
    if stall >= 2 * mtbf:
        return mtbf
    half = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(half) / 3 + half / 9) - stall


def goodput(model: FailureModel, interval_s: float) -> float:
    """Returns the fraction of time in which new work is done, in [0, 1], by the formula of the module's docstring.

    `interval_s` are the seconds of work between two saves.
    """
    mtbf = model.mtbf_s
    if math.isinf(mtbf):  # The limit of the formula. Its terms would be infinite and zero.
        return interval_s / (interval_s + model.stall_s)
    # If the interval is much shorter than the time between failures, exp(x) - 1 loses digits, and `expm1` does not.
    try:
        grown = math.expm1((interval_s + model.stall_s) / mtbf)
    except OverflowError:
        return 0.0
    return interval_s / mtbf * math.exp(-(model.restart_s + model.commit_s) / mtbf) / grown
