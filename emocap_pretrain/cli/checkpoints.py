"""Defines `emocap checkpoints`, which lists, verifies and deletes the checkpoints of a run.

`list` and `verify` change nothing (decision 21). `prune` and training decide with the same module,
`checkpoint/retention.py`, which checkpoints they delete. By default `prune` reads every byte of the checkpoints that it
keeps, while training only compares sizes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import typer
from emocap_shards.inspecting.wording import size
from emocap_shards.store import Store, open_store
from tqdm import tqdm

from emocap_pretrain.checkpoint.best import Criterion
from emocap_pretrain.checkpoint.layout import StepFolder, manifest_of, step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, mismatched_files, newest, read_listed
from emocap_pretrain.checkpoint.retention import Retention, delete, deletions, unfinished
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import need_answer, open_soon
from emocap_pretrain.cli.tables import grid, plain
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.folder import RUN_FILE
from emocap_pretrain.run_folder.state import RunState
from emocap_pretrain.terminal import FAILED, Command, Group, console, errors_as_lines, say_json

# The states of a row. A foreign checkpoint has a manifest that this version cannot use, such as one of a newer version.
WHOLE, UNFINISHED, DAMAGED, FOREIGN = "whole", "unfinished", "damaged", "foreign"

app = typer.Typer(cls=Group, help="List, verify and prune the checkpoints of a run.", no_args_is_help=True)
Url = Annotated[str, typer.Argument(help="The run's folder or URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """Describes the checkpoint of a step, or the files of unfinished saves of that step. Unknown values are None.

    `state` is "whole", "unfinished", "damaged" or "foreign"; a foreign checkpoint has a manifest that this version
    cannot use. `at` is the time at which the checkpoint was saved, in seconds since 1970.
    """

    step: int
    state: str
    bytes: int
    files: int
    at: float | None = None
    ranks: int | None = None
    zero_stage: int | None = None
    loss: float | None = None
    note: str = ""


@app.command("list", cls=Command)
def list_command(url: Url, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the checkpoints, newest first. Sizes of files are compared; no file except the manifests is read."""
    with errors_as_lines(debug=debug):
        store = open_soon(url)
        rows = [row for folder in step_folders(store) for row in _rows(store, folder)]
        if as_json:
            say_json([asdict(row) for row in rows])
        elif rows:
            columns = ("step", "saved (UTC)", "size", "files", "ranks", "ZeRO", "loss", "state")
            console.print(grid(f"Checkpoints of {store.url}", columns, map(_cells, rows), left=0))
            for row in rows:
                if row.note:
                    console.print(plain(f"step {row.step}: {row.note}"))
        else:
            console.print(f"{store.url} has no checkpoints.")


