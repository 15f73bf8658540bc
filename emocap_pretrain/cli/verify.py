"""Defines `emocap verify`, which checks every byte of a dataset.

`emocap_shards.inspecting.verify` checks the dataset and counts its faults. This module prints each fault as soon as it
is found, and finally a verdict.
"""

from typing import Annotated

import typer
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.inspecting.faults import Fault
from emocap_shards.inspecting.shard_pool import VerifyProgress
from emocap_shards.inspecting.verify import Verification, verify
from emocap_shards.inspecting.wording import counted, percent, size
from emocap_shards.manifest import MANIFEST
from tqdm import tqdm

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.cli.tables import grid, plain
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.terminal import FAILED, console, errors_as_lines, say_json


def command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    quick: Annotated[bool, typer.Option("--quick", help="Check sizes and indexes only; read no shard.")] = False,
    processes: Annotated[
        int | None, typer.Option(help="Number of processes; default one for each core.", min=1)
    ] = None,
    show: Annotated[int, typer.Option(help="Largest number of faults to print; all are counted.", min=0)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Check every digest and every sample of a dataset. Exit codes: 0 intact, 1 damaged, 2 nothing to check."""
    with errors_as_lines(debug=debug):
        verdict = _verdict(url, quick=quick, processes=processes, show=0 if as_json else show)
        if as_json:
            say_json(verdict.to_json())
        else:
            _conclude(verdict, show)
        raise typer.Exit(0 if verdict.whole else FAILED)


def _verdict(url: str, *, quick: bool, processes: int | None, show: int) -> Verification:
    shown = 0
    unit = "shard" if quick else "B"
    with tqdm(desc="verifying", unit=unit, unit_scale=not quick, disable=None, leave=False) as bar:

        def tell(fault: Fault) -> None:
            nonlocal shown
            shown += 1
            if shown <= show:
                bar.clear()  # Otherwise the line would begin in the middle of the progress bar.
                console.print(plain(str(fault)))

        def move(progress: VerifyProgress) -> None:
            bar.total = progress.shards_all if quick else progress.bytes_all
            if not quick:
                bar.set_postfix_str(f"{progress.shards}/{progress.shards_all} shards", refresh=False)
            bar.update((progress.shards if quick else progress.bytes) - bar.n)

        try:
            need_answer(url, MANIFEST)
            return verify(url, quick=quick, processes=processes, on_fault=tell, on_progress=move)
        except (ManifestError, StoreError) as error:
            raise ConfigError(str(error)) from error


def _conclude(verdict: Verification, show: int) -> None:
    faults = sum(verdict.kinds.values())
    if faults > show:
        further = counted(faults - show, "further fault")
        console.print(f"{further} not printed; --show prints more, --json up to 10,000.")
    looked = f"{counted(verdict.samples, 'sample')} in {counted(verdict.shards, 'shard')}, {size(verdict.bytes)}"
    how = "sizes and indexes only" if verdict.quick else "every byte read"
    if verdict.whole:
        console.print(f"Intact: {looked}, {how}, {verdict.seconds:.1f} s.")
        return
    rows = [(str(kind), f"{count:,}") for kind, count in verdict.kinds.items()]
    console.print(grid("Damage by kind", ("kind", "faults"), rows), soft_wrap=False)
    least = "at least " if verdict.quick else ""
    stock, share = counted(verdict.samples, "sample"), percent(verdict.lost, verdict.samples)
    verb = "is" if verdict.lost == 1 else "are"
    lost = f"{least}{verdict.lost:,} of {stock} {verb} lost ({share})"
    console.print(f"Damaged: {lost}; {looked}, {how}, {verdict.seconds:.1f} s.")
