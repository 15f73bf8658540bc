"""Runs evaluation tasks on copies of benchmarks, fold after fold."""

import logging
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.benchmarks.catalogue import card
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError, DataError, LostContact
from emocap_pretrain.evaluation import run_tasks, tasks
from emocap_pretrain.evaluation.benchmark_source import BenchmarkSource, settings_of, sources_of, splits_of
from emocap_pretrain.evaluation.features import Extraction
from emocap_pretrain.evaluation.folds import mean_of_folds
from emocap_pretrain.evaluation.outcome_scores import with_intervals
from emocap_pretrain.evaluation.task import SplitName, Task
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BenchmarkCopy:
    """Names a user's copy of a benchmark."""

    card: Card
    root: Path

    @classmethod
    def parsed(cls, text: str) -> "BenchmarkCopy":
        """Returns the copy that a text such as "raf_db=/data/RAF" names.

        Raises:
            ConfigError: If the text has another form, or there is no benchmark of this name.
        """
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(f"--benchmark {text}: give NAME=FOLDER, such as raf_db=/data/RAF.")
        return cls(card(name), Path(path).expanduser())


class NoTaskError(ConfigError):
    """No task can be run on a benchmark. If several benchmarks are evaluated, this one is left out."""


def prepare(copies: Sequence[BenchmarkCopy], settings: EvaluationConfig, *, has_texts: bool = True) -> list[str]:
    """Checks that each copy has a known layout, and that at least one copy allows a task, before anything is computed.

    One rank calls this function.

    Args:
        copies: The copies.
        settings: The settings of the evaluation, which may name the tasks.
        has_texts: Whether the model can read texts.

    Returns:
        Notes for the user, one line each: which copies and which tasks are left out.

    Raises:
        ConfigError: If a copy has none of the layouts of its card; if a class has no prompts, or the prompts do not fit
            the classes (`settings_of`); if the settings name a task that does not exist, or one that needs texts
            although the model cannot read them; or if no benchmark has an attribute that `settings.by` names.
        DataError: If a file or folder that shows the layout of a copy exists, but cannot be read.
        NoTaskError: If none of the copies allows a task.
    """
    if settings.tasks:
        tasks.require_texts(settings, has_texts=has_texts)
    _require_attributes(settings, [copy.card for copy in copies])
    left_out: dict[str, None] = {}
    refused: list[NoTaskError] = []
    for copy in copies:
        fitting(copy.card, copy.root)
        try:
            allowed = tasks_of(settings_of(settings, copy.card), copy.card)
            left = tasks_of(settings_of(settings, copy.card), copy.card, has_texts=has_texts)
        except NoTaskError as error:
            refused.append(error)
            continue
        for task in left:
            task.prompts()
        left_out |= dict.fromkeys(each.name for each in allowed if each not in left)
    if refused and len(refused) == len(copies):
        raise refused[0]
    notes = [f"left out: {error}" for error in refused]
    if left_out:
        notes.append(
            f"the model is an image tower alone, so tasks that need texts are left out: {', '.join(left_out)}."
        )
    return notes


def _require_attributes(settings: EvaluationConfig, cards: Sequence[Card]) -> None:
    known = {name: None for card in cards for name in attributes_of(card)}
    if missing := [name for name in settings.by if name not in known]:
        there = ", ".join(known) or "none"
        raise ConfigError(
            f"--by {missing[0]}: none of these benchmarks has this attribute of the persons; they have {there} "
            "(emocap benchmarks show)."
        )


def attributes_of(about: Card) -> tuple[str, ...]:
    """Returns the names of the attributes of persons by which scores on a benchmark can be divided."""
    return about.attributes.names if about.attributes else ()


