"""Runs a command of one suite of measurements: `python benchmarks SUITE COMMAND [OPTIONS]`."""

import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness.suite import Suite, run


# Each suite is imported only when it is chosen, because the suite of the kernels must work with torch and triton alone.
def _kernels() -> Suite:
    from benchmarks.kernels.suite import SUITE

    return SUITE


def _shards() -> Suite:
    from benchmarks.shards.suite import SUITE

    return SUITE


def _cluster() -> Suite:
    from benchmarks.cluster.suite import SUITE

    return SUITE


def _inference() -> Suite:
    from benchmarks.inference.suite import SUITE

    return SUITE


def _finetune() -> Suite:
    from benchmarks.finetune.suite import SUITE

    return SUITE


def _generation() -> Suite:
    from benchmarks.generation.suite import SUITE

    return SUITE


def _evaluation() -> Suite:
    from benchmarks.evaluation.suite import SUITE

    return SUITE


def _loader() -> Suite:
    from benchmarks.loader.suite import SUITE

    return SUITE


def _captioning() -> Suite:
    from benchmarks.captioning.suite import SUITE

    return SUITE


def _checking() -> Suite:
    from benchmarks.checking.suite import SUITE

    return SUITE


SUITES: Mapping[str, Callable[[], Suite]] = {
    "kernels": _kernels,
    "shards": _shards,
    "cluster": _cluster,
    "inference": _inference,
    "finetune": _finetune,
    "generation": _generation,
    "evaluation": _evaluation,
    "loader": _loader,
    "captioning": _captioning,
    "checking": _checking,
}


def main(words: Sequence[str]) -> int:
    """Runs a command line and returns its exit code. `words` are the arguments, without the program's name."""
    if not words or words[0] not in SUITES:
        sys.stderr.write(f"error: the first word must be a suite: {', '.join(SUITES)}.\n")
        return 2
    return run(SUITES[words[0]](), words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
