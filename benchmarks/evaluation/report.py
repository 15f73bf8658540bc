"""Measures how long `emocap evaluate` takes for copies of benchmarks whose vectors are in a cache.

Each reading is a process of its own, so that the time contains the imports and the start, as for a user.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.rounds import complete, in_rounds, seconds_of
from emocap_pretrain.errors import ConfigError

from .report_copies import MadeCopies

WHAT = "seconds of a report from cached vectors"


def measure(
    model: str,
    benchmarks: Sequence[str],
    cache: str,
    tasks: Sequence[str],
    rounds: int,
    occasion: Occasion,
    made: MadeCopies | None = None,
) -> Iterator[Measurement]:
    """Yields one record: the seconds that an evaluation of all benchmarks takes, with a reading for each round.

    Before the first round, an evaluation that is not timed fills the cache. On a machine that does other work, the
    seconds of the processor (`cpu_s` in the field `more`, the mean of a round) say more than the readings.

    Args:
        model: The model, as `emocap evaluate` takes it.
        benchmarks: Copies of benchmarks, as `emocap evaluate --benchmark` takes them.
        cache: The folder of the cache.
        tasks: The names of the tasks; empty for all tasks that a benchmark allows.
        rounds: The number of readings.
        occasion: The fields that all records share.
        made: Copies of random images that are written and evaluated too; None if there are none.

    Raises:
        ConfigError: If an evaluation fails, or there is no copy.
    """
    benchmarks = [*benchmarks, *(made.write() if made else ())]
    if not benchmarks:
        raise ConfigError("no copy is given: add --benchmark NAME=FOLDER or --make FOLDER.")
    words = [sys.executable, "-m", "emocap_pretrain.cli", "evaluate", model, "--json", "--cache", cache]
    words += [word for each in benchmarks for word in ("--benchmark", each)]
    words += [word for each in tasks for word in ("--task", each)]
    results = json.loads(_printed(words))["results"]
    before_s = _children_s()
    taken = complete(in_rounds({"report": partial(seconds_of, lambda: _printed(words))}, rounds=rounds))
    cpu_s = (_children_s() - before_s) / rounds
    yield measured(
        occasion,
        taken["report"],
        what=WHAT,
        contender="emocap evaluate",
        setting={
            "benchmarks": len(benchmarks),
            "tasks": ",".join(tasks) or "all",
            **({"train": made.train, "scored": made.others} if made else {}),
        },
        unit="s",
        more={
            "cpu_s": round(cpu_s, 1),
            "results": len(results),
            "samples": {f"{each['benchmark']}/{each['task']}": each["samples"] for each in results},
        },
        versions=versions(("torch", "scikit-learn")),
    )


def _children_s() -> float:
    """Returns the seconds of the processor of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _printed(words: Sequence[str]) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"emocap evaluate ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