def tasks_of(settings: EvaluationConfig, about: Card, *, has_texts: bool = True) -> list[Task]:
    """Returns the tasks that a benchmark allows.

    A task is allowed if it can score the benchmark's kind of target, and if the benchmark has all splits of the task.

    Args:
        settings: The settings of the evaluation. If they name tasks, no other task is returned. A task that needs a
            head is returned only if it is named.
        about: The card of the benchmark.
        has_texts: Whether the model can read texts. If not, tasks that need texts are left out.

    Raises:
        ConfigError: If the settings name a task that does not exist.
        NoTaskError: If no task is left.
    """
    splits = set(splits_of(about))
    every = tuple(each.name for each in tasks.TASKS if each not in tasks.NEED_A_HEAD)
    named = settings if settings.tasks else settings.model_copy(update={"tasks": every})
    found = [task for task in tasks.tasks_of(named) if about.target.kind in task.targets and set(task.splits) <= splits]
    able = [task for task in found if has_texts or not task.reads_texts]
    if not able:
        why = ", and the model is an image tower alone" if found else ""
        raise NoTaskError(
            f"benchmark {about.name}: none of the tasks can be run, because its target is of the kind "
            f"{about.target.kind!r} and its splits are {', '.join(about.splits)}{why}."
        )
    return able


@dataclass(frozen=True, slots=True)
class BenchmarkResults:
    """Holds the results on benchmarks.

    Attributes:
        results: The results of all tasks on all benchmarks that could be evaluated.
        failures: For each benchmark that could not be evaluated its name and the reason, in one line. Benchmarks that
            allow no task are not among them.
        without_task: For each benchmark that allows no task the reason, in one line with its name.
    """

    results: tuple[TaskResult, ...]
    failures: tuple[str, ...] = ()
    without_task: tuple[str, ...] = ()


def evaluate(
    copies: Sequence[BenchmarkCopy], settings: EvaluationConfig, embedder: Embedder, world: RankGroup
) -> BenchmarkResults:
    """Runs the tasks that each benchmark allows (`tasks_of`), and returns their results on every rank.

    This is a collective.

    If a benchmark has folds, each score is the mean over the folds, as publications report it. A benchmark on which no
    task can be run, or whose copy or settings cannot be used, has no result. A warning names it, and the results of the
    other benchmarks are kept.

    Args:
        copies: The copies, which every rank reads.
        settings: The settings of the evaluation. The cards give the labels in place of the settings.
        embedder: The trained model, on this rank's device.
        world: The ranks among which the data are divided. No monitor may raise `LostContact` while this function runs,
            because the error would count as the failure of another rank on a copy.

    Raises:
        ConfigError, DataError: If no benchmark has a result, because of the first one that cannot be used.
        NoTaskError: If no task can be run on any of the benchmarks.
        LostContact: If another rank has failed with an error of another class.
        StoreError: If the address of the cache is wrong (`run_tasks.extraction`).
    """
    extraction = run_tasks.extraction(settings, embedder)
    results: list[TaskResult] = []
    errors: list[tuple[str, ConfigError | DataError]] = []
    for copy in copies:
        found = _results_or_error(copy, settings, extraction, world)
        if isinstance(found, list):
            results += found
        else:
            errors.append((copy.card.name, found))
    failed = [(name, error) for name, error in errors if not isinstance(error, NoTaskError)]
    if errors and not results:
        raise (failed or errors)[0][1]
    if errors and world.is_main:
        _log.warning("%d of %d benchmarks have no result:", len(errors), len(copies))
        for name, error in errors:
            _log.warning("%s", error if isinstance(error, NoTaskError) else f"{name}: {error}")
    without_task = tuple(str(error) for _, error in errors if isinstance(error, NoTaskError))
    return BenchmarkResults(tuple(results), tuple(f"{name}: {error}" for name, error in failed), without_task)


