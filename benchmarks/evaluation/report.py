"""Measures how long `emocap evaluate` takes for copies of benchmarks whose vectors are in a cache.

Each reading is a process of its own, so that the time contains the imports and the start, as for a user.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.rounds import complete, in_rounds, seconds_of
from emocap_pretrain.errors import ConfigError

WHAT = "seconds of a report from cached vectors"


def measure(
    model: str, benchmarks: Sequence[str], cache: str, tasks: Sequence[str], rounds: int, occasion: Occasion
) -> Iterator[Measurement]:
    """Yields one record: the seconds that an evaluation of all benchmarks takes, with a reading for each round.

    Before the first round, an evaluation that is not timed fills the cache.

    Args:
        model: The model, as `emocap evaluate` takes it.
        benchmarks: Copies of benchmarks, as `emocap evaluate --benchmark` takes them.
        cache: The folder of the cache.
        tasks: The names of the tasks; empty for all tasks that a benchmark allows.
        rounds: The number of readings.
        occasion: The fields that all records share.

    Raises:
        ConfigError: If an evaluation fails.
    """
    words = [sys.executable, "-m", "emocap_pretrain.cli", "evaluate", model, "--json", "--cache", cache]
    words += [word for each in benchmarks for word in ("--benchmark", each)]
    words += [word for each in tasks for word in ("--task", each)]
    results = json.loads(_printed(words))["results"]
    taken = complete(in_rounds({"report": partial(seconds_of, lambda: _printed(words))}, rounds=rounds))
    yield measured(
        occasion,
        taken["report"],
        what=WHAT,
        contender="emocap evaluate",
        setting={"benchmarks": len(benchmarks), "tasks": ",".join(tasks) or "all"},
        unit="s",
        more={
            "results": len(results),
            "samples": {f"{each['benchmark']}/{each['task']}": each["samples"] for each in results},
        },
        versions=versions(("torch", "scikit-learn")),
    )


def _printed(words: Sequence[str]) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"emocap evaluate ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
