"""Verifies checkpoints: reads every byte from the store and compares digests.

`loader` itself verifies the files that it downloads. This module verifies files in the store and keeps no local copy.
It has three callers: commands, hosts that check a file which another host has found damaged, and a commit of a step
that already has a manifest.
"""

import hashlib
from collections.abc import Callable
from functools import partial

from emocap_shards.background import concurrently
from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.manifest import Checkpoint, File

PIECE_BYTES = 16 << 20
ATTEMPTS = 2
READERS = 8  # Files that are read at the same time, each in pieces of `PIECE_BYTES`.


def damaged_files(
    store: Store, checkpoint: Checkpoint, *, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Returns the paths of the files that are missing or differ from the manifest. The local disk is not used.

    Args:
        store: The run's store.
        checkpoint: The checkpoint to verify.
        progress: Called with the number of bytes read since the last call, from several threads.
    """
    check = partial(is_intact, store, checkpoint, progress=progress)
    whole = concurrently(check, checkpoint.files, at_once=READERS)
    return [file.path for file, is_good in zip(checkpoint.files, whole, strict=True) if not is_good]


def is_intact(
    store: Store, checkpoint: Checkpoint, file: File, *, progress: Callable[[int], object] = lambda _: None
) -> bool:
    """Returns whether the store holds the file with the size and digest that the manifest names.

    A file counts as damaged only after it was read twice. `progress` is called with the number of bytes read since its
    last call.
    """
    digest = partial(_digest, store, f"{checkpoint.folder}/{file.path}", file.bytes, progress)
    return any(digest() == file.sha256 for _ in range(ATTEMPTS))


def _digest(store: Store, path: str, size: int, progress: Callable[[int], object]) -> str | None:
    """Returns the SHA-256 of an object; None if it is missing or does not have `size` bytes.

    `progress` is called with the number of bytes of each piece that was read.
    """
    done, digest = 0, hashlib.sha256()
    try:
        # One byte more than `size` is requested, so that a longer object is noticed without being read to its end.
        while piece := store.read_range(path, done, min(done + PIECE_BYTES, size + 1)):
            done += len(piece)
            digest.update(piece)
            progress(len(piece))
    except NotFound:
        return None
    return digest.hexdigest() if done == size else None
