"""Prints, saves, draws and tracks the results of `emocap evaluate`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emocap_shards.mask import masked_url

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.compare import show_groups
from emocap_pretrain.cli.evaluated_model import Evaluation
from emocap_pretrain.cli.files import check_picture, check_writable, write_text
from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.errors import ConfigError, TrackingError
from emocap_pretrain.run_folder.results import TaskResult, curves, other_weights_rows
from emocap_pretrain.terminal import console, say_json

if TYPE_CHECKING:
    from emocap_pretrain.evaluation.result_file import ResultFile
    from emocap_pretrain.evaluation.subgroups import Subgroups

RESULTS_FILE = "results.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Says what the user wants besides the printed tables, and how groups are shown.

    Attributes:
        save: The path or URL of the file of results; None writes none.
        html: The HTML page; None writes none.
        picture: The picture of a confusion matrix or of interpolations; None draws none.
        tracking: Where the results are logged; None logs them nowhere.
        thumbnails: Whether the file and the page contain small images of samples.
        as_json: Whether JSON is printed in place of tables.
        least: A group with fewer samples is not scored.
    """

    save: str | None
    html: Path | None
    picture: Path | None
    tracking: TrackingConfig | None
    thumbnails: bool
    as_json: bool
    least: int

    def check(self) -> None:
        """Checks that the files can be written. A command calls this before the evaluation.

        Raises:
            ConfigError: If one of them cannot be written.
            StoreError: If there is no store for the address of the file of results.
        """
        if self.save:
            from emocap_pretrain.evaluation import result_file

            result_file.check_place(self.save)
        if self.html:
            check_writable("--html", self.html)
        if self.picture:
            check_picture(self.picture)


def give(evaluated: Evaluation, wanted: Wanted) -> None:
    """Saves the results first, because they are needed most, and then prints, draws, writes and logs them.

    An output that fails does not prevent those after it. The first error is raised at the end, and the others are
    logged.
    """
    errors: list[Exception] = []
    for output in _outputs(evaluated, wanted):
        try:
            output()
        except Exception as error:  # noqa: BLE001 - raised below
            if str(error) not in map(str, errors):
                errors.append(error)
    for error in errors[1:]:
        log.error("%s", error)
    if errors:
        raise errors[0]


def _outputs(evaluated: Evaluation, wanted: Wanted) -> Iterator[Callable[[], object]]:
    """Yields functions, each of which makes one of the outputs."""
    from emocap_pretrain.evaluation import result_file
    from emocap_pretrain.evaluation.comparison import ModelResults, compare
    from emocap_pretrain.evaluation.page import page

    @cache
    def file() -> "ResultFile":
        return _result_file(evaluated, thumbnails=wanted.thumbnails)

    @cache
    def text() -> str:
        return page(compare([ModelResults.of(file())], least=wanted.least))

    if save := wanted.save:
        yield lambda: result_file.save(save, file())
    yield lambda: show(evaluated, as_json=wanted.as_json, least=wanted.least)
    if picture := wanted.picture:
        yield lambda: draw(evaluated, picture)
    if html := wanted.html:
        yield lambda: write_text("--html", html, text())
    if tracking := wanted.tracking:
        yield lambda: track(evaluated, tracking, text())


def _result_file(evaluated: Evaluation, *, thumbnails: bool) -> "ResultFile":
    from emocap_pretrain.evaluation import look, tasks
    from emocap_pretrain.evaluation import thumbnails as small
    from emocap_pretrain.evaluation.examples import PackedSource
    from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile, SavedFace

    restored, config = evaluated.restored, evaluated.config
    settings, stored = config.evaluation, config.stored()["evaluation"]
    images, faces = dict[str, str](), list[SavedFace]()
    if thumbnails and settings.url and not evaluated.has_copies:
        opened = partial(tasks.evaluation_filter, settings)
        images, faces = small.mapped(look.of_run(evaluated.embedder, settings.url, opened))
        images |= small.thumbnails(PackedSource(settings.url), small.shown_samples(evaluated.results))
    model = EvaluatedModel(
        config.name,
        masked_url(evaluated.model),
        restored.step if restored else None,
        evaluated.weights,
        evaluated.embedder.digest(),
        restored.run_id if restored else "",
    )
    # Without the setting, the model decides which part of an image it reads.
    colours = "as published" if evaluated.normalize else "from 0 to 1"
    read = {**stored, "crop": settings.crop or evaluated.embedder.reads, "colours": colours}
    missing = (*evaluated.failures, *evaluated.without_task)
    return ResultFile.of(model, evaluated.results, read, images, faces, missing=missing)


