"""Which checkpoints stay."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import StepFolder, folder_of, forget, start_of, step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, read


@dataclass(frozen=True, slots=True)
class Retention:
    """The newest `keep_last` checkpoints stay, and those whose step is a multiple of `keep_every`."""

    keep_last: int = 3
    keep_every: int | None = None

    def kept(self, steps: Iterable[int]) -> set[int]:
        newest = sorted(steps, reverse=True)
        return set(newest[: self.keep_last]) | {
            step for step in newest if self.keep_every and not step % self.keep_every
        }


@dataclass(frozen=True, slots=True)
class Deletion:
    """What goes of a step: the checkpoint with all that lies beside it, or some unfinished attempts at it."""

    step: int
    attempts: tuple[str, ...]
    bytes: int
    of_checkpoint: bool


def retain(
    store: Store, retention: Retention, *, before: int | None = None, check: Callable[[], None] = lambda: None
) -> list[int]:
    """Delete the checkpoints that do not stay, and what unfinished attempts have left.

    Args:
        store: The run's store.
        retention: What stays.
        before: As in `deletions`.
        check: Called before each deletion; where it raises, nothing more is deleted.

    Returns:
        Steps whose checkpoint was deleted.
    """
    deleted: list[int] = []
    for each in deletions(store, retention, before=before):
        check()
        delete(store, each)
        deleted += [each.step] if each.of_checkpoint else []
    return deleted


def deletions(store: Store, retention: Retention, *, before: int | None = None) -> list[Deletion]:
    """What does not stay, newest first.

    Args:
        store: The run's store.
        retention: What stays.
        before: Attempts of this start and of newer ones may be under way and are left alone; None: none is under way.
    """
    folders = step_folders(store)
    kept = retention.kept(each.step for each in folders if each.manifest_bytes is not None)
    found: list[Deletion] = []
    for folder in folders:
        of_checkpoint = folder.manifest_bytes is not None and folder.step not in kept
        names = tuple(folder.attempts) if of_checkpoint else _left(store, folder, before)
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


def _left(store: Store, folder: StepFolder, before: int | None) -> tuple[str, ...]:
    if folder.manifest_bytes is not None and len(folder.attempts) == 1:
        return ()  # The usual case, without reading the manifest.
    standing = None if folder.manifest_bytes is None else read(store, folder.step)
    return tuple(each for each in unfinished(folder, standing) if before is None or start_of(each) < before)
