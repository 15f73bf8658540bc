"""`emocap`: make, pack and look at data; pretrain; evaluate."""

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

app = typer.Typer(
    help="Image-text pretraining on structured emotion captions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("pretrain")(run.command)
app.command("restart")(restart.command)
app.command("synth")(synth.command)
app.command("pack")(pack.command)
app.command("unpack")(unpack.command)
app.command("reshard")(reshard.command)
app.command("inspect")(inspect.command)
app.command("verify")(verify.command)
app.command("evaluate")(evaluate.command)
app.add_typer(checkpoints.app, name="checkpoints")
app.command("status")(status.command)
app.command("stop")(stop.command)
app.command("profile")(profile.command)


def main() -> None:
    """Entry point of the console script."""
    app()
