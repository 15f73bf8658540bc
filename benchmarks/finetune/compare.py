"""Compares recipes on FER+ by prompts and by linear probes, after the same time of training and for several seeds.

All choices are made on the split `valid`. The split `test` is scored once for each run: the scores are stored in a file
beside the run, and a repeated command reads them from this file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.restore import restore

from . import scores
from .trainings import steps_of, trained

PROMPTED, PROBED = "recall by prompts", "recall of a linear probe"
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


def _scores(folder: Path, data: Path) -> Mapping[str, Any]:
    """Returns the scores of a run on the split `test`, from a file if they have been computed before."""
    file = folder.with_name(f"{folder.name}-scores.json")
    if not file.exists():
        restored = restore(str(folder.absolute()))
        embedder = Embedder(restored.model, restored.tokenizer)
        splits = {name: str((data / name).absolute()) for name in ("train", "valid", "test")}
        settings = restored.config.evaluation
        by_prompts = {
            name: scores.prompted(embedder, settings.model_copy(update={"url": splits[name]}))
            for name in ("valid", "test")
        }
        probe, inverse_strength = scores.probe(*(scores.features(embedder, url) for url in splits.values()))
        found = {
            "prompted": {**asdict(by_prompts["test"]), "more": {"valid_uar": by_prompts["valid"].uar}},
            "probe": {**asdict(probe), "more": {"inverse_strength": inverse_strength}},
        }
        written = file.with_suffix(".part")
        written.write_text(json.dumps(found))
        written.rename(file)
    return json.loads(file.read_text())
