"""Which checkpoints stay. This is the only module that deletes checkpoints.

A wrong reading makes it delete less, never more: what is deleted is older than `keep_last` checkpoints that were found
whole, so a checkpoint that looks damaged, or that a listing does not show, only lets older ones stay longer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import StepFolder, folder_of, forget, manifest_of, start_of, step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, again, examine, read
from emocap_pretrain.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Retention:
    """The newest `keep_last` whole checkpoints stay with all newer ones, and those whose step `keep_every` divides."""

    keep_last: int = 3
    keep_every: int | None = None

    def oldest(self, steps: Iterable[int], is_whole: Callable[[int], bool] = lambda _: True) -> int:
        """The step below which `keep_last` lets checkpoints be deleted; -1 where there are too few whole ones.

        Args:
            steps: Every step that has a manifest.
            is_whole: Whether the checkpoint of a step counts; asked from the newest one on until there are enough.
        """
        newest = sorted(steps, reverse=True)
        if len(newest) < self.keep_last:
            return -1
        counted = list(islice(filter(is_whole, newest), self.keep_last))
        return counted[-1] if len(counted) == self.keep_last else -1

    def keeps(self, step: int, oldest: int) -> bool:
        return step >= oldest or (self.keep_every is not None and step % self.keep_every == 0)


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is deleted of a step: the checkpoint with all files of the step, or some unfinished attempts at it."""

    step: int
    attempts: tuple[str, ...]
    bytes: int
    of_checkpoint: bool


def retain(
    store: Store,
    retention: Retention,
    *,
    before: int | None = None,
    counts: Callable[[Checkpoint], bool] = lambda _: True,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Delete the checkpoints that do not stay, and what unfinished attempts have left.

    Args:
        store: The run's store.
        retention: What stays.
        before: As in `deletions`.
        counts: Whether a checkpoint whose manifest and sizes are right counts towards `keep_last`.
        check: Called before each deletion; where it raises, nothing more is deleted.

    Returns:
        Steps whose checkpoint was deleted.
    """
    deleted: list[int] = []
    for each in deletions(store, retention, before=before, is_whole=partial(_is_complete, store, counts)):
        check()
        delete(store, each)
        deleted += [each.step] if each.of_checkpoint else []
    return deleted


def deletions(
    store: Store,
    retention: Retention,
    *,
    before: int | None = None,
    is_whole: Callable[[StepFolder], bool] | None = None,
) -> list[Deletion]:
    """What does not stay, newest first.

    Args:
        store: The run's store.
        retention: What stays.
        before: Attempts of this start and of newer ones may be under way and are left alone, and so are the unfinished
            ones that are not older than what stays. None: the run has ended, every unfinished attempt is deleted.
        is_whole: Whether a checkpoint counts towards `keep_last`; by default its manifest and the sizes decide.
    """
    folders = step_folders(store)
    judge = is_whole or partial(_is_complete, store, lambda _: True)
    committed = {each.step: each for each in folders if each.manifest_bytes is not None}
    oldest = retention.oldest(committed, lambda step: judge(committed[step]))
    found: list[Deletion] = []
    for folder in folders:
        of_checkpoint = folder.manifest_bytes is not None and not retention.keeps(folder.step, oldest)
        names = tuple(folder.attempts) if of_checkpoint else _left(store, folder, before, oldest)
        if names or of_checkpoint:
            number = sum(sum(folder.attempts[name].values()) for name in names)
            found.append(Deletion(folder.step, names, number, of_checkpoint))
    return found


def delete(store: Store, deletion: Deletion) -> None:
    if deletion.of_checkpoint:
        forget(store, deletion.step)
        return
    for attempt in deletion.attempts:
        store.delete_tree(f"{folder_of(deletion.step)}/{attempt}")


def unfinished(folder: StepFolder, standing: Checkpoint | None) -> list[str]:
    """Attempts at a step beside the one that its manifest names; none where the manifest cannot be read."""
    if folder.manifest_bytes is not None and standing is None:
        return []
    return [each for each in folder.attempts if standing is None or each != standing.attempt]


def _is_complete(store: Store, counts: Callable[[Checkpoint], bool], folder: StepFolder) -> bool:
    try:
        checkpoint, faults = examine(store, folder)
    except CheckpointError:  # Of another version of this package.
        return False
    return checkpoint is not None and not faults and counts(checkpoint)


def _left(store: Store, folder: StepFolder, before: int | None, oldest: int) -> tuple[str, ...]:
    """The unfinished attempts of a step that may be deleted; names that `new_attempt` did not give are left alone."""
    if folder.manifest_bytes is not None and len(folder.attempts) == 1:
        return ()  # The usual case, without reading the manifest.
    numbers = {each: start_of(each) for each in folder.attempts}
    old = [each for each, number in numbers.items() if number is not None and (before is None or number < before)]
    if not old or (folder.manifest_bytes is None and before is not None and folder.step >= oldest):
        return ()
    if folder.manifest_bytes is None:
        # A listing may be stale: what has a manifest after all is a checkpoint.
        return () if any(again(partial(store.exists, manifest_of(folder.step)))) else tuple(old)
    try:
        present = read(store, folder.step)
    except CheckpointError:  # Of another version of this package.
        return ()
    return tuple(each for each in old if present and each != present.attempt)
