"""Downloads and verifies checkpoints, and chooses the one to resume from. This module never changes the store.

A run that refuses a checkpoint loses progress, and a checkpoint may look damaged only because the host that reads it
has a fault. So if an answer of the store looks wrong, the request is sent again, and several hosts check a checkpoint
before it is refused. A refused checkpoint stays in the store, and a later attempt checks it again (decision 21).
"""

import logging
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from emocap_shards.background import concurrently
from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.commit import sha256
from emocap_pretrain.checkpoint.layout import step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, File, check_sizes
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import is_intact
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import Status
from emocap_pretrain.run_folder.storage import read_repeatedly

DOWNLOADS = 4  # Files of a rank that are downloaded at the same time.
ATTEMPTS = 3  # How often a file is downloaded before it counts as damaged.
MAX_VERIFYING_HOSTS = 3  # How many hosts check whether a checkpoint is damaged.
MAX_LISTED_FAULTS = 5  # How many faults an error message lists.
UNREADABLE = "no checkpoint could be read"
Value = TypeVar("Value")

log = logging.getLogger(__name__)


@contextmanager
def downloaded(store: Store, checkpoint: Checkpoint, select: Callable[[str], bool]) -> Generator[Path]:
    """Yields a temporary folder with the selected files of a checkpoint, each of them verified.

    The folder is deleted at the end of the block. This is not a collective: a command or a single rank can call it.

    Example:
        with downloaded(store, checkpoint, "model.safetensors".__eq__) as folder:
            weights = load_file(folder / "model.safetensors")

    Args:
        store: The run's store.
        checkpoint: The checkpoint to read.
        select: Returns whether the file with this path is needed.

    Raises:
        CheckpointError: If a file is missing, or if its size or digest differs from the manifest.
    """
    with scratch() as folder:
        damaged = _fetch_all(store, checkpoint, [file for file in checkpoint.files if select(file.path)], folder)
        if damaged:
            raise CheckpointError(
                f"{store.url}/{checkpoint.folder}/{damaged[0].path} is missing or damaged: it is not what the manifest "
                f"of step {checkpoint.step} says. Take another step."
            )
        yield folder


class Resumed(NamedTuple):
    """Holds the checkpoint from which training continues.

    Args:
        checkpoint: The checkpoint, equal on all ranks.
        folder: Local folder with the files that this rank needs.
        refused: Save attempts of the newer checkpoints that were refused because a downloaded file was damaged; equal
            on all ranks, newest first.
    """

    checkpoint: Checkpoint
    folder: Path
    refused: tuple[str, ...] = ()


@contextmanager
def resumable(store: Store, world: RankGroup, select: Callable[[Checkpoint, str], bool]) -> Generator[Resumed | None]:
    """Yields the newest checkpoint that is intact on every rank; None if the run has no checkpoint.

    All ranks must call this function. The first `MAX_VERIFYING_HOSTS` hosts of the job (or all, if there are fewer)
    verify checkpoints. A checkpoint is refused, with a warning, if none of these hosts finds it intact. So in a job of
    several hosts, a single host with a broken disk or network cannot cause a refusal. A refused checkpoint stays in the
    store.

    The search has two stages for each candidate. First the verifying hosts read its manifest, and compare the file
    sizes in it with a listing of the store. Then every rank downloads the files that it needs, and compares their
    digests with the manifest. The local files are deleted at the end of the `with` block.

    Args:
        store: The run's store.
        world: All ranks, in a group from `RankGroup.patient`, because some ranks download far more than others.
        select: Returns whether this rank needs the file with this path.

    Raises:
        CheckpointError: If every checkpoint is refused, if no checkpoint is listed although an attempt has reported
            one, or if a host reads other bytes than the verifying hosts. In the last case the message names that host.
    """
    search = _Search(store, world, _verifying_ranks(world.gather(socket.gethostname())))
    with ExitStack() as stack:
        found = None
        # Each round either finds the checkpoint or refuses at least one, so the loop ends. All ranks make the same
        # rounds, because their decisions depend only on gathered values.
        while not found and (checkpoint := search.newest_complete()):
            stack.close()  # Deletes the previous download, so that the next one has room on the local disk.
            folder = search.download(checkpoint, stack, select)
            found = Resumed(checkpoint, folder, tuple(search.refused_attempts)) if folder else None
        if not found:
            world.run_on_main(search.confirm_none, failing=UNREADABLE)
        yield found


