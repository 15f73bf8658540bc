"""Exports a model: writes it into a temporary folder, compares it in a fresh process, and then renames the folder.

The temporary folder lies beside the destination. Its name begins with a dot and ends in `.partial`. So an export that
is interrupted or refused leaves nothing at the destination, and an earlier export there stays until the new one is
complete.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from emocap_shards.errors import StoreError
from safetensors import SafetensorError

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export import verify
from emocap_pretrain.interop.export.card import CARD, CardFacts, card
from emocap_pretrain.interop.export.document import EXPORT, EXPORT_FILE, ExportDocument
from emocap_pretrain.interop.export.formats import ExportFormat
from emocap_pretrain.interop.export.probes import probes_of
from emocap_pretrain.interop.restore import Restored

_SPARE_BYTES = 1 << 20  # A disk with less free space is full: torch's error does not say so.
# The packages whose versions may change the vectors of a model.
_PACKAGES = ("emocap-pretrain", "torch", "timm", "transformers", "tokenizers")


def export(
    restored: Restored,
    kind: ExportFormat,
    folder: Path,
    *,
    facts: CardFacts,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> ExportDocument:
    """Exports a model into a folder, and returns the document that describes the export.

    Args:
        restored: The model, on the CPU.
        kind: The format.
        folder: The destination: a folder that does not exist or is empty or, with `force`, that holds an export.
        facts: What the model card says about the run.
        force: Whether an earlier export at the destination is replaced.
        say: Called with a line of progress before each stage.

    Raises:
        ConfigError: If a library is not installed, the destination is not free or its folder cannot be made, the format
            cannot hold the model, or the export differs from the model by more than `verify.BOUND`.
        StoreError: If the files cannot be written, for example because the disk is full.
    """
    verify.require_library(kind)
    require_free(folder, force=force)
    with _renamed(folder) as partial, _disk_errors(folder, partial):
        say(f"writing the model for {kind.name}")
        kind.write(restored, partial)
        say(f"comparing it in a fresh process with {kind.library}")
        differences = verify.differences(kind, partial, probes_of(restored))
        kind.moved(partial, folder.absolute())
        versions = _versions(kind)
        (partial / CARD).write_text(card(restored, kind, facts, differences, versions), encoding="utf-8")
        document = ExportDocument(
            format=kind.name,
            name=restored.config.name,
            step=restored.step,
            run_id=restored.run_id,
            data_digest=restored.data_digest,
            differences=differences,
            bound=verify.BOUND,
            lacks=kind.lacks(restored),
            versions=versions,
        )
        (partial / EXPORT_FILE).write_bytes(EXPORT.dump(document))
        _share(partial)
    return document


def require_free(folder: Path, *, force: bool) -> None:
    """Checks that an export may be written to a folder.

    Raises:
        ConfigError: If there is a link, a file, or a folder that is not empty. With `force`, the folder may hold an
            earlier export.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} is not a folder: give another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / EXPORT_FILE).is_file():
        raise ConfigError(f"{folder} is not empty and holds no export: give another --out.")
    if not force:
        raise ConfigError(f"{folder} holds an export already: give another --out, or replace it with --force.")


@contextmanager
def _disk_errors(folder: Path, partial: Path) -> Generator[None]:
    """Turns an error of the block into a `StoreError` if the files cannot be written into `partial`.

    safetensors reports a full disk by an error class of its own, and torch by a `RuntimeError` that does not name the
    reason. So a `RuntimeError` counts if the disk has no space left.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        full = shutil.disk_usage(partial).free < _SPARE_BYTES or os.strerror(errno.ENOSPC) in str(error)
        if isinstance(error, RuntimeError) and not full:
            raise
        why, cure = (os.strerror(errno.ENOSPC), "free some space") if full else (said or error, "correct this")
        raise StoreError(
            f"--out {folder}: the export cannot be written ({why}): {cure}, and start the same command again."
        ) from error


@contextmanager
def _renamed(folder: Path) -> Generator[Path]:
    """Yields a new empty folder beside `folder`, and renames it to `folder` after the block.

    If the block raises an error, the new folder is deleted, and an earlier export at `folder` stays.

    Raises:
        ConfigError: If no folder can be made there.
    """
    unique = uuid.uuid4().hex[:12]
    partial, old = (folder.absolute().with_name(f".{folder.name}.{unique}.{end}") for end in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: no folder can be made there: {error.strerror}.") from error
    try:
        yield partial
        if folder.exists() and any(folder.iterdir()):
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists():
            old.rename(folder)
        raise
    if old.exists():
        shutil.rmtree(old)


def _share(folder: Path) -> None:
    """Gives all files the access rights of a new file. safetensors makes files that only their owner may read."""
    rights = (folder / EXPORT_FILE).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(rights)


def _versions(kind: ExportFormat) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in dict.fromkeys((*_PACKAGES, *kind.modules.values())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
