"""Defines `emocap status`, which shows the state of a run and its attempts.

The command reads the documents that the run writes into its folder (`run_folder/state.py`), and connects to no process
of the run. So it works with every launcher, and what it shows is some seconds old (decision 17).
"""

import time
from datetime import datetime, timedelta
from typing import Annotated

import typer
from emocap_shards.store import open_store
from rich.console import Group, RenderableType
from rich.live import Live

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import open_soon
from emocap_pretrain.cli.tables import grid, plain, table
from emocap_pretrain.run_folder.attempts import STOP_REQUESTED
from emocap_pretrain.run_folder.documents import Status, Straggler
from emocap_pretrain.run_folder.state import SKEW_S, STALE_S, AttemptState, RunState
from emocap_pretrain.terminal import console, errors_as_lines, say_json

EVERY_S = 5.0  # A run writes its status as often.
AGAIN_S = 600.0  # A supervisor's pause and the start of an attempt until its first status together take less.
LONGEST_REASON = 300  # Characters of a reason; a longer one is cut.
RunUrl = Annotated[str, typer.Argument(help="Folder or URL of a run.")]


def command(
    run_url: RunUrl,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every 5 s until the run is done or stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    attempts: Annotated[int, typer.Option(help="Number of newest attempts to list.", min=1)] = 5,
    debug: Debug = False,
) -> None:
    """Show the state of a run, and how each of its attempts ended. It works wherever the run's folder can be read."""
    with errors_as_lines(debug=debug):
        store = open_store(run_url) if watch else open_soon(run_url)
        state = RunState.read(store, last=attempts)
        if as_json:
            say_json(state.to_json())
            return
        if not watch:
            console.print(_page(state), soft_wrap=False)
            return
        with Live(_page(state), console=console, auto_refresh=False) as live:
            while _may_continue(state.newest):
                time.sleep(EVERY_S)
                state = RunState.read(store, last=attempts)
                live.update(_page(state), refresh=True)


def _may_continue(newest: AttemptState) -> bool:
    """Returns whether the run is alive, or was alive so recently that a supervisor may still restart it.

    The result is False if the run is done, or was asked to stop.
    """
    over = newest.how == "done" or newest.reason.startswith(STOP_REQUESTED)
    return not over and (newest.alive or newest.silent_s < AGAIN_S)


def _page(state: RunState) -> RenderableType:
    newest = state.newest
    warm_start = ("started from", state.warm_start.text() if state.warm_start else "")
    rows = [(name, plain(text)) for name, text in [*_rows(newest), warm_start] if text]
    title = f"{(newest.status and newest.status.name) or 'Run'} at {state.url}"
    columns = ("attempt", "began", "ranks", "step", "how it ended")
    attempts = [_attempt_row(each) for each in state.attempts]
    return Group(table(plain(title), rows), grid("Attempts", columns, attempts, left=5))


def _rows(attempt: AttemptState) -> list[tuple[str, str]]:
    """Returns the rows of the table about an attempt, each as a name and a text. Rows with empty text are not shown."""
    rows = [("state", _state(attempt)), ("step", f"{attempt.step:,}"), ("earlier attempts", str(attempt.number - 1))]
    if attempt.status:
        rows[1:] = _status_rows(attempt, attempt.status, alive=attempt.alive)
    rows += [("clock", _skew(attempt.skew_s))]
    return rows + [("unreadable", str(fault)) for fault in attempt.faults]


def _status_rows(attempt: AttemptState, status: Status, *, alive: bool) -> list[tuple[str, str]]:
    on = f" on {len(status.hosts)} hosts" if len(status.hosts) > 1 else ""
    earlier = attempt.number - 1 if status.restarts is None else status.restarts
    return [
        ("step", f"{attempt.step:,}" if status.steps is None else f"{attempt.step:,} of {status.steps:,}"),
        ("loss", "" if status.loss is None else f"{status.loss:.4f}"),
        ("samples/s", "" if status.samples_per_s is None else f"{status.samples_per_s:,.0f}"),
        ("time left", str(timedelta(seconds=round(status.eta_s))) if status.eta_s is not None and alive else ""),
        ("ranks", "" if status.ranks is None else f"{status.ranks}{on}"),
        ("checkpoint", "" if status.checkpoint is None else f"step {status.checkpoint:,}"),
        ("slowest rank", _straggler(status.slowest) if status.slowest else ""),
        ("earlier attempts", str(earlier)),
    ]


def _state(attempt: AttemptState) -> str:
    silent_s = attempt.silent_s
    if attempt.ending:
        return _short(attempt.ending)
    state = attempt.status.state if attempt.status else "starting"
    if silent_s < STALE_S:
        return state
    return f"no status for {silent_s:.0f} s, before that {state}: rank 0 may be gone, or its network to the store"


def _skew(skew_s: float | None) -> str:
    """Returns a sentence if the clock of the run's host differs much from the clock of this host, else "".

    `skew_s` is the difference in seconds, or None if it is unknown. The difference is harmless, because the clock of
    the store decides whether an attempt is alive.
    """
    if skew_s is None or abs(skew_s) < SKEW_S:
        return ""
    error = f"{timedelta(seconds=round(abs(skew_s)))} {'fast' if skew_s > 0 else 'slow'}"
    return f"the clock of the run's host is {error} compared with this host's"


def _straggler(straggler: Straggler) -> str:
    return f"{straggler.rank} ({straggler.host}), {straggler.factor:.2f} times the median, mostly {straggler.section}"


def _attempt_row(attempt: AttemptState) -> tuple[str, ...]:
    at, ranks = attempt.launched.at, attempt.launched.ranks
    began = "unknown" if at is None else f"{datetime.fromtimestamp(at).astimezone():%m-%d %H:%M}"
    ending = attempt.ending or "runs"
    return str(attempt.number), began, "" if ranks is None else str(ranks), f"{attempt.step:,}", _short(ending)


def _short(text: str) -> str:
    return plain(text, LONGEST_REASON)
