"""Decides which checkpoints are kept, and deletes the others. This is the only module that deletes checkpoints.

If the store gives a wrong answer, this module deletes less and never more. It deletes a checkpoint only if at least
`keep_last` newer checkpoints are intact. A checkpoint that looks damaged, or that a listing does not show, is not
counted.

This module has two callers. `Saver.sweep`, in a running attempt, compares only manifests and sizes, and must not delete
what a newer attempt is uploading. The command `emocap checkpoints prune` reads every byte by default, and refuses to
run while an attempt of the run is alive, unless the user forces it. Decision 21 has the reasons. A property test
injects wrong answers of the store.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.best import Criterion, steps_to_keep
from emocap_pretrain.checkpoint.layout import (
    StepFolder,
    delete_checkpoint,
    folder_of,
    manifest_of,
    run_attempt_of,
    step_folders,
)
from emocap_pretrain.checkpoint.manifest import Checkpoint, check_sizes, read
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder.storage import read_repeatedly


@dataclass(frozen=True, slots=True)
class Retention:
    """Defines which checkpoints are kept.

    A checkpoint of step 0 is always kept. It holds the weights with which the run began, and no later step can make
    them again.

    Args:
        keep_last: Number of newest intact checkpoints that are kept. Damaged checkpoints that are newer than the
            oldest of these are kept too.
        keep_every: Checkpoints at multiples of this step are kept as well.
        keep_best: The score by which the best evaluated checkpoint is found, which is kept as well; None for no score.
    """

    keep_last: int = 3
    keep_every: int | None = None
    keep_best: Criterion | None = None

    def oldest(self, steps: Iterable[int], is_intact: Callable[[int], bool] = lambda _: True) -> int:
        """Returns the oldest step that is kept because of `keep_last`.

        Args:
            steps: Every step that has a manifest.
            is_intact: Returns whether the checkpoint of a step counts. It is called from the newest step downwards
                until `keep_last` checkpoints are found.

        Returns:
            The step; -1 if fewer than `keep_last` checkpoints count, so that all checkpoints are kept.
        """
        newest = sorted(steps, reverse=True)
        if len(newest) < self.keep_last:
            return -1
        # `filter` and `islice` are lazy: checkpoints that are older than the result are not read.
        counted = list(islice(filter(is_intact, newest), self.keep_last))
        return counted[-1] if len(counted) == self.keep_last else -1

    def keeps(self, step: int, oldest: int) -> bool:
        """Returns whether the checkpoint of a step is kept; `oldest` is the result of the method `oldest`.

        The best checkpoint is kept too (`best`).
        """
        return step == 0 or step >= oldest or (self.keep_every is not None and step % self.keep_every == 0)

    def best(self, store: Store, steps: Iterable[int], oldest: int) -> frozenset[int]:
        """Returns the steps that are kept because their checkpoint is, or may be, the best evaluated one.

        Args:
            store: The run's store, which holds the results.
            steps: Every step that has a manifest.
            oldest: The result of the method `oldest`.
        """
        everything = sorted(steps)
        if self.keep_best is None or all(self.keeps(step, oldest) for step in everything):
            return frozenset()
        return steps_to_keep(store, self.keep_best, everything)


@dataclass(frozen=True, slots=True)
class Deletion:
    """Describes the files of one step that are to be deleted.

    Args:
        step: The step.
        attempts: The save attempts whose files are deleted.
        bytes: Size of these files.
        includes_checkpoint: Whether the step's committed checkpoint is deleted with all save attempts of the step.
            Otherwise only unfinished save attempts are deleted.
    """

    step: int
    attempts: tuple[str, ...]
    bytes: int
    includes_checkpoint: bool


def retain(
    store: Store,
    retention: Retention,
    *,
    before: int | None = None,
    counts: Callable[[Checkpoint], bool] = lambda _: True,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Deletes the checkpoints that are not kept, and the files of unfinished save attempts.

    This function is not a collective. If the process crashes between two deletions, a later call deletes the rest.

    Args:
        store: The run's store.
        retention: The rule by which checkpoints are kept.
        before: Number of the run attempt that is alive, or None; see `deletions`.
        counts: Returns whether a checkpoint whose manifest and sizes are right counts towards `keep_last`.
        check: Called before each deletion; if it raises, nothing more is deleted. An attempt passes `Attempt.check`, so
            that it deletes nothing once a newer attempt owns the run.

    Returns:
        The steps whose checkpoint was deleted, newest first.
    """
    deleted: list[int] = []
    for each in deletions(store, retention, before=before, is_intact=partial(_is_complete, store, counts)):
        check()
        delete(store, each)
        deleted += [each.step] if each.includes_checkpoint else []
    return deleted


