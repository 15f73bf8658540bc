"""Every byte of a checkpoint, read from the store and compared."""

import hashlib
from collections.abc import Callable
from functools import partial

from emocap_shards.background import concurrently
from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.manifest import Checkpoint, File

PIECE_BYTES = 16 << 20
ATTEMPTS = 2
READERS = 8


def damaged_files(
    store: Store, checkpoint: Checkpoint, *, readers: int = READERS, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Paths of the files that are missing or are not what the manifest says; nothing comes onto the local disk.

    Args:
        store: The run's store.
        checkpoint: What its manifest says.
        readers: Files that are read at the same time, in pieces of 16 MiB each.
        progress: Told how many bytes were read since the last time, from several threads.
    """
    look = partial(is_whole, store, checkpoint, progress=progress)
    whole = concurrently(look, checkpoint.files, at_once=readers) if checkpoint.files else []
    return [file.path for file, is_good in zip(checkpoint.files, whole, strict=True) if not is_good]


def is_whole(
    store: Store, checkpoint: Checkpoint, file: File, *, progress: Callable[[int], object] = lambda _: None
) -> bool:
    """Whether the file has its size and digest; a bit that flips on the way is worth another attempt."""
    digest = partial(_digest, store, f"{checkpoint.folder}/{file.path}", file.bytes, progress)
    return any(digest() == file.sha256 for _ in range(ATTEMPTS))


def _digest(store: Store, path: str, size: int, progress: Callable[[int], object]) -> str | None:
    """SHA-256; None where the object is missing or has another size."""
    found, digest = 0, hashlib.sha256()
    try:
        while piece := store.read_range(path, found, min(found + PIECE_BYTES, size + 1)):
            found += len(piece)
            digest.update(piece)
            progress(len(piece))
    except NotFound:
        return None
    return digest.hexdigest() if found == size else None
