"""Records the scores of finished runs that were trained on labels, as the reports of the runs contain them.

The runs must have been evaluated with the task `fine_tuned_classes`. Nothing is trained or scored here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from emocap_shards.store import open_store

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, grouped, measured
from benchmarks.harness.tables import table
from emocap_pretrain.checkpoint.manifest import newest
from emocap_pretrain.config.load import from_stored
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.fine_tuned import FineTunedClasses
from emocap_pretrain.run_folder.folder import RunFolder

HEADS = "recall of a trained head"


def measure(runs: Sequence[Path], occasion: Occasion) -> Iterator[Measurement]:
    """Yields one record for each run: the recalls of its head on the split `test`. The value is UAR.

    Raises:
        ConfigError: If a run is not finished, or was not evaluated with the task `fine_tuned_classes`.
    """
    for folder in runs:
        # The steps of `run.json` may have been changed since, and the newest checkpoint has the last ones.
        store = open_store(str(folder.absolute()))
        checkpoint = newest(store)
        config = from_stored(checkpoint.state.get("config")) if checkpoint else None
        report = RunFolder(store).report(config.steps) if config else None
        results = [each for each in report.results if each.task == FineTunedClasses.name] if report else []
        if config is None or report is None or not results:
            raise ConfigError(f"{folder} has no report with {FineTunedClasses.name}: name it in evaluation.tasks.")
        scores = {score.name: score for score in results[0].scores}
        recalls, (low, high) = results[0].class_values[0], scores["uar"].interval or (None, None)
        yield measured(
            occasion,
            [scores["uar"].value],
            what=HEADS,
            contender=f"{config.name}, {_balance(config)}",
            setting={"split": "test", "steps": report.step, "global_batch": config.global_batch, "seed": config.seed},
            unit="UAR",
            more={
                "war": scores["war"].value,
                "macro_f1": scores["macro_f1"].value,
                "uar_low": low,
                "uar_high": high,
                "recalls": dict(zip(recalls.classes, recalls.values, strict=True)),
                "samples": results[0].samples,
                "training_s": round(report.seconds),
            },
            versions=versions(("torch", "timm", "scikit-learn")),
        )


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table with a row for each contender and number of steps. Scores are means over the seeds."""
    columns = ["", "steps", "faces seen", "seeds", "UAR", "WAR", "macro-F1"]
    return table(
        columns,
        (_row(those) for those in grouped(lines, lambda line: (line.contender, line.setting["steps"])).values()),
    )


def _row(lines: Sequence[Measurement]) -> list[str]:
    first = lines[0].setting
    steps, batch = int(str(first["steps"])), int(str(first["global_batch"]))
    values = [[line.median for line in lines], *([float((line.more or {})[name]) for line in lines] for name in _SHOWN)]
    means = [f"{100 * sum(each) / len(each):.1f}" for each in values]
    return [lines[0].contender, f"{steps:,}", f"{steps * batch:,}", str(len(lines)), *means]


_SHOWN = ("war", "macro_f1")


def _balance(config: Config) -> str:
    (label,) = (each for each in config.objective.labels if each.classes)
    return "unbalanced" if label.balance == "none" else f"balanced ({label.balance})"
