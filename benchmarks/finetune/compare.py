"""Compares recipes on FER+ by prompts and by linear probes, after the same time of training and for several seeds.

All choices are made on the split `valid`. The split `test` is scored once for each run: the scores are stored in a file
beside the run, and a repeated command reads them from this file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from emocap_pretrain.evaluation import run_tasks
from emocap_pretrain.evaluation.linear_probe import LinearProbe
from emocap_pretrain.evaluation.task import Task
from emocap_pretrain.evaluation.zero_shot import ZeroShot
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.restore import Restored, restore
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

from .trainings import steps_of, trained

PROMPTED, PROBED = "recall by prompts", "recall of a linear probe"
_TASKS = (ZeroShot, LinearProbe)
_ALONE = RankGroup(Rank(), "cpu", None)
_VERSIONS = ("torch", "timm", "transformers", "scikit-learn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Holds what is compared.

    Attributes:
        recipes: The config files.
        data: The folder with the packed splits `train`, `valid` and `test` of FER+.
        runs: The folder of the runs and of their scores.
        minutes: Training time of each run in minutes.
        seeds: The seeds.
    """

    recipes: Sequence[Path]
    data: Path
    runs: Path
    minutes: float
    seeds: Sequence[int]


def measure(plan: Plan, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the recalls of each recipe before its first step (with seed 0), and then of each recipe and seed."""
    plan.runs.mkdir(parents=True, exist_ok=True)
    for recipe in plan.recipes:
        yield from _scored(plan, recipe, f"{recipe.stem}, untouched", 0, 0, occasion)
    for seed in plan.seeds:
        for recipe in plan.recipes:
            steps = steps_of(recipe, plan.data, plan.runs, plan.minutes)
            yield from _scored(plan, recipe, recipe.stem, seed, steps, occasion)


def _scored(
    plan: Plan, recipe: Path, contender: str, seed: int, steps: int, occasion: Occasion
) -> Iterator[Measurement]:
    """Yields the recalls of a run by prompts and by a probe. The value is UAR, and `more` contains WAR."""
    folder = plan.runs / f"{recipe.stem}-{steps}-steps-seed-{seed}"
    report = trained(recipe, plan.data, folder, seed=seed, steps=steps)
    found = _scores(folder, plan.data)
    for what, kind in ((PROMPTED, "prompted"), (PROBED, "probe")):
        values = found[kind]
        more = {"war": values["war"], "steps": steps, "training_s": round(report.seconds), **values.get("more", {})}
        yield measured(
            occasion,
            [values["uar"]],
            what=what,
            contender=contender,
            setting={"split": "test", "minutes": plan.minutes if steps else 0, "seed": seed},
            unit="UAR",
            more=more,
            versions=versions(_VERSIONS),
        )


def _metrics(restored: Restored, data: Path, split: str, *chosen: type[Task]) -> Mapping[str, float]:
    """Returns the scores of the tasks `chosen` on a split, by their names in MLflow.

    A linear probe is trained on the split `train`, and its regularization is chosen on the split `valid`.
    """
    urls = {key: str((data / name).absolute()) for key, name in (("train_url", "train"), ("valid_url", "valid"))}
    changes = {"url": str((data / split).absolute()), **urls, "tasks": tuple(task.name for task in chosen)}
    settings = restored.config.evaluation.model_copy(update=changes)
    results = run_tasks.evaluate(settings, Embedder.of(restored, "cpu"), _ALONE, url=split)
    return {name: value for result in results for name, value in result.metrics().items()}


def _scores(folder: Path, data: Path) -> Mapping[str, Any]:
    """Returns the scores of a run on the split `test`, from a file if they have been computed before."""
    file = folder.with_name(f"{folder.name}-scores.json")
    if not file.exists():
        restored = restore(str(folder.absolute()))
        on_test = _metrics(restored, data, "test", *_TASKS)
        on_valid = _metrics(restored, data, "valid", ZeroShot)
        prompted, probe = ({name: on_test[f"{task.name}/{name}"] for name in ("uar", "war")} for task in _TASKS)
        found = {
            "prompted": {**prompted, "more": {"valid_uar": on_valid[f"{ZeroShot.name}/uar"]}},
            "probe": {**probe, "more": {"inverse_strength": on_test[f"{LinearProbe.name}/inverse_strength"]}},
        }
        written = file.with_suffix(".part")
        written.write_text(json.dumps(found))
        written.rename(file)
    return json.loads(file.read_text())