def copies_of_run(settings: EvaluationConfig) -> tuple[list[BenchmarkCopy], EvaluationConfig]:
    """Returns the copies that the settings of a run name, and the settings with which they are scored.

    The tasks are those of the run, or the default ones; a benchmark that allows none of them is left out with a line in
    the log. Labels by which scores are divided are for the run's own dataset.

    Raises:
        ConfigError: If there is no such benchmark, or the prompts of the run do not fit its classes.
    """
    of_benchmarks = settings.model_copy(
        update={"tasks": tuple(task.name for task in tasks.tasks_of(settings)), "by": ()}
    )
    found: list[BenchmarkCopy] = []
    for name, root in settings.benchmarks.items():
        copy = BenchmarkCopy(card(name), Path(root))
        try:
            tasks_of(settings_of(of_benchmarks, copy.card), copy.card)
        except NoTaskError as error:
            _log.info("left out: %s", error)
            continue
        found.append(copy)
    return found, of_benchmarks


def evaluate_run(settings: EvaluationConfig, embedder: Embedder, world: RankGroup) -> tuple[TaskResult, ...]:
    """Returns the results on the benchmarks that the settings of a run name, on every rank. This is a collective.

    In contrast to `evaluate`, an error on one benchmark ends the evaluation: the failure detector of a run may end a
    rank at any time, which must not be taken for a wrong copy. The next attempt repeats the evaluation.

    Raises:
        ConfigError, DataError, LostContact: If a benchmark cannot be evaluated.
    """
    copies, of_benchmarks = copies_of_run(settings)
    if not copies:
        return ()
    extraction = run_tasks.extraction(of_benchmarks, embedder)
    return tuple(chain.from_iterable(_on_copy(copy, of_benchmarks, extraction, world) for copy in copies))


_OF_COPY: dict[str, type[ConfigError | DataError]] = {
    each.__name__: each for each in (NoTaskError, ConfigError, DataError)
}


def _results_or_error(
    copy: BenchmarkCopy, settings: EvaluationConfig, extraction: Extraction, world: RankGroup
) -> list[TaskResult] | ConfigError | DataError:
    """Returns the results on a copy, or the error because of which it has none, on every rank. This is a collective.

    An error ends the work of all ranks at the same collective (`RankGroup.run_on_all`), but its class is not the same
    on all of them: a `DataError` of one rank is `LostContact` on the others. So the ranks exchange what they have
    raised, and then all of them continue, or none.

    Raises:
        Exception: If a rank has raised an error of a class that is not in `_OF_COPY`: its own error on that rank, and
            on the others their own error or `LostContact`.
    """
    own: Exception | None = None
    found: list[TaskResult] = []
    try:
        found = _on_copy(copy, settings, extraction, world)
    except Exception as error:  # noqa: BLE001 - raised again below, unless it says that this copy cannot be used
        own = error
    kind = next((name for name, each in _OF_COPY.items() if isinstance(own, each)), type(own).__name__)
    raised = world.gather((kind, str(own)) if own else None)
    kinds = {each[0] for each in raised if each}
    if not kinds:
        return found
    of_copy = [each for each in raised if each and each[0] in _OF_COPY]
    if not of_copy or kinds - {*_OF_COPY, LostContact.__name__}:
        raise own or LostContact(next(each[1] for each in raised if each))
    name, message = of_copy[0]
    return _OF_COPY[name](message)


