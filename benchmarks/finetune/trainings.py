"""Trains recipes for the same number of minutes. Each run is a separate process, as a user would start it.

`emocap pretrain` does not train a finished run again, and resumes an interrupted one. So this module stores only the
number of steps. This number follows from the measured speed of a short run, and must not change afterwards.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from emocap_shards.store import open_store

from benchmarks.harness.suite import say
from emocap_pretrain.config.load import load
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report

SPEED_STEPS = 40  # Steps of the run that measures the speed.
# One rank, which uses all cores. With these variables the run does not start Ray.
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29863"}


def steps_of(recipe: Path, data: Path, runs: Path, minutes: float) -> int:
    """Returns how many steps of a recipe take `minutes` minutes of training on this machine.

    The number is stored in the folder `runs`. So it is the same for all seeds, also if the command is repeated.

    Raises:
        TrainingError: If the run that measures the speed fails.
    """
    file = runs / f"{recipe.stem}-{minutes:g}-minutes.json"
    if not file.exists():
        quick = trained(recipe, data, runs / f"{recipe.stem}-speed", seed=0, steps=SPEED_STEPS, evaluates=False)
        steps = max(1, round(60 * minutes * quick.samples_per_s / load(recipe).global_batch))
        file.write_text(json.dumps({"steps": steps, "samples_per_s": quick.samples_per_s}))
    return json.loads(file.read_text())["steps"]


def trained(recipe: Path, data: Path, folder: Path, *, seed: int, steps: int, evaluates: bool = True) -> Report:
    """Trains a recipe, unless the run in `folder` is finished, and returns the report of the run.

    Args:
        recipe: The config file.
        data: The folder with the packed splits `train`, `valid` and `test`.
        folder: The folder of the run.
        seed: The seed of the run.
        steps: Number of steps. A warm-up that is longer than a tenth of them is shortened.
        evaluates: Whether the run evaluates itself on the split `valid`. The split `test` is never read.

    Raises:
        TrainingError: If the process fails; its output says why.
    """
    run, warmup = folder.absolute(), min(steps // 10, load(recipe).optimizer.warmup_steps)
    finished = RunFolder(open_store(str(run))).report(steps)
    if finished:
        return finished
    settings = {
        "url": run,
        "seed": seed,
        "steps": steps,
        "data.url": (data / "train").absolute(),
        "evaluation.url": (data / "valid").absolute() if evaluates else "null",
        "optimizer.warmup_steps": warmup,
        "tracking.uri": f"sqlite:///{run.parent}/mlflow.db",
        "tracking.artifacts": run.parent / "artifacts",
    }
    words = [str(recipe), *(f"{key}={value}" for key, value in settings.items())]
    say(f"emocap pretrain {' '.join(words)}")
    command = [sys.executable, "-m", "emocap_pretrain.run", *words]
    done = subprocess.run(command, env={**os.environ, **_ALONE}, check=False)
    report = RunFolder(open_store(str(run))).report(steps)
    if done.returncode or report is None:
        raise TrainingError(f"{recipe.name}: the run in {folder} ended with exit code {done.returncode}.")
    return report
