"""`emocap`: make, pack and look at data; pretrain; evaluate."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.errors import ManifestError
from emocap_shards.inspect import Spread, Summary, summarise, verify
from emocap_shards.manifest import read_manifest
from emocap_shards.pack import Columns, records_from
from emocap_shards.sample import Record
from emocap_shards.store import open_store
from emocap_shards.synthetic.dataset import record
from emocap_shards.writer import write_shards
from rich.table import Table
from tqdm import tqdm

from emocap_pretrain import run
from emocap_pretrain.terminal import console, errors_as_lines, show_logs

RENDERED_TOGETHER = 50

app = typer.Typer(
    help="Image-text pretraining on structured emotion captions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ShardSamples = Annotated[int, typer.Option(help="Samples in a shard.", min=1)]

app.command("pretrain")(run.command)


@app.command()
def synth(
    out: Annotated[str, typer.Argument(help="Folder or URL; the datasets train and test come to lie in it.")],
    train: Annotated[int, typer.Option(help="Faces to train on.", min=1)] = 1800,
    test: Annotated[int, typer.Option(help="Further faces to evaluate on.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.", min=0)] = 0,
    pixels: Annotated[int, typer.Option(help="Side of the images.", min=16)] = 112,
    samples_per_shard: ShardSamples = 200,
    debug: Debug = False,
) -> None:
    """Render synthetic faces with true captions and pack them; a dataset that stands already is kept."""
    with errors_as_lines(debug=debug):
        for name, first, count in (("train", 0, train), ("test", train, test)):
            url = f"{out.rstrip('/')}/{name}"
            if count and not _stands(url, count):
                faces = _rendered(range(first, first + count), seed, pixels)
                _write(tqdm(faces, f"rendering {name}", count, unit="face", disable=None), url, samples_per_shard)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help="Folder with image + .json pairs, a .jsonl or a .csv table.")],
    out: Annotated[str, typer.Argument(help="Folder or URL of the new dataset.")],
    image: Annotated[str, typer.Option(help="Column with the image's path.")] = "image",
    whole: Annotated[str, typer.Option("--global", help="Column of the global part.")] = "global",
    local: Annotated[str, typer.Option(help="Column of the local sentences: a list, or text split by |.")] = "local",
    summary: Annotated[str, typer.Option(help="Column of the summary.")] = "summary",
    key: Annotated[str, typer.Option(help="Column of the key; default the image's path.")] = "key",
    label: Annotated[list[str] | None, typer.Option(help="A column to keep as label; may be given often.")] = None,
    samples_per_shard: ShardSamples = 1000,
    debug: Debug = False,
) -> None:
    """Pack captioned images into WebDataset shards with a manifest."""
    with errors_as_lines(debug=debug):
        columns = Columns(image, whole, local, summary, key, tuple(label or ()))
        _write(tqdm(records_from(source, columns), "packing", unit="sample", disable=None), out, samples_per_shard)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    check: Annotated[bool, typer.Option("--verify", help="Read every byte and check every digest.")] = False,
    debug: Debug = False,
) -> None:
    """Show what stands in a dataset; with --verify, whether it is whole (exit code 1 if not)."""
    with errors_as_lines(debug=debug):
        console.print(_summary_table(summarise(url)))
        faults = verify(url) if check else []
        for fault in faults:
            console.print(fault, markup=False)
        if check:
            console.print(f"{len(faults)} faults found." if faults else "Every digest holds.")
        raise typer.Exit(1 if faults else 0)


@app.command()
def evaluate(
    run_url: Annotated[str, typer.Argument(help="Folder or URL of a run.")],
    data: Annotated[str | None, typer.Option(help="Labelled dataset; default the run's evaluation.url.")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint; default the newest.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix to this PNG.")] = None,
    debug: Debug = False,
) -> None:
    """Zero-shot classification with a checkpoint of a run."""
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain import pictures
        from emocap_pretrain.evaluation.report import ZeroShot, zero_shot_rows
        from emocap_pretrain.evaluation.restore import restore
        from emocap_pretrain.evaluation.zero_shot import zero_shot

        restored = restore(run_url, step=step, device=device)
        settings = restored.config.evaluation.model_copy(update={"url": data} if data else {})
        matrix = zero_shot(restored.model, restored.tokenizer, settings)
        _print_rows(f"Step {restored.step} of {run_url}", zero_shot_rows(ZeroShot.of(str(settings.url), matrix)))
        if picture:
            pictures.confusion(matrix, picture)


def _stands(url: str, samples: int) -> bool:
    """Whether this dataset is there already; another one at the same place is an error."""
    store = open_store(url)
    if not store.exists("manifest.json"):
        return False
    found = read_manifest(store).samples
    if found != samples:
        raise ManifestError(
            f"{url} holds a dataset of {found} samples, not {samples}: delete it or choose another place."
        )
    console.print(f"{url}: {samples} samples are there already.")
    return True


def _rendered(indexes: range, seed: int, pixels: int) -> Iterator[Record]:
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(record, seed, pixels=pixels), indexes, chunksize=RENDERED_TOGETHER)


def _write(records: Iterable[Record], url: str, samples_per_shard: int) -> None:
    manifest = write_shards(records, url, samples_per_shard=samples_per_shard)
    megabytes = manifest.total_bytes / 1e6
    console.print(f"{url}: {manifest.samples} samples in {_shards(len(manifest.shards))}, {megabytes:.1f} MB.")


def _summary_table(summary: Summary) -> Table:
    rows = [
        ("samples", f"{summary.samples:,} in {_shards(summary.shards)}, {summary.bytes / 1e6:,.1f} MB"),
        ("looked at", f"{summary.looked_at:,} samples, {summary.damaged} damaged"),
        ("image", f"{_spread(summary.width_px)} wide, {_spread(summary.height_px)} high, pixels"),
        *((f"words, {part}", _spread(words)) for part, words in summary.words.items()),
        ("local sentences", _spread(summary.sentences)),
        *((name, _counts(counts)) for name, counts in summary.labels.items()),
        *((name, _spread(numbers)) for name, numbers in summary.numbers.items()),
    ]
    return _table(summary.url, rows)


def _shards(number: int) -> str:
    return f"{number} shard" + ("s" if number > 1 else "")


def _spread(spread: Spread) -> str:
    if spread.least == spread.most:
        return f"{spread.least:g}"
    return f"{spread.least:.3g} to {spread.most:.3g}, mean {spread.mean:.3g}"


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:12]]
    return ", ".join(shown) + (f", {len(counts) - 12} more" if len(counts) > 12 else "")


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    console.print(_table(title, rows))


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    return table


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
