"""Defines `emocap import-openclip`, which translates the flags of open_clip's training command into a config."""

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.printable import printable

from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    flags: Annotated[
        list[str],
        typer.Argument(
            help="The flags of open_clip_train.main in quotation marks, or the whole command with torchrun."
        ),
    ],
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of the training; default those of torchrun's options, or 1.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default prints the config.")] = None,
    debug: Debug = False,
) -> None:
    """Translate the flags of open_clip's training command into a config, and say what has no counterpart."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.suggestion.open_clip_config import translate
        from emocap_pretrain.suggestion.open_clip_flags import parse

        text = flags[0] if len(flags) == 1 else shlex.join(flags)
        try:
            config = translate(parse(text), processes=gpus)
        except ValueError as error:
            raise ConfigError(f"the flags: {error}.") from error
        _check(config)
        if out is None:
            console.print(printable(config.rstrip("\n"), lines=True), markup=False)
            return
        if out.exists():
            raise ConfigError(f"{out} exists; give --out another.yaml.")
        check_writable("--out", out)
        write_text("--out", out, config)
        console.print(f"{out}: read its comments, then type: emocap pretrain {out} --dry-run", markup=False)


def _check(text: str) -> None:
    """Reads the config as `emocap pretrain` does, without its weights and data.

    Raises:
        ConfigError: If a value that a flag gives is out of bounds.
    """
    from emocap_pretrain.config.load import load

    with tempfile.TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "the translated config"
        path.write_text(text, encoding="utf-8")
        try:
            load(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}/", "")) from error