def _verifying_ranks(hosts: Sequence[str]) -> tuple[int, ...]:
    """Returns the first rank of each of the first `MAX_VERIFYING_HOSTS` hosts; rank 0 is one of them.

    `hosts` holds the name of the host of each rank.
    """
    # In reversed order, the first rank of a host is written last and remains.
    first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    return tuple(sorted(first.values())[:MAX_VERIFYING_HOSTS])


@dataclass(slots=True)
class _Search:
    """Searches for the checkpoint to resume from, and collects the damaged ones that it refuses on the way.

    After each method, `refused` and `refused_attempts` are equal on all ranks, so all ranks see the same candidates.

    Args:
        store: The run's store.
        world: All ranks.
        verifiers: The ranks that read the store to find out whether a checkpoint is damaged, one on each verifying
            host (see `_verifying_ranks`).
        refused: The fault of each refused checkpoint, by its step.
        refused_attempts: Save attempts of the checkpoints that were refused because a downloaded file was damaged. The
            manifest and the file sizes of these checkpoints are right.
    """

    store: Store
    world: RankGroup
    verifiers: tuple[int, ...]
    refused: dict[int, str] = field(default_factory=dict[int, str])
    refused_attempts: list[str] = field(default_factory=list[str])

    def newest_complete(self) -> Checkpoint | None:
        """Returns the newest checkpoint whose manifest and file sizes at least one verifying rank finds correct.

        All ranks must call this method. All checkpoints that are newer than the returned one are recorded as refused.
        If no checkpoint is correct, the result is None, and all checkpoints are recorded as refused.
        """
        scans = self._on_verifiers(self._scan, failing=UNREADABLE)
        newest = max((each for each, _ in scans if each), key=lambda each: each.step, default=None)
        for step, fault in sorted({step: fault for _, faults in scans for step, fault in faults}.items(), reverse=True):
            if newest is None or step > newest.step:
                self._refuse(step, fault)
        return newest

    def download(
        self, checkpoint: Checkpoint, stack: ExitStack, select: Callable[[Checkpoint, str], bool]
    ) -> Path | None:
        """Downloads the files that this rank needs into a local folder, which is deleted when `stack` is closed.

        All ranks must call this method.

        Returns:
            The local folder. If a file is damaged in the store, all ranks refuse the checkpoint and return None.
        """
        failing = f"the checkpoint of step {checkpoint.step} could not be read"
        folder = Path()

        # Damage is a value that `fetch` returns. An error of the store is an error of all ranks (`run_on_all`).
        def fetch() -> tuple[str, list[File]]:
            nonlocal folder
            folder = stack.enter_context(scratch())
            files = [file for file in checkpoint.files if select(checkpoint, file.path)]
            return socket.gethostname(), _fetch_all(self.store, checkpoint, files, folder)

        answers = self.world.run_on_all(fetch, failing=failing)
        reports = [(rank, host, files) for rank, (host, files) in enumerate(answers) if files]
        if not reports:
            return folder
        # All ranks take the same file, the first one of the first rank that reports any, and verifying ranks read it.
        rank, host, files = reports[0]
        # If another host reads the file correctly, the disk, memory or network of this host is at fault, not the store.
        if any(self._on_verifiers(partial(is_intact, self.store, checkpoint, files[0]), failing=failing)):
            raise CheckpointError(
                f"rank {rank} on {host} gets other bytes of {files[0].path} than the store holds: "
                "leave that host out and have its disk, memory and network checked."
            )
        self.refused_attempts.append(checkpoint.attempt)
        self._refuse(checkpoint.step, _summary([file.path for file in files]))
        return None

    def confirm_none(self) -> None:
        """Checks that the run has never had a checkpoint. Otherwise the run must not begin at step 0.

        An empty listing does not prove this: a folder may not be mounted, or the listing may be stale. So the method
        also reads the checkpoints that earlier attempts have reported in their status. Rank 0 alone calls this method.

        Raises:
            CheckpointError: If checkpoints were refused, or are not listed although an attempt reported one.
        """
        url, lost = self.store.url, _reported(self.store)
        faults = "; ".join(f"step {step}: {fault}" for step, fault in islice(self.refused.items(), MAX_LISTED_FAULTS))
        if faults:
            what = f"every checkpoint of the run at {url} is missing a file or damaged ({faults})"
        elif lost is not None:
            what = f"the run at {url} has committed a checkpoint of step {lost}, and none is listed now"
        else:
            return
        raise CheckpointError(
            f"{what}; nothing was deleted. Run `emocap checkpoints verify {url}`, preferably on another host, and "
            "restore the files; or begin anew with another url, or in this folder after you have deleted it."
        )

    def _on_verifiers(self, act: Callable[[], Value], *, failing: str) -> list[Value]:
        """Calls `act` on the ranks in `verifiers`, and returns their results on every rank.

        All ranks must call this method. `failing` is the beginning of the error message if `act` fails on a rank.
        """
        # None is the result of the other ranks, so `act` must not return None.
        results = self.world.run_on_all(lambda: act() if self.world.rank in self.verifiers else None, failing=failing)
        return [each for each in results if each is not None]

    def _scan(self) -> tuple[Checkpoint | None, list[tuple[int, str]]]:
        """Looks for the newest checkpoint whose manifest and file sizes are correct, as this host reads them.

        Returns:
            The checkpoint, or None if there is none; and the step and the fault of each newer checkpoint that was not
            refused before.
        """
        faults: list[tuple[int, str]] = []
        # An empty listing is read again. Listed steps are walked from the newest one downwards.
        for folder in next(filter(None, read_repeatedly(partial(step_folders, self.store))), []):
            if folder.manifest_bytes is None or folder.step in self.refused:
                continue
            checkpoint, wrong = check_sizes(self.store, folder)
            if checkpoint and not wrong:
                return checkpoint, faults
            faults.append((folder.step, _summary(wrong)))
        return None, faults

    def _refuse(self, step: int, fault: str) -> None:
        self.refused[step] = fault
        if self.world.is_main:
            log.warning(
                "the checkpoint of step %d in %s is skipped and not deleted: %s is missing or damaged; "
                "`emocap checkpoints verify` reads it again",
                step,
                self.store.url,
                fault,
            )


def _summary(paths: Sequence[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]


def _reported(store: Store) -> int | None:
    """Returns the step of the checkpoint that the newest attempt has reported in its status.

    If that attempt has reported no checkpoint, older attempts are read. The result is None if no attempt reported one.
    """
    for number in reversed(attempts.numbers(store)):
        status = attempts.status(store, number)
        if isinstance(status, Status) and status.checkpoint is not None:
            return status.checkpoint
    return None


def _fetch_all(store: Store, checkpoint: Checkpoint, files: list[File], folder: Path) -> list[File]:
    """Downloads files, a few at a time, and returns those that are missing or damaged."""
    whole = concurrently(partial(_fetch, store, checkpoint, folder), files, at_once=DOWNLOADS)
    return [file for file, is_good in zip(files, whole, strict=True) if not is_good]


def _fetch(store: Store, checkpoint: Checkpoint, folder: Path, file: File) -> bool:
    """Downloads a file and returns whether it is intact.

    If it is missing or damaged, it is downloaded again, up to `ATTEMPTS` times in all.
    """
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with suppress(NotFound):
            store.get_file(f"{checkpoint.folder}/{file.path}", target)
        if target.exists() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return True
    return False
