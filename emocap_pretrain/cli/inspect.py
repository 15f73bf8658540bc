"""Defines `emocap inspect`, which summarizes a dataset.

`emocap_shards.inspecting` reads the samples and computes the summary. This module prints the summary as tables
(`inspect_report.py`) or as JSON, and writes it as an HTML page on request. Given the config of a run, it also counts
the texts that are too long for the text tower of this run, and that the run would therefore cut.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.filter_file import FilterFile, read_filter
from emocap_shards.inspecting.findings import CheckedDataset
from emocap_shards.inspecting.summary import LOOK_AT, SECONDS, Summary, summarise
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import MANIFEST
from tqdm import tqdm

from emocap_pretrain.cli.check import findings_table
from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.inspect_report import show, show_filter
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.config.data import MixtureDatasetConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.settings import load_config
from emocap_pretrain.terminal import console, errors_as_lines, say_json


def command(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    look_at: Annotated[int, typer.Option(help="Number of samples to read, spread evenly.", min=0)] = LOOK_AT,
    whole: Annotated[bool, typer.Option("--all", help="Read every sample, however long it takes.")] = False,
    seconds: Annotated[float, typer.Option(help="Stop reading after this time.", min=0)] = SECONDS,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of a run: print which share of the captions its text tower cuts.")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="FILE", help="Filter file: print what it leaves out, by reason.")
    ] = None,
    checks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="checks.jsonl of emocap check: show its findings, also on the page."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the summary with example faces to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what is in a dataset: counts, captions, words, labels, images, faces."""
    with errors_as_lines(debug=debug):
        if html:
            check_writable("--html", html)
        loaded = load_config(config) if config else None
        summary = _summary(url, None if whole else look_at, None if whole else seconds)
        cut = _cut(url, loaded) if loaded else None
        filtered = _filtered(filter_, url) if filter_ else None
        checked = _checked(checks, summary) if checks else None
        if html:
            from emocap_shards.inspecting.page import page

            write_text("--html", html, page(summary, checked))
        if as_json:
            more = {"filter": _filter_tree(*filtered)} if filtered else {}
            more |= {"checks": [asdict(each) for each in checked.tallies]} if checked else {}
            say_json(summary.to_json() | ({"cut": cut[1]} if cut else {}) | more)
        else:
            show(summary)
            if cut:
                console.print(cut[0], markup=False)
            if filtered:
                show_filter(*filtered)
            if checked:
                console.print(findings_table(checked.tallies), soft_wrap=False)
            if html:
                console.print(f"The page is {html}.")


def _summary(url: str, look_at: int | None, seconds: float | None) -> Summary:
    with tqdm(desc="looking", unit="sample", disable=None, leave=False) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)  # tqdm takes the difference, and `done` is the sum.

        try:
            need_answer(url, MANIFEST)
            return summarise(url, look_at=look_at, seconds=seconds, on_progress=show_progress)
        except (ManifestError, StoreError) as error:
            raise ConfigError(str(error)) from error


def _filtered(address: str, url: str) -> tuple[FilterFile, DatasetFilter]:
    from emocap_pretrain.data.datasets import opened_filter

    found = opened_filter(address, url, "--filter")
    return read_filter(address), found


def _checked(path: Path, summary: Summary) -> CheckedDataset:
    """Returns the findings of a file, with the reasons of low scores for the faces of the summary.

    Raises:
        ConfigError: If the file is about another dataset.
        DataError: If the file cannot be read.
    """
    from emocap_pretrain.checking.findings_file import checked, dataset_of

    if dataset_of(path) != summary.stock.digest:
        raise ConfigError(
            f"--checks {path}: it is about another dataset, or another state of it; check this one again."
        )
    return checked(path, {face.key for face in summary.faces})


def _filter_tree(file: FilterFile, found: DatasetFilter) -> dict[str, Any]:
    return {
        "digest": found.digest,
        "samples": {"of": found.samples, "left_out": len(found.left_out), "without_caption": found.without_caption},
        "origins": [asdict(origin) | counts for origin, counts in zip(file.origins, file.counts(), strict=True)],
    }


def _cut(url: str, config: Config) -> tuple[str, dict[str, Any]]:
    """Counts those texts of the first samples of a dataset that are too long for the text tower of a run.

    Returns:
        A line with the counts for the terminal, and the counts as JSON values.
    """
    from emocap_pretrain.data.datasets import cut_captions, open_filters
    from emocap_pretrain.interop.starting_point import StartingPoint
    from emocap_pretrain.training.build import first_tokenizer, open_tars

    text = config.model.text
    tokenizer = StartingPoint(config.model).tokenizer(
        lambda: first_tokenizer(config, open_tars(config), open_filters(config.data))
    )
    samples, cut = cut_captions([MixtureDatasetConfig(url=url)], tokenizer, text.lengths)
    line = f"Texts that {config.name} cuts, of the first {counted(samples, 'sample')}: {', '.join(map(str, cut))}."
    return line, {"samples": samples, "parts": [asdict(each) for each in cut]}
