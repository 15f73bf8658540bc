"""Defines the command `emocap` and its subcommands.

Each subcommand is a function in a module of its own: its arguments are the options, and its docstring is the text of
`--help`. The modules of commands import torch, Ray and MLflow inside of functions, so that `--help` stays quick.
Commands print with `terminal.console`, `terminal.say_json` or the log, which mask secrets.
"""

import typer

from emocap_pretrain import run
from emocap_pretrain.cli import (
    benchmarks,
    bulk,
    caption,
    check,
    checkpoints,
    compare,
    doctor,
    evaluate,
    export,
    faces,
    filters,
    import_open_clip,
    importing,
    init,
    inspect,
    landmarks,
    look,
    pack,
    regions,
    requests,
    restart,
    status,
    sweep,
    synth,
    verify,
)
from emocap_pretrain.logs import guard_tracebacks
from emocap_pretrain.terminal import Command, Group

app = typer.Typer(
    cls=Group,
    help="Image-text pretraining on structured emotion captions.",
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks are printed by the hook of `guard_tracebacks`, which masks secrets. Typer's own would not.
    pretty_exceptions_enable=False,
)
for name, function in {
    "pretrain": run.command,
    "restart": restart.command,
    "sweep": sweep.command,
    "init": init.command,
    "synth": synth.command,
    "pack": pack.pack_command,
    "unpack": pack.unpack_command,
    "reshard": pack.reshard_command,
    "inspect": inspect.command,
    "filter": filters.command,
    "faces": faces.command,
    "landmarks": landmarks.command,
    "regions": regions.command,
    "verify": verify.command,
    "check": check.command,
    "evaluate": evaluate.command,
    "compare": compare.command,
    "look": look.command,
    "export": export.command,
    "embed": bulk.embed_command,
    "predict": bulk.predict_command,
    "doctor": doctor.command,
    "status": status.command,
    "stop": requests.stop_command,
    "profile": requests.profile_command,
}.items():
    app.command(name, cls=Command)(function)
# The flags of open_clip are no options of this command, also if they are not in quotation marks.
app.command("import-openclip", cls=Command, context_settings={"ignore_unknown_options": True})(import_open_clip.command)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(benchmarks.app, name="benchmarks")
app.add_typer(caption.app, name="caption")
app.add_typer(importing.app, name="import")


def main() -> None:
    """Runs the command `emocap`. The entry point of the package and `python -m emocap_pretrain.cli` call it."""
    guard_tracebacks()
    app()
