"""`emocap inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.inspecting.summary import LOOK_AT, SECONDS, Summary, summarise
from tqdm import tqdm

from emocap_pretrain.cli.inspect_report import show
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    look_at: Annotated[int, typer.Option(help="Samples to look at, spread evenly.", min=0)] = LOOK_AT,
    whole: Annotated[bool, typer.Option("--all", help="Look at every sample, however long it takes.")] = False,
    seconds: Annotated[float, typer.Option(help="Stop looking after this time.", min=0)] = SECONDS,
    html: Annotated[Path | None, typer.Option(help="Write it as one page, with faces, to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what stands in a dataset: counts, captions, words, labels, images, faces."""
    with errors_as_lines(debug=debug):
        summary = _summary(url, None if whole else look_at, None if whole else seconds)
        if html:
            _write(summary, html)
        if as_json:
            typer.echo(json.dumps(summary.to_json(), ensure_ascii=False))
        else:
            show(summary)
            if html:
                console.print(f"The page is {html}.", markup=False)


def _summary(url: str, look_at: int | None, seconds: float | None) -> Summary:
    with tqdm(desc="looking", unit="sample", disable=None, leave=False) as bar:

        def told(seen: int, of: int) -> None:
            bar.total = of
            bar.update(seen - bar.n)

        try:
            return summarise(url, look_at=look_at, seconds=seconds, on_progress=told)
        except (ManifestError, StoreError) as error:
            raise ConfigError(str(error)) from error


def _write(summary: Summary, path: Path) -> None:
    from emocap_shards.inspecting.page import page

    try:
        path.write_text(page(summary), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--html {path}: it cannot be written ({error}); name a file in a folder of yours."
        ) from error
