"""`emocap status`."""

import time
from datetime import datetime, timedelta
from typing import Annotated

import typer
from emocap_shards.store import open_store
from rich.console import Group, RenderableType
from rich.live import Live

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.cli.tables import grid, plain, table
from emocap_pretrain.health.standing import STALE_S, Standing, StartStory
from emocap_pretrain.starts import ASKED
from emocap_pretrain.terminal import console, errors_as_lines, say_json

EVERY_S = 5.0
AGAIN_S = 600.0  # More than a supervisor pauses and a start takes until its first word.
LONGEST_REASON = 300
RunUrl = Annotated[str, typer.Argument(help="Folder or URL of a run.")]


def command(
    run_url: RunUrl,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 5 s, until the run is done or stopped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    starts: Annotated[int, typer.Option(help="Starts to list, the newest.", min=1)] = 5,
    debug: Debug = False,
) -> None:
    """How a run stands, and how each of its starts ended; works from anywhere that reads the run's folder."""
    with errors_as_lines(debug=debug):
        store = open_store(run_url)
        standing = Standing.read(store, last=starts)
        if as_json:
            say_json(standing.to_json(time.time()))
            return
        if not watch:
            console.print(_page(standing, time.time()), soft_wrap=False)
            return
        with Live(_page(standing, time.time()), console=console, auto_refresh=False) as live:
            while _may_go_on(standing.newest, time.time()):
                time.sleep(EVERY_S)
                standing = Standing.read(store, last=starts)
                live.update(_page(standing, time.time()), refresh=True)


def _may_go_on(newest: StartStory, now_s: float) -> bool:
    """Whether it runs, or ended so recently, and not for good, that a supervisor may start it again."""
    over = newest.status.get("how") == "done" or newest.status.get("reason") == ASKED
    return not over and (newest.alive(now_s) or newest.silent_s(now_s) < AGAIN_S)


def _page(standing: Standing, now_s: float) -> RenderableType:
    newest = standing.newest
    rows = [(name, plain(text)) for name, text in _rows(newest, now_s) if text]
    title = f"{newest.status.get('name', 'Run')} at {standing.url}"
    columns = ("start", "began", "ranks", "step", "how it ended")
    told = [_start_row(story, newest=story is newest, now_s=now_s) for story in standing.stories]
    return Group(table(plain(title), rows), grid("Starts", columns, told, left=5))


def _rows(story: StartStory, now_s: float) -> list[tuple[str, str]]:
    """What is known, in words; a row without a text is not shown."""
    status, hosts = story.status, story.status.get("hosts", [])
    slowest = status.get("slowest")
    left = status.get("eta_s")
    on = f" on {len(hosts)} hosts" if len(hosts) > 1 else ""
    return [
        ("state", _state(story, now_s)),
        ("step", f"{story.step:,} of {status['steps']:,}" if "steps" in status else ""),
        ("loss", f"{status['loss']:.4f}" if "loss" in status else ""),
        ("samples/s", f"{status['samples_per_s']:,.0f}" if "samples_per_s" in status else ""),
        ("time left", str(timedelta(seconds=left)) if left is not None and story.alive(now_s) else ""),
        ("ranks", f"{status['ranks']}{on}" if "ranks" in status else ""),
        ("checkpoint", f"step {status['checkpoint']:,}" if status.get("checkpoint") else ""),
        ("slowest rank", _slowest(slowest) if slowest else ""),
        ("restarts", str(status.get("restarts", story.number - 1))),
    ]


def _state(story: StartStory, now_s: float) -> str:
    silent_s = story.silent_s(now_s)
    ending = story.ending(newest=True, now_s=now_s)
    if ending:
        return _short(ending)
    state = str(story.status.get("state", "starting"))
    if silent_s < STALE_S:
        return state
    return f"no word for {silent_s:.0f} s: {state} then; its rank 0, or the way to the store, may be gone"


def _slowest(report: dict[str, object]) -> str:
    return f"{report['rank']} ({report['host']}), {report['factor']:.2f} times the median, mostly {report['section']}"


def _start_row(story: StartStory, *, newest: bool, now_s: float) -> tuple[str, ...]:
    began = f"{datetime.fromtimestamp(story.facts['at']).astimezone():%m-%d %H:%M}"
    ending = story.ending(newest=newest, now_s=now_s) or "runs"
    return str(story.number), began, str(story.facts.get("ranks", "")), f"{story.step:,}", _short(ending)


def _short(text: str) -> str:
    return plain(text, LONGEST_REASON)