def deletions(
    store: Store,
    retention: Retention,
    *,
    before: int | None = None,
    is_intact: Callable[[StepFolder], bool] | None = None,
) -> list[Deletion]:
    """Returns the checkpoints and unfinished save attempts to delete, newest first. This function deletes nothing.

    If the checkpoint of a step is to be deleted, so are all save attempts of the step.

    Args:
        store: The run's store.
        retention: The rule by which checkpoints are kept.
        before: Number of the run attempt that is alive; None if no run attempt is alive, so that no save attempt can be
            in progress. If a number is given, two kinds of unfinished save attempts are kept. (1) Those of this run
            attempt and of newer ones are kept, because they may be in progress. (2) At the oldest step that is kept
            because of `keep_last` and at newer steps, those of a step without a listed manifest are kept. The listing
            may lack the manifest, and the files may then be those of a checkpoint.
        is_intact: Returns whether a checkpoint counts towards `keep_last`. By default a checkpoint counts if its
            manifest and the sizes of its files are right.
    """
    folders = step_folders(store)
    counts = is_intact or partial(_is_complete, store, lambda _: True)
    # A damaged checkpoint is in this mapping too. It does not count towards `keep_last`, but it can be deleted.
    committed = {each.step: each for each in folders if each.manifest_bytes is not None}
    oldest = retention.oldest(committed, lambda step: counts(committed[step]))
    best = retention.best(store, committed, oldest)
    found: list[Deletion] = []
    for folder in folders:
        is_kept = retention.keeps(folder.step, oldest) or folder.step in best
        includes_checkpoint = folder.manifest_bytes is not None and not is_kept
        if includes_checkpoint:
            names = tuple(each for each in folder.attempts if run_attempt_of(each) is not None)
        else:
            names = _deletable_attempts(store, folder, before, oldest)
        if names or includes_checkpoint:
            number = sum(sum(folder.attempts[name].values()) for name in names)
            found.append(Deletion(folder.step, names, number, includes_checkpoint))
    return found


def delete(store: Store, deletion: Deletion) -> None:
    """Deletes the files of `deletion`, which is one of the entries that `deletions` returned."""
    if deletion.includes_checkpoint:
        delete_checkpoint(store, deletion.step)
        return
    for attempt in deletion.attempts:
        store.delete_tree(f"{folder_of(deletion.step)}/{attempt}")


def unfinished(folder: StepFolder, committed: Checkpoint | None) -> list[str]:
    """Returns the save attempts of a step that did not become the step's checkpoint.

    `committed` is the checkpoint of the step, or None. If the step has a manifest that cannot be read, `committed` is
    None and the result is empty, because any of the save attempts may belong to the checkpoint.
    """
    if folder.manifest_bytes is not None and committed is None:
        return []
    return [each for each in folder.attempts if committed is None or each != committed.attempt]


def _is_complete(store: Store, counts: Callable[[Checkpoint], bool], folder: StepFolder) -> bool:
    try:
        checkpoint, faults = check_sizes(store, folder)
    except CheckpointError:  # Another version of this package wrote it.
        return False
    return checkpoint is not None and not faults and counts(checkpoint)


def _deletable_attempts(store: Store, folder: StepFolder, before: int | None, oldest: int) -> tuple[str, ...]:
    """Returns the unfinished save attempts of a step that may be deleted.

    A folder that does not have the name of a save attempt is never returned.

    Args:
        store: The run's store.
        folder: The listed files of the step.
        before: Number of the run attempt that is alive, or None; see `deletions`.
        oldest: The oldest step that is kept because of `Retention.keep_last`.
    """
    if folder.manifest_bytes is not None and len(folder.attempts) == 1:
        return ()  # The usual case, decided without reading the manifest.
    # Only attempts that are older than the caller's own may be deleted, because the others may be in progress.
    numbers = {each: run_attempt_of(each) for each in folder.attempts}
    old = [each for each, number in numbers.items() if number is not None and (before is None or number < before)]
    # At a kept step without a listed manifest, the listing may be wrong, and the files may be those of a checkpoint.
    if not old or (folder.manifest_bytes is None and before is not None and folder.step >= oldest):
        return ()
    if folder.manifest_bytes is None:
        # The listing may be stale: if there is a manifest after all, these files belong to a checkpoint.
        return () if any(read_repeatedly(partial(store.exists, manifest_of(folder.step)))) else tuple(old)
    # The manifest names the save attempt whose files belong to the checkpoint. If it cannot be read, none is deleted.
    try:
        present = read(store, folder.step)
    except CheckpointError:  # Another version of this package wrote it.
        return ()
    return tuple(each for each in old if present and each != present.attempt)
