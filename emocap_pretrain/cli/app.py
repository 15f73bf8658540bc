"""Defines the command `emocap` and its subcommands."""

import typer

from emocap_pretrain import run
from emocap_pretrain.cli import (
    checkpoints,
    evaluate,
    inspect,
    pack,
    profile,
    reshard,
    restart,
    status,
    stop,
    synth,
    unpack,
    verify,
)
from emocap_pretrain.logs import guard_tracebacks
from emocap_pretrain.terminal import Command, Group

app = typer.Typer(
    cls=Group,
    help="Image-text pretraining on structured emotion captions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, function in {
    "pretrain": run.command,
    "restart": restart.command,
    "synth": synth.command,
    "pack": pack.command,
    "unpack": unpack.command,
    "reshard": reshard.command,
    "inspect": inspect.command,
    "verify": verify.command,
    "evaluate": evaluate.command,
    "status": status.command,
    "stop": stop.command,
    "profile": profile.command,
}.items():
    app.command(name, cls=Command)(function)
app.add_typer(checkpoints.app, name="checkpoints")


def main() -> None:
    """Runs the command `emocap`."""
    guard_tracebacks()
    app()
