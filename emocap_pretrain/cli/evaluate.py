"""`emocap evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from emocap_shards.mask import MASK

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import need_answer
from emocap_pretrain.config.load import load, unresolved
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs
from emocap_pretrain.terminal import console, errors_as_lines

if TYPE_CHECKING:
    from emocap_pretrain.config.schema import Evaluation

LARGEST_BATCH = 1024  # What a stored config may ask for at once; the result does not depend on it.


def command(
    run_url: Annotated[str, typer.Argument(help="Folder or URL of a run.")],
    data: Annotated[str | None, typer.Option(help="Labelled dataset.")] = None,
    stored_data: Annotated[
        bool, typer.Option("--stored-data", help="Read the dataset that the checkpoint's own config names.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="The run's YAML file, if you trust it more than the checkpoint.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint; default the newest.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix to this PNG.")] = None,
    debug: Debug = False,
) -> None:
    """Zero-shot classification with a checkpoint of a run."""
    show_logs()
    with errors_as_lines(debug=debug):
        from emocap_pretrain import pictures
        from emocap_pretrain.evaluation.restore import restore
        from emocap_pretrain.evaluation.zero_shot import zero_shot
        from emocap_pretrain.feed import cut_prompts
        from emocap_pretrain.run_folder.folder import RUN_FILE
        from emocap_pretrain.run_folder.report import zero_shot_rows

        need_answer(run_url, RUN_FILE)
        own = load(config) if config else None
        restored = restore(run_url, step=step, device=device, config=own)
        settings = _with_data(restored.config.evaluation, data, allowed=stored_data or own is not None)
        for cut in cut_prompts(settings, restored.tokenizer, restored.config.model.text.lengths):
            if cut.cut:
                console.print(f"texts that are cut: {cut}", markup=False)
        matrix = zero_shot(restored.model, restored.tokenizer, settings)
        rows = zero_shot_rows(matrix.result(str(settings.url)))
        console.print(tables.table(f"Step {restored.step} of {run_url}", rows))
        if picture:
            pictures.confusion(matrix, picture)


def _with_data(settings: "Evaluation", data: str | None, *, allowed: bool) -> "Evaluation":
    """The settings with the dataset that the user named, or with their own where the user allowed it.

    Raises:
        ConfigError: If the user did neither, or the stored name is incomplete.
    """
    if data is None and settings.url is None:
        raise ConfigError("the run has no evaluation.url: give a labelled dataset with --data URL.")
    if data is None and not allowed:
        raise ConfigError(
            f"the checkpoint's config names the dataset {settings.url}, which whoever wrote the checkpoint chose: "
            "allow it with --stored-data, or name a dataset with --data URL."
        )
    if data is None and (unresolved(settings.url) or MASK in str(settings.url)):
        raise ConfigError(f"the checkpoint's config takes its dataset from {settings.url}: name it with --data URL.")
    return settings.model_copy(update={"url": data or settings.url, "batch": min(settings.batch, LARGEST_BATCH)})
