"""Defines `emocap export`, which hands a trained model on to other libraries.

The checkpoint may come from a stranger, so it is restored as by `emocap evaluate`: nothing that it names is opened.
`interop/export` writes the export, and compares it with the model in a fresh process.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from emocap_shards.inspecting.wording import counted

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import ChosenWeights, Debug, OwnConfig, Step
from emocap_pretrain.cli.reach import need_answer, open_soon
from emocap_pretrain.interop.settings import load_config
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import REPORT, RUN, RunDocument
from emocap_pretrain.run_folder.folder import REPORT_FILE, RUN_FILE
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.terminal import console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.interop.export.card import CardFacts
    from emocap_pretrain.interop.export.document import ExportDocument
    from emocap_pretrain.interop.restore import Restored


def command(
    run_url: Annotated[str, typer.Argument(help="Folder or URL of a run.")],
    to: Annotated[
        Literal["transformers", "open_clip", "onnx", "torch", "safetensors"],
        typer.Option(
            metavar="FORMAT",
            help="Library or format that takes the model (docs/export.md): transformers, open_clip, onnx, torch or "
            "safetensors.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the export; default NAME-step-N-FORMAT in this folder.")
    ] = None,
    step: Step = None,
    weights: ChosenWeights = None,
    config: OwnConfig = None,
    data_license: Annotated[str, typer.Option(help="Licence of the training data, for the model card.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Write a trained model for another library, and compare the vectors that the library computes with ours."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.interop.export import verify
        from emocap_pretrain.interop.export.exporting import export, require_free
        from emocap_pretrain.interop.export.registry import FORMATS
        from emocap_pretrain.interop.restore import restore

        kind = FORMATS[to]
        verify.require_library(kind)
        if out is not None:  # Before the checkpoint is read, which may take long.
            require_free(out, force=force)
        need_answer(run_url, RUN_FILE)
        restored = restore(run_url, step=step, config=load_config(config) if config else None, weights=weights)
        folder = out or Path(f"{restored.config.name}-step-{restored.step}-{kind.name}")
        facts = replace(_facts(run_url, restored), data_license=data_license)
        document = export(restored, kind, folder, facts=facts, force=force, say=_nothing if as_json else console.print)
        _show(folder, document, as_json=as_json)


def _facts(run_url: str, restored: "Restored") -> "CardFacts":
    """Returns what the documents of the run say about the step that is exported. Unreadable documents say nothing."""
    from emocap_pretrain.interop.export.card import CardFacts

    store = open_soon(run_url)
    report, run = storage.read(store, REPORT_FILE, REPORT), storage.read(store, RUN_FILE, RUN)
    exported = (restored.step, restored.weights)
    results = report.results if isinstance(report, Report) and (report.step, report.weights) == exported else ()
    return CardFacts(
        results=[row for result in results for row in _scores(result)],
        parent=_parent(run) if isinstance(run, RunDocument) else "",
    )


def _parent(run: RunDocument) -> str:
    """Returns the run whose weights this run began with, or, if the folder is a copy, the run that was copied.

    The result is empty if there is neither.
    """
    if run.warm_start is None:
        return run.parent
    from emocap_pretrain.interop.export.card import last_parts

    start = run.warm_start
    return f"step {start.step:,} of {last_parts(start.url)} {start.run_id} {start.digest}".strip()


def _scores(result: TaskResult) -> list[tuple[str, str]]:
    from emocap_pretrain.interop.export.card import last_parts

    scores = [(score.title, score.text()) for score in result.scores]
    return [*scores, ("evaluated on", f"{counted(result.samples, 'sample')} of {last_parts(result.url)}")]


def _nothing(_line: str) -> None:
    """Prints nothing, so that stdout holds the JSON value alone."""


def _show(folder: Path, document: "ExportDocument", *, as_json: bool) -> None:
    found = dict(document.differences or {})
    if as_json:
        tree: dict[str, Any] = {"folder": str(folder), "format": document.format, "step": document.step}
        say_json({**tree, "differences": found, "lacks": document.lacks})
        return
    rows = [(name, f"{value:.1e}") for name, value in found.items()]
    console.print(tables.grid("Largest differences from the trained model", ("result", "difference"), rows, left=1))
    for line in document.lacks:
        console.print(f"note: {line}")
    console.print(f"exported to {folder}; its README.md says how to load it.")
