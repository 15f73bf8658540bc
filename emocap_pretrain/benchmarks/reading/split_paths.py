"""Finds the file or folder of a split."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from emocap_pretrain.benchmarks.reading.tree import BadPath, Tree, filled
from emocap_pretrain.errors import DataError


def values_of(split: str, fold: int | None) -> dict[str, str]:
    """Returns the values of the template fields `{split}` and, with a fold, `{fold}`."""
    return {"split": split} | ({} if fold is None else {"fold": str(fold)})


def split_path(paths: Mapping[str, str], split: str, fold: int | None) -> str:
    """Returns the path of a split.

    Raises:
        DataError: If the layout does not have the split, or if it has folds and `fold` is None.
    """
    return split_paths({name: (path,) for name, path in paths.items()}, split, fold)[0]


def split_paths(paths: Mapping[str, Sequence[str]], split: str, fold: int | None) -> list[str]:
    """Returns the paths of a split that has several. This function raises the errors of `split_path`."""
    if split not in paths:
        raise DataError(f"this layout has no split {split!r}; it has {', '.join(paths)}.")
    try:
        return [filled(path, values_of(split, fold)) for path in paths[split]]
    except BadPath as error:
        raise DataError(f"a path of split {split!r} cannot be made: {error}.") from error


def joined(folder: str, name: str) -> str:
    """Returns the path of a name in a folder. "." is the user's folder itself."""
    return str(PurePosixPath(folder) / name)


def first_missing(tree: Tree, paths: Iterable[str]) -> str | None:
    """Returns the first of the paths that does not exist, or None."""
    return next((path for path in paths if not tree.exists(path)), None)


def lack_of_copy(lacks: Iterable[str | None]) -> str | None:
    """Returns None if at least one split lacks nothing, so that a copy of some splits fits; otherwise the first lack.

    Args:
        lacks: For each split, the first path that is missing, or None.
    """
    first = None
    for lack in lacks:
        if lack is None:
            return None
        first = first or lack
    return first