def show(evaluated: Evaluation, *, as_json: bool, least: int) -> None:
    from emocap_pretrain.evaluation.comparison import groups_by

    if as_json:
        tree = _tree(evaluated)
        try:
            tree |= _groups_tree([(result, groups_by(result, least=least)) for result in evaluated.results])
        finally:  # A label that cannot be used must not hide the scores.
            say_json(tree)
        return
    title = evaluated.title(evaluated.model)
    # One table for each dataset: a packed one, or each benchmark.
    for url in dict.fromkeys(result.url for result in evaluated.results):
        of_url = [result for result in evaluated.results if result.url == url]
        rows = [*(row for result in of_url for row in result.rows()), *other_weights_rows(evaluated.other_weights)]
        console.print(tables.table(title, rows))
    by_class = [(result, each) for result in evaluated.results for each in result.class_values]
    for result, values in by_class:
        where = f", {result.benchmark}" if result.benchmark else ""
        rows = zip(values.classes, values.samples, values.values, strict=True)
        cells = [
            (name, f"{samples:,}", "" if value is None else f"{value:.1%}", tables.bar(value or 0.0))
            for name, samples, value in rows
        ]
        console.print(tables.grid(f"{values.title} by class{where}", ("class", "samples", values.name, ""), cells))
    for result in evaluated.results:
        show_groups(groups_by(result, least=least), result.task)


def _groups_tree(groups: "Sequence[tuple[TaskResult, tuple[Subgroups, ...]]]") -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    found = {result.task: each for result, each in groups if each}
    return {"groups": to_jsonable_python(found)} if found else {}


def _tree(evaluated: Evaluation) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    restored = evaluated.restored
    # A model of another library has no step and only one kind of weights.
    facts = (restored.step, restored.weights, restored.share) if restored else (None, None, None)
    about = {"run": evaluated.model, **dict(zip(("step", "weights", "share"), facts, strict=True))}
    results = [result.scores_alone() for result in evaluated.results]
    about |= {} if evaluated.normalize else {"normalize": False}
    about |= {"failures": evaluated.failures} if evaluated.failures else {}
    about |= {"without_task": evaluated.without_task} if evaluated.without_task else {}
    return about | to_jsonable_python({"results": results, "other_weights": evaluated.other_weights})


def draw(evaluated: Evaluation, path: Path) -> None:
    from emocap_pretrain.data.datasets import evaluation_data
    from emocap_pretrain.tracking import pictures

    config = evaluated.config
    data = evaluation_data(config.evaluation, config.stored()["evaluation"])
    subject = pictures.subject(config.name, data, step=evaluated.restored.step if evaluated.restored else None)
    if evaluated.other_weights:
        pictures.interpolation(curves(evaluated.other_weights), path, of=subject)
        return
    matrices = [matrix for result in evaluated.results for matrix in result.confusion_matrices]
    if not matrices:
        names = ", ".join(result.task for result in evaluated.results)
        raise ConfigError(f"--picture {path}: {names} gives no confusion matrix to draw.")
    pictures.confusion(matrices[0], path, of=subject)


def track(evaluated: Evaluation, tracking: TrackingConfig, page: str) -> None:
    """Logs the results as a new run in MLflow.

    If the checkpoint names the MLflow run of the training, the new run is a child of that run. The scores of the run of
    the training stay as they are.

    Raises:
        TrackingError: If MLflow does not take all results.
    """
    import json

    from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
    from emocap_pretrain.training import conclusion
    from emocap_pretrain.training.build import tracked_run

    config, restored = evaluated.config, evaluated.restored
    step, name = (restored.step, f"{config.name}-step-{restored.step}") if restored else (0, config.name)
    run = tracked_run(config.model_copy(update={"tracking": tracking, "name": name}))
    if restored is None:  # The other settings are placeholders.
        run = replace(run, params={"model": evaluated.model, "evaluation": run.params["evaluation"]})
    # `parent` makes the new run a child of the trained one, whose id the checkpoint contains.
    tracker = MlflowTracker.start(run, None, parent=restored.run_id if restored else "")
    conclusion.track(tracker, config, evaluated.results, step)
    conclusion.track_other_weights(tracker, config, evaluated.other_weights, step)
    stated = replace(evaluated, model=config.url) if restored else evaluated
    tracker.log_text(RESULTS_FILE, json.dumps(_tree(stated), indent=1))
    tracker.log_text(conclusion.PAGE_FILE, page)
    tracker.set_description("\n".join(f"| {name} | {text} |" for name, text in _markdown_rows(evaluated)))
    tracker.finish("FINISHED")
    if tracker.unsent():
        raise TrackingError(f"--tracking {tracking.uri}: MLflow did not take all results; run the command again.")


def _markdown_rows(evaluated: Evaluation) -> list[tuple[str, str]]:
    head = [("", evaluated.title(evaluated.config.name)), ("---", "---")]
    rows = (row for result in evaluated.results for row in result.rows())
    return [*head, *rows, *other_weights_rows(evaluated.other_weights)]
