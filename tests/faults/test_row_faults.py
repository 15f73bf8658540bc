"""Injects a fault at every store operation of an attempt whose tracker accepts rows late.

Each row must be sent, and must count once.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store
from fault_sweep import CountedStore, Counter, emptied, operations_of, struck, sweep, sweep_far

from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder import unsent as unsent_rows
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.tracking.spool import Row, Spool, row

ALONE = RankGroup(Rank(), "cpu", None)
EXPECTED = (StoreError, CheckpointError)
EVERY, STEPS = 2, 4
REPORT, UNSENT = "report.json", "unsent.json"
MOMENT_S = 30.0


class Tracker:
    """Keeps rows in a file, as a server does that runs longer than the attempt. Without `up`, it refuses all rows."""

    def __init__(self, path: Path, *, up: bool) -> None:
        self._path, self._up = path, up

    def take(self, rows: Sequence[Row]) -> None:
        if not self._up:
            raise ConnectionError("the tracker is down")
        with self._path.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in rows)

    def series(self) -> dict[int, set[float]]:
        """Returns the losses that the tracker has for each step."""
        found: dict[int, set[float]] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            each: Row = json.loads(line)
            found.setdefault(each["step"], set()).add(each["body"]["loss"])
        return found


def attempt(store: Store, tracker: Tracker, *, wait_s: float) -> None:
    """Does with rows what an attempt of a run does, in the same order."""
    if store.exists(REPORT):
        deliver(store, tracker)
        return
    own = Attempt.begin(store)
    step, unsent = resumed(store)
    spool = Spool(tracker.take, [*unsent, *unsent_rows.read(store)], max_pause_s=0.01)
    saver = Saver(store, ALONE, run_attempt=own, retention=Retention(1))
    try:
        while step < STEPS:
            step += 1
            spool.put(row("metrics", step, {"loss": step / 7}))
            if step % EVERY == 0:
                rows = json.dumps(spool.unsent()).encode()
                saver.save(step, {}, partial(write, rows))
                saver.wait()
        spool.close(wait_s)
        unsent_rows.write(store, spool.unsent(), number=own.number)
        store.put(REPORT, b"{}")
    finally:
        saver.close()
        spool.close(0)


def write(rows: bytes, folder: Path) -> None:
    (folder / UNSENT).write_bytes(rows)


def resumed(store: Store) -> tuple[int, list[Row]]:
    with resumable(store, ALONE, lambda *_: True) as found:
        return (found.checkpoint.step, json.loads((found.folder / UNSENT).read_bytes())) if found else (0, [])


def deliver(store: Store, tracker: Tracker) -> None:
    spool = Spool(tracker.take, unsent_rows.read(store), max_pause_s=0.01)
    assert spool.close(MOMENT_S)
    unsent_rows.write_or_warn(store, spool.unsent(), number=attempts.newest(store))


def sweep_all(run: Callable[[int], str], rows: Path, *, up: bool, far: bool = False) -> set[str]:
    """Injects each fault into a new run, with the tracker down or up; returns how the attempts ended."""

    def act(url: str, counter: Counter) -> None:
        attempt(CountedStore(open_store(url), counter), Tracker(rows, up=up), wait_s=MOMENT_S if up else 0)

    operations = operations_of(partial(act, run(0)))
    endings: set[str] = set()
    for number, fault in enumerate((sweep_far if far else sweep)(operations), 1):
        rows.unlink(missing_ok=True)
        url = run(number)
        store = open_store(url)
        endings.add(struck(partial(act, url), fault, EXPECTED, forks=not far))
        for _ in range(2):  # the second one finds a run that is done
            attempt(store, Tracker(rows, up=True), wait_s=MOMENT_S)
        series = Tracker(rows, up=True).series()
        assert series == {step: {step / 7} for step in range(1, STEPS + 1)}, str(fault)
        assert not store.exists(UNSENT), str(fault)
    return endings


@pytest.mark.parametrize("up", [False, True])
def test_after_a_failure_or_kill_at_any_operation_every_row_is_sent_and_counts_once(tmp_path: Path, up: bool) -> None:
    assert sweep_all(lambda number: str(tmp_path / str(number)), tmp_path / "rows", up=up) >= {"killed", "failed"}


@pytest.mark.slow
def test_on_s3_every_row_is_sent_and_counts_once_too(tmp_path: Path, s3: str) -> None:
    assert sweep_all(lambda _: emptied(s3), tmp_path / "rows", up=False, far=True) >= {"killed", "failed"}
