"""Runs one suite of measurements: `python benchmarks SUITE COMMAND [OPTIONS]`."""

import sys
from collections.abc import Callable, Mapping, Sequence

Main = Callable[[Sequence[str]], int]


def main(words: Sequence[str]) -> int:
    if not words or words[0] not in SUITES:
        sys.stderr.write(f"error: the first word must be a suite: {', '.join(SUITES)}.\n")
        return 2
    return SUITES[words[0]]()(words[1:])


# Each suite is imported when it is asked for: the kernels need nothing but torch.
def _kernels() -> Main:
    from benchmarks.kernels.command import main

    return main


def _shards() -> Main:
    from benchmarks.shards.command import main

    return main


def _cluster() -> Main:
    from benchmarks.cluster.command import main

    return main


SUITES: Mapping[str, Callable[[], Main]] = {"kernels": _kernels, "shards": _shards, "cluster": _cluster}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
