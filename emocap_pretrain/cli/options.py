"""Options that several commands share."""

from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ShardSamples = Annotated[int, typer.Option(help="Samples in a shard.", min=1)]
