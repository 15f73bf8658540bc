"""Which checkpoints stay."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import StepFolder, folder_of, forget, start_of, step_folders
from emocap_pretrain.checkpoint.manifest import read


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


def retain(
    store: Store, retention: Retention, *, before: int | None = None, check: Callable[[], None] = lambda: None
) -> list[int]:
    """Delete the checkpoints that do not stay, and what unfinished attempts have left.

    Args:
        store: The run's store.
        retention: What stays.
        before: Attempts of this start and of newer ones may be under way and are left alone; None: none is under way.
        check: Called before each deletion; where it raises, nothing more is deleted.

    Returns:
        Steps whose checkpoint was deleted.
    """
    folders = step_folders(store)
    kept = retention.kept(each.step for each in folders if each.manifest_bytes is not None)
    deleted: list[int] = []
    for folder in folders:
        if folder.manifest_bytes is None or folder.step in kept:
            _forget_attempts(store, folder, before, check)
        else:
            check()
            forget(store, folder.step)
            deleted.append(folder.step)
    return deleted


def unfinished(store: Store, folder: StepFolder, before: int | None = None) -> list[str]:
    """Attempts at a step that no manifest names and that starts older than `before` have made."""
    attempts = [each for each in folder.attempts if before is None or start_of(each) < before]
    if folder.manifest_bytes is None:
        return attempts
    if len(folder.attempts) == 1:
        return []  # The usual case, without reading the manifest.
    standing = read(store, folder.step)
    return [each for each in attempts if standing and each != standing.attempt]


def _forget_attempts(store: Store, folder: StepFolder, before: int | None, check: Callable[[], None]) -> None:
    for attempt in unfinished(store, folder, before):
        check()
        store.delete_tree(f"{folder_of(folder.step)}/{attempt}")
