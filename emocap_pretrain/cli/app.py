"""Defines the command `emocap` and its subcommands."""

import typer

from emocap_pretrain import run
from emocap_pretrain.cli import checkpoints, evaluate, inspect, pack, requests, restart, status, synth, verify
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
    "pack": pack.pack_command,
    "unpack": pack.unpack_command,
    "reshard": pack.reshard_command,
    "inspect": inspect.command,
    "verify": verify.command,
    "evaluate": evaluate.command,
    "status": status.command,
    "stop": requests.stop_command,
    "profile": requests.profile_command,
}.items():
    app.command(name, cls=Command)(function)
app.add_typer(checkpoints.app, name="checkpoints")


def main() -> None:
    """Runs the command `emocap`."""
    guard_tracebacks()
    app()
