"""Records the scores of evaluated models from the files that `emocap evaluate --save` has written.

Nothing is evaluated here, so the scores are those that the command has printed.
"""

from collections.abc import Iterator, Sequence

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, grouped, measured
from benchmarks.harness.tables import table
from emocap_pretrain.evaluation import result_file
from emocap_pretrain.run_folder.results import TaskResult

WHAT = "score of an evaluated model"
MEDIAN_RANK = "median_rank"  # The beginning of the names of scores that are numbers and no shares.
_TEXTS = {"": "the global text", "summary_": "the summary", "whole_": "the whole text"}
_FOUND = {"recall_at_1": "R@1", "recall_at_5": "R@5", MEDIAN_RANK: "median rank"}
# The scores in the table, with their titles; the record has all.
SHOWN = {
    "uar": "UAR",
    "war": "WAR",
    "auc": "AUC",
    "uar_16": "UAR with 16 examples",
    **{f"{score}_{part}image_to_text": f"{_FOUND[score]} of {_TEXTS[part]}" for part in _TEXTS for score in _FOUND},
    "attention": "in the region",
    "attention_difference": "in the region, less another sentence",
}


MOST_CLASSES = 60  # With more, such as the units of a face, the record leaves the values by class out.


def measure(files: Sequence[str], occasion: Occasion) -> Iterator[Measurement]:
    """Yields one record for each task in each file. The value of a record is the first score of the task.

    Args:
        files: Paths or URLs of the files.
        occasion: The fields that all records share.

    Raises:
        ConfigError: If a file does not exist or is not a file of results.
        StoreError: If a file cannot be read.
    """
    for address in files:
        file = result_file.load(address)
        for task in file.tasks:
            yield _record(task.result, file.model.title(), file.model.digest, occasion)


def _record(result: TaskResult, model: str, digest: str, occasion: Occasion) -> Measurement:
    first = result.scores[0]
    return measured(
        occasion,
        [first.value],
        what=WHAT,
        contender=model,
        setting={"task": result.task, "data": result.benchmark or _short(result.url)},
        unit=first.name,
        more={
            "samples": result.samples,
            "scores": {each.name: each.value for each in result.scores},
            "intervals": {each.name: list(each.interval) for each in result.scores if each.interval},
            "recalls": {
                each.name: dict(zip(each.classes, each.values, strict=True))
                for each in result.class_values
                if len(each.classes) <= MOST_CLASSES
            },
            "domain": result.domain.kind if result.domain else "",
            "model_digest": digest[:16],
        },
        versions=versions(("torch", "timm", "scikit-learn")),
    )


def _short(url: str) -> str:
    """Returns the last two folders of an address, so that no path of a machine is in the records."""
    return "/".join(url.rstrip("/").split("/")[-2:])


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table with a column for each model, and a row for each score of `SHOWN` of a task on a dataset.

    A score that no model has gets no row.
    """
    models = list(dict.fromkeys(line.contender for line in lines))
    rows: list[list[str]] = []
    for (data, task), those in grouped(lines, lambda line: (line.setting["data"], line.setting["task"])).items():
        by_model = {line.contender: line for line in those}
        for name, title in SHOWN.items():
            cells = [_cell(by_model[model], name) if model in by_model else "" for model in models]
            if any(cells):
                rows.append([f"{data}, {task}, {title}", *cells])
    return table(["", *models], rows)


def _cell(line: Measurement, name: str) -> str:
    """Returns a score in percent, or a rank, with its interval; empty if the task has no such score."""
    more = line.more or {}
    value, interval = more["scores"].get(name), more["intervals"].get(name)
    if value is None:
        return ""
    is_rank = name.startswith(MEDIAN_RANK)
    shown = [f"{each:,.0f}" if is_rank else f"{100 * each:.1f}" for each in (value, *(interval or ()))]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if interval else shown[0]
