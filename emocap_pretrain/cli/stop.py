"""Defines `emocap stop`, which asks a run to save and end."""

import time
from typing import Annotated

import typer
from emocap_shards.store import open_store

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import open_soon
from emocap_pretrain.cli.status import RunUrl
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.state import RunState
from emocap_pretrain.terminal import FAILED, console, errors_as_lines

EVERY_S = 2.0


def command(
    run_url: RunUrl,
    wait: Annotated[bool, typer.Option(help="Wait until the run has ended.")] = True,
    debug: Debug = False,
) -> None:
    """Ask a run to save and end. The command that started it resumes from there. Exit code 1 if it failed instead."""
    with errors_as_lines(debug=debug):
        store = open_soon(run_url)
        require_running(RunState.read(store))
        requests.ask_to_stop(store)
        console.print("Asked to stop: the run saves and ends after its current step, usually within seconds.")
        if wait:
            _wait(run_url)


def require_running(state: RunState) -> None:
    """Checks that an attempt of the run is alive, because only such an attempt can serve a request.

    Raises:
        ConfigError: If no attempt is alive.
    """
    newest = state.newest
    if not newest.alive:
        raise ConfigError(
            f"nothing runs at {state.url}; attempt {newest.number} ended {newest.ending}. "
            "If a supervisor (a job on Ray, emocap restart) may restart it, end that one: ray job stop, Ctrl-C."
        )


def _wait(run_url: str) -> None:
    """Waits until the run ends. If the wait is interrupted, the request remains in force."""
    store = open_store(run_url)
    while (state := RunState.read(store, last=1)).newest.alive:
        time.sleep(EVERY_S)
    newest = state.newest
    console.print(f"Step {newest.step:,}: {newest.ending}")
    if newest.how not in {"stopped", "done"}:
        raise typer.Exit(FAILED)