@app.command("verify", cls=Command)
def verify_command(
    url: Url,
    step: Annotated[int | None, typer.Option(help="Verify only this step.", min=0)] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read every byte of the checkpoints. Exit codes: 0 intact, 1 damaged, 2 nothing to verify."""
    with errors_as_lines(debug=debug):
        need_answer(url, RUN_FILE)
        store = open_store(url)
        folders = _chosen(store, step)
        faults = {each.step: _faults(store, each, quiet=as_json) for each in folders}
        if as_json:
            say_json({str(step): found for step, found in faults.items()})
        else:
            for number, found in faults.items():
                _print_faults(number, found)
            if any(faults.values()):
                console.print(
                    "The next attempt skips damaged checkpoints and resumes from the newest intact one; nothing is "
                    "deleted."
                )
        raise typer.Exit(FAILED if any(faults.values()) else 0)


@app.command("prune", cls=Command)
def prune_command(
    url: Url,
    keep_last: Annotated[int, typer.Option(help="Number of newest intact checkpoints to keep.", min=1)],
    keep_every: Annotated[
        int | None, typer.Option(help="Also keep checkpoints at multiples of this step.", min=1)
    ] = None,
    keep_best: Annotated[
        str | None,
        typer.Option(
            help="Also keep the best evaluated checkpoint by this score; default checkpoint.keep_best of the run."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted; delete nothing.")] = False,
    sizes_only: Annotated[
        bool, typer.Option("--sizes-only", help="Compare only the sizes of the kept files; do not read every byte.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Prune although an attempt of the run is alive.")] = False,
    debug: Debug = False,
) -> None:
    """Delete old checkpoints and the files of unfinished saves, without confirmation.

    A checkpoint counts towards --keep-last if every byte of it is right; with --sizes-only, if the size of every file
    is right. If too few checkpoints count, none is deleted.
    """
    with errors_as_lines(debug=debug):
        store = open_soon(url)
        retention = Retention(keep_last, keep_every, Criterion.of_checkpoint(newest(store), keep_best))
        alive = _alive(store)
        if alive is not None and not force and not dry_run:
            raise ConfigError(
                f"attempt {alive} of the run at {store.url} is alive: end it first, or prune with --force "
                "(the checkpoint that it is saving now is kept)."
            )
        freed = 0
        is_intact = None if sizes_only else partial(_is_whole, store)
        # With `before`, what a living attempt is uploading now is not deleted, although it has no manifest yet.
        for each in deletions(store, retention, before=alive, is_intact=is_intact):
            freed += each.bytes
            what = "the checkpoint" if each.includes_checkpoint else "files of an unfinished save"
            verb = "would delete" if dry_run else "deleting"
            console.print(f"step {each.step}: {verb} {what}, {size(each.bytes)}")
            if not dry_run:
                delete(store, each)
        console.print(f"{size(freed)} {'would be ' if dry_run else ''}freed.")


def _rows(store: Store, folder: StepFolder) -> list[CheckpointRow]:
    """Returns up to two rows: one for the committed checkpoint of a step, and one for the files of unfinished saves."""
    rows: list[CheckpointRow] = []
    committed = None
    if folder.manifest_bytes is not None:
        try:
            committed = read_listed(store, folder)
            note = "the manifest is damaged; the next attempt skips this checkpoint and resumes from the previous one"
            rows.append(_committed(committed, folder) if committed else _unknown(folder, DAMAGED, note))
        except CheckpointError as error:
            rows.append(_unknown(folder, FOREIGN, str(error)))
    left = [folder.attempts[attempt] for attempt in unfinished(folder, committed)]
    if left:
        files, number = sum(map(len, left)), sum(sum(each.values()) for each in left)
        rows.append(CheckpointRow(folder.step, UNFINISHED, number, files))
    return rows


def _unknown(folder: StepFolder, state: str, note: str) -> CheckpointRow:
    present = [number for attempt in folder.attempts.values() for number in attempt.values()]
    return CheckpointRow(folder.step, state, sum(present), len(present), note=note)


def _committed(checkpoint: Checkpoint, folder: StepFolder) -> CheckpointRow:
    lost = mismatched_files(checkpoint, folder)
    return CheckpointRow(
        checkpoint.step,
        DAMAGED if lost else WHOLE,
        checkpoint.bytes,
        len(checkpoint.files),
        checkpoint.at,
        checkpoint.ranks,
        _at(checkpoint.state, "config", "engine", "zero_stage"),
        _at(checkpoint.state, "progress", "row", "loss"),
        f"{len(lost)} of {len(checkpoint.files)} files are missing or have another size, such as {lost[0]}"
        if lost
        else "",
    )


def _at(state: Any, *keys: str) -> Any:
    """Returns the number that nested mappings hold at the path `keys`; None if there is no number at this path."""
    for key in keys:
        state = state.get(key) if isinstance(state, dict) else None
    return state if isinstance(state, int | float) else None


def _cells(row: CheckpointRow) -> tuple[str, ...]:
    saved = "-" if row.at is None else datetime.fromtimestamp(row.at, UTC).strftime("%Y-%m-%d %H:%M")
    loss = "-" if row.loss is None else f"{row.loss:.4g}"
    known = ("-" if each is None else str(each) for each in (row.ranks, row.zero_stage))
    return str(row.step), saved, size(row.bytes), f"{row.files:,}", *known, loss, row.state


def _chosen(store: Store, step: int | None) -> list[StepFolder]:
    committed = [each for each in step_folders(store) if each.manifest_bytes is not None]
    chosen = [each for each in committed if step in {None, each.step}]
    if not chosen:
        which = "no checkpoints" if step is None else f"no checkpoint of step {step}"
        steps = ", ".join(str(each.step) for each in committed[:10]) or "none"
        raise ConfigError(f"{store.url} has {which}; steps: {steps}.")
    return chosen


def _faults(store: Store, folder: StepFolder, *, quiet: bool) -> list[str]:
    checkpoint = read_listed(store, folder)
    if checkpoint is None:
        return [f"{store.url}/{manifest_of(folder.step)}"]
    with tqdm(
        desc=f"step {folder.step}",
        total=checkpoint.bytes,
        unit="B",
        unit_scale=True,
        disable=True if quiet else None,
        leave=False,
    ) as bar:
        found = damaged_files(store, checkpoint, progress=bar.update)
    return [f"{store.url}/{checkpoint.folder}/{path}" for path in found]


def _is_whole(store: Store, folder: StepFolder) -> bool:
    """Returns whether every byte of a checkpoint is right. If a file is wrong, the first such file is printed."""
    try:
        found = _faults(store, folder, quiet=False)
    except CheckpointError as error:
        found = [str(error)]
    if found:
        console.print(f"step {folder.step}: does not count, {plain(found[0])} is missing or damaged")
    return not found


def _print_faults(step: int, faults: Iterable[str]) -> None:
    lines = [f"step {step}: {plain(fault)} is missing or damaged" for fault in faults]
    console.print("\n".join(lines or [f"step {step}: intact, every byte read"]))


def _alive(store: Store) -> int | None:
    """Returns the number of the newest attempt if that attempt is alive, else None."""
    if not attempts.numbers(store):  # `RunState.read` raises an error for a folder without attempts.
        return None
    newest = RunState.read(store, last=1).newest
    return newest.number if newest.alive else None
