"""`emocap evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import console, errors_as_lines, show_logs


def command(
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
        rows = zero_shot_rows(ZeroShot.of(str(settings.url), matrix))
        console.print(tables.table(f"Step {restored.step} of {run_url}", rows))
        if picture:
            pictures.confusion(matrix, picture)
