"""Defines `emocap stop` and `emocap profile`, which write a request into the run folder and wait for the run.

The commands and the run communicate only through the run folder (decision 17). So these commands work from any host
that reaches the store. To follow the run, they read its documents repeatedly.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from emocap_shards.store import Store, open_store
from tqdm import tqdm

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.reach import open_soon
from emocap_pretrain.cli.status import RunUrl
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.run_folder import requests, storage
from emocap_pretrain.run_folder.documents import PROFILE_ANSWER, ProfileAnswer, ProfileRequest
from emocap_pretrain.run_folder.state import AttemptState, RunState
from emocap_pretrain.run_folder.storage import Unreadable
from emocap_pretrain.terminal import FAILED, console, errors_as_lines

EVERY_S = 1.0  # Pause between two looks at the run folder.
UPLOAD_S = 120.0  # Longest time between the last recorded step, or the last uploaded trace, and the next trace.


def stop_command(
    run_url: RunUrl,
    wait: Annotated[bool, typer.Option(help="Wait until the run has ended.")] = True,
    debug: Debug = False,
) -> None:
    """Ask a run to save and end. Exit code 1 if the run failed instead.

    To resume the run, repeat the command that started it.
    """
    with errors_as_lines(debug=debug):
        store = open_soon(run_url)
        _require_running(RunState.read(store))
        requests.ask_to_stop(store)
        console.print("Asked to stop: the run saves and ends after its current step, usually within seconds.")
        if wait:
            _wait(run_url)


def profile_command(
    run_url: RunUrl,
    steps: Annotated[int, typer.Option(help="Steps to record.", min=1, max=100)] = 5,
    ranks: Annotated[str, typer.Option(help="Ranks to record: all, or numbers such as 0,3.")] = "all",
    debug: Debug = False,
) -> None:
    """Record some steps of a running job and print the paths of the traces, which open at ui.perfetto.dev."""
    with errors_as_lines(debug=debug):
        # The random id keeps the requests of two commands apart; the answer and the traces carry it.
        request = ProfileRequest(secrets.token_hex(4), steps, _numbers(ranks))
        store = open_soon(run_url)
        _require_running(RunState.read(store, last=1))
        requests.ask_for_profile(store, request)
        with tqdm(desc="waiting for the run", unit="trace", disable=None, leave=False) as bar:
            try:
                began = _awaited(store, request)
            finally:  # A request that was not served must not be served later, when no command waits for it.
                requests.mark_served(store, requests.Requests(profile=request))
            if began.steps is None:
                raise TrainingError(f"no profile: {began.refused}.")
            first, last = began.steps
            bar.set_description(f"recording steps {first} to {last}")
            bar.total = len(began.traces)
            _gather(store, began.traces, last, bar)
        console.print(f"Steps {first} to {last}; open a trace at https://ui.perfetto.dev:")
        for trace in began.traces:
            console.print(f"  {store.url}/{trace}")


def _require_running(state: RunState) -> None:
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
    """Waits until the run ends. If the user interrupts the wait, the run still obeys the request.

    Raises:
        Exit: If the run failed. The command then has exit code 1.
        StoreError: If the store of the run cannot be reached.
    """
    # Here the store has the long deadline of training, and not that of `open_soon`.
    store = open_store(run_url)
    while (state := RunState.read(store, last=1)).newest.alive:
        time.sleep(EVERY_S)
    newest = state.newest
    console.print(f"Step {newest.step:,}: {newest.ending}")
    if newest.how not in {"stopped", "done"}:
        raise typer.Exit(FAILED)


def _numbers(ranks: str) -> tuple[int, ...] | None:
    if ranks == "all":
        return None
    try:
        numbers = sorted({int(each) for each in ranks.split(",")})
    except ValueError:
        numbers = [-1]
    if numbers[0] < 0:
        raise ConfigError(f"--ranks {ranks}: give all, or numbers such as 0,3.")
    return tuple(numbers)


# Waits until the run has answered the request, which it does when it begins to record or refuses to.
def _awaited(store: Store, request: ProfileRequest) -> ProfileAnswer:
    while True:
        # The state is read before the answer, so that an answer of a run that has just ended is not missed.
        newest = RunState.read(store, last=1).newest
        answer = storage.read(store, f"profiles/{request.id}.json", PROFILE_ANSWER)
        if isinstance(answer, Unreadable):
            raise TrainingError(f"{answer}: repeat the command.")
        if answer:
            return answer
        if not newest.alive:
            raise _over(newest)
        time.sleep(EVERY_S)


def _gather(store: Store, traces: Sequence[str], last: int, bar: "tqdm[NoReturn]") -> None:
    """Waits until all traces are uploaded, and shows their number in the progress bar.

    Args:
        store: The run's store.
        traces: The paths of the traces.
        last: The last step that is recorded.
        bar: The progress bar.

    Raises:
        TrainingError: If the run ends first, or if step `last` is done and then no further trace is uploaded for
            `UPLOAD_S` seconds.
    """
    missing, came_s = set(traces), time.monotonic()
    while True:
        # The state is read before the listing, so that the listing has all traces of a run that has ended.
        newest = RunState.read(store, last=1).newest
        came = missing & {entry.path for entry in store.list("profiles")}
        missing -= came
        bar.update(len(came))
        if not missing:
            return
        if not newest.alive:
            raise _over(newest)
        # The limit counts only while nothing happens although all steps are done. Steps may take any time.
        if came or newest.step < last:
            came_s = time.monotonic()
        if time.monotonic() - came_s > UPLOAD_S:
            raise TrainingError(
                f"{min(missing)} was not uploaded within {UPLOAD_S:g} s: the log of its rank has the reason."
            )
        time.sleep(EVERY_S)


def _over(newest: AttemptState) -> TrainingError:
    return TrainingError(f"the run has ended before attempt {newest.number} uploaded all traces.")