def _on_copy(
    copy: BenchmarkCopy, settings: EvaluationConfig, extraction: Extraction, world: RankGroup
) -> list[TaskResult]:
    about = copy.card
    has_texts = extraction.embedder.has_texts
    chosen = tasks_of(settings_of(settings, about), about, has_texts=has_texts)
    # Every rank looks at the copy; one on which it is missing or differs must not leave the others waiting.
    hosts = world.gather(socket.gethostname())
    fits = world.run_on_all(partial(_fitting_or_error, about, copy.root))
    views = [str(each).removesuffix(".") if isinstance(each, Exception) else each[0].about for each in fits]
    _check_views(about, views, hosts)
    own = fits[world.rank]
    if isinstance(own, Exception):  # All ranks have the same error.
        raise own
    _, reader = own
    folds = [None] if about.folds is None else list(range(1, about.folds + 1))
    by = [name for name in settings.by if name in attributes_of(about)]
    # A copy that has only the scored split is enough for tasks that learn nothing.
    needed = {split for task in chosen for split in task.splits}
    sources: list[dict[SplitName, BenchmarkSource]] = [
        {name: each for name, each in found.items() if name in needed}
        for found in (sources_of(about, copy.root, reader, fold, with_attributes=bool(by)) for fold in folds)
    ]
    # The items are known only after the files of labels were read.
    views = world.run_on_all(partial(_views, sources))
    for of_ranks in zip(*views, strict=True):
        _check_views(about, of_ranks, hosts)
    # Every rank takes the lengths of rank 0, which are equal to its own.
    empty: set[SplitName] = {name for name, each in zip(_names(sources), views[0], strict=True) if not each.items}
    able = _with_examples(chosen, empty, settings, about)
    if world.is_main and len(able) < len(chosen):
        names = ", ".join(task.name for task in chosen if task not in able)
        splits = ", ".join(sorted(empty))
        _log.warning("benchmark %s: the split %s has no example, so these are left out: %s", about.name, splits, names)
    found = [run_tasks.run(able, each, extraction, world, by=by) for each in sources]
    means = world.run_on_main(lambda: [with_intervals(mean_of_folds(of_task)) for of_task in zip(*found, strict=True)])
    return [replace(each, url=f"{about.name}, {about.scored}", benchmark=about.name) for each in means]


def _fitting_or_error(about: Card, root: Path) -> tuple[Layout, LayoutReader] | ConfigError | DataError:
    try:
        return fitting(about, root)
    except (ConfigError, DataError) as error:
        return error


@dataclass(frozen=True, slots=True)
class _View:
    """Says what a rank sees of a split: its address, the number of items, and a digest of their names and labels."""

    address: str
    items: int
    digest: str

    def __str__(self) -> str:
        return f"{self.items:,} items of {self.address}"


def _names(sources: Sequence[Mapping[SplitName, BenchmarkSource]]) -> list[SplitName]:
    """Returns the names of the splits of all folds, in the order of `_views`."""
    return [name for each in sources for name in each]


def _views(sources: Sequence[Mapping[SplitName, BenchmarkSource]]) -> list[_View]:
    """Returns what this rank sees of each split of each fold."""
    return [_View(each.address, len(each), each.digest()) for of_fold in sources for each in of_fold.values()]


def _check_views(about: Card, views: Sequence[object], hosts: Sequence[str]) -> None:
    """Checks that all ranks see the same: otherwise their shares would not be those of one dataset.

    Args:
        about: The card.
        views: What each rank sees. All ranks pass equal sequences, so all of them raise the same error.
        hosts: The name of each rank's host.

    Raises:
        ConfigError: If a rank sees something else than rank 0.
    """
    other = next((rank for rank, each in enumerate(views) if each != views[0]), None)
    if other is None:
        return
    one, two = str(views[0]), str(views[other])
    seen = f"{one}, with other names or labels" if one == two else f"{one}, and {two}"
    raise ConfigError(
        f"benchmark {about.name}: the copies of ranks 0 and {other} differ: {seen}; give every rank the same copy "
        f"(rank {other} runs on {hosts[other]})."
    )


def _with_examples(
    chosen: Sequence[Task], empty: Collection[SplitName], settings: EvaluationConfig, about: Card
) -> list[Task]:
    """Returns the tasks that need none of the splits without examples.

    Args:
        chosen: The tasks that the benchmark allows.
        empty: The names of the splits without examples.
        settings: The settings of the evaluation, which may name the tasks.
        about: The card of the benchmark.

    Raises:
        NoTaskError: If no task is left, or if one that the settings name is left out.
    """
    able = [task for task in chosen if not set(task.splits) & set(empty)]
    if not able or (settings.tasks and len(able) < len(chosen)):
        names = ", ".join(task.name for task in chosen if task not in able)
        raise NoTaskError(f"benchmark {about.name}: the split {', '.join(sorted(empty))} has no example for {names}.")
    return able
