"""Defines `emocap restart`, which runs the command of a launcher again when it fails.

`emocap_cluster.relaunch` contains the loop that runs the command again. The loop follows the same rules as a job on Ray
(decision 15). This module finds the run's folder from the command, so that the loop can read progress and failures in
it. It also adds checks for `ray job submit`, and for torchrun on several nodes, because these start ranks on other
hosts too.
"""

import http.client
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, TypedDict
from urllib.parse import SplitResult, urlsplit

import typer
from emocap_cluster.relaunch import RelaunchResult, relaunch
from emocap_cluster.restarts import End, RestartBudget
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import show_logs, shown
from emocap_pretrain.record import RunRecord
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.state import RunState
from emocap_pretrain.terminal import FAILED, INTERRUPTED, STOPPED, console, errors_as_lines

ANSWER_S = 5.0  # Seconds that a server has for each answer.
# Seconds that torchrun of the first node needs to end after its rank has ended.
TORCHRUN_ENDS_S = 10.0
DEFAULT = "cfg.yaml"  # The config of `emocap pretrain` if none is given.


def command(
    command: Annotated[
        list[str], typer.Argument(help="After --: the command that starts the ranks, in the foreground.")
    ],
    run: Annotated[str | None, typer.Option(help="Folder or URL of the run; default the url of the config.")] = None,
    max_restarts: Annotated[
        int | None, typer.Option(min=0, help="Failures in a row without a checkpoint; default cluster.max_restarts.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a launcher's command, and restart it from the newest checkpoint when it fails.

    emocap restart -- deepspeed --num_nodes 4 launch/pretrain.py cfg.yaml

    At the first SIGTERM or Ctrl-C all ranks save and end. Exit codes: 0 done, 75 stopped and saved, 130 Ctrl-C, else
    the exit code of the command.
    """
    show_logs()
    with errors_as_lines(debug=debug):
        config = _config(command)
        if config is None and run is None:
            raise ConfigError("the command names no config (cfg.yaml): give the run with --run URL.")
        store = open_store(run or config.url if config else str(run))
        if config:
            # Refuses the settings of another run here, because the launcher may not show that error of its ranks.
            RunFolder(store).run_id(config)
        cluster = config.cluster if config else None
        budget = max_restarts if max_restarts is not None else (cluster.max_restarts if cluster else 10)
        outcome = relaunch(
            command,
            record=RunRecord(store, config.steps if config else None),
            restarts=RestartBudget(budget),
            ask=lambda: requests.ask_to_stop(store),
            say=console.print,
            **_remote(store, command),
        )
        # A stop request that the ranks have not served must not stop the next attempt.
        requests.mark_served(store, requests.Requests(stop=True))
        if outcome.over.how is End.FAILED:
            sys.stderr.write(f"error: {shown(outcome.over.reason)}\n")
        sys.exit(_code(outcome))


def _code(outcome: RelaunchResult) -> int:
    if outcome.over.how is End.DONE:
        return 0
    if outcome.interrupted:
        return INTERRUPTED
    return STOPPED if outcome.over.how is End.STOPPED else outcome.code or FAILED


def _config(command: list[str]) -> Config | None:
    """Returns the config that the command names, changed by the overrides that come after it in the command.

    The first word that ends in .yaml or .yml is the path of the config. If there is no such word, the default config is
    read, and all overrides in the command apply. The result is None if there is no default config either.
    """
    # A launcher's own options come before its script, and the script's arguments come last: the config, then overrides.
    place = next((place for place, word in enumerate(command) if word.endswith((".yaml", ".yml"))), None)
    if place is None:
        return load(Path(DEFAULT), _overrides(command)) if Path(DEFAULT).exists() else None
    return load(Path(command[place]), _overrides(command[place + 1 :]))


def head_of(command: Sequence[str]) -> SplitResult | None:
    """Returns the address of Ray's job server if the command submits a job to it over HTTP, else None.

    `ray job submit` waits without end if the host of the server fails suddenly, for example in a power failure. So
    `relaunch` checks from time to time with `answers` whether the server at this address still answers.
    """
    if [Path(word).name for word in command[:3]] != ["ray", "job", "submit"]:
        return None
    options = " ".join(itertools.takewhile(lambda word: word != "--", command))
    given = re.search(r" --address[ =](\S+)", options)
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # In the order in which Ray looks.
    named = [given[1] if given else None, *map(os.environ.get, names), "http://127.0.0.1:8265"]
    address = urlsplit(next(filter(None, named)))
    return address if address.scheme in {"http", "https"} else None


class _Remote(TypedDict, total=False):
    """Holds the keyword arguments of `relaunch` for a command whose ranks also run on other hosts."""

    answers: Callable[[], bool]
    still_trains: Callable[[], bool]
    least_pause_s: float


def _remote(store: Store, command: Sequence[str]) -> _Remote:
    """Returns the keyword arguments that `relaunch` needs for a command whose ranks also run on other hosts.

    `relaunch` explains the arguments. For any other command the result is empty. The function `still_trains` in the
    result also returns True if the store is unreachable, because then the network of this host may be down while the
    ranks on other hosts train.
    """
    if head := head_of(command):
        return {"answers": partial(answers, head), "still_trains": partial(lives, store)}
    if joins_another_torchrun(command):
        # A torchrun that starts before that of the first node has ended joins the job that fails, and its rank waits
        # for ranks that are gone, until the timeout of the process group.
        return {"still_trains": partial(lives, store), "least_pause_s": TORCHRUN_ENDS_S}
    return {}


def joins_another_torchrun(command: Sequence[str]) -> bool:
    """Returns whether the command is a torchrun with a node rank other than 0. Its ranks connect to another node."""
    words = list(itertools.chain.from_iterable(word.split("=", 1) for word in command))
    module = ["-m", "torch.distributed.run"]
    if Path(words[0]).name != "torchrun" and words[1:3] != module:
        return False
    options = dict(itertools.pairwise(word.replace("_", "-") for word in words))
    return options.get("--node-rank", "0") != "0"


def lives(store: Store) -> bool:
    """Returns whether the run is alive, or its state is unknown.

    An unknown state counts as alive. If the ranks were started again while the run trains, the new attempt would
    supersede the one that trains.
    """
    try:
        return RunState.read(store, last=1).newest.alive
    except ConfigError:  # No run was ever started at this URL.
        return False
    except (StoreError, OSError):
        return True


def answers(address: SplitResult) -> bool:
    """Returns whether an HTTP server answers. Every status is an answer, since the server may require a token.

    The request is for the root of the server and carries no token, so nothing secret leaves this host.
    """
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    with closing(kind(address.hostname or "", address.port, timeout=ANSWER_S)) as asked:
        try:
            asked.request("HEAD", "/")
            asked.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return True


def _overrides(words: list[str]) -> list[str]:
    return [word for word in words if "=" in word and not word.startswith("-")]
