"""Tests what `emocap checkpoints` prints in 80 columns, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.store import Store, open_store
from pretrain_fakes import aged
from rich.console import Console
from typer.testing import CliRunner, Result

from emocap_pretrain.checkpoint.best import write_results
from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import manifest_of
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.cli import checkpoints
from emocap_pretrain.cli.app import app
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Status
from emocap_pretrain.run_folder.results import Score, TaskResult

ALONE = RankGroup(Rank(), "cpu", None)
STATE: dict[str, Any] = {
    "config": {"engine": {"zero_stage": 2}},
    "progress": {"seconds": 9.0, "row": {"loss": 3.14159}},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(checkpoints, "console", Console(width=80, highlight=False, soft_wrap=True))
    return open_store(tmp_path / "run")


def saved(store: Store, *steps: int, start: Attempt | None = None) -> list[Checkpoint]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(1_500_000))
        (folder / "tokenizer.json").write_bytes(b"{}")

    return [commit(store, step, STATE, write, ALONE, start or Attempt(store, attempts.newest(store))) for step in steps]


def cut_off(store: Store, step: int, start: Attempt) -> None:
    """Leaves the files of a save that is killed before its manifest."""
    store.put(f"checkpoints/step-{step:08d}/{start.number:05d}-cut/a", bytes(1000))


def emocap(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["checkpoints", *map(str, arguments)])


def test_a_list_shows_each_step_within_80_columns(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    start = Attempt.begin(store)
    saved(store, 2, 123_456_789, start=start)
    cut_off(store, 123_456_790, start)
    checkpoints.list_command(store.url)
    title, header, *rows = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert title == f"Checkpoints of {store.url}"
    assert header.split() == ["step", "saved", "(UTC)", "size", "files", "ranks", "ZeRO", "loss", "state"]
    date = time.strftime("%Y-%m-%d", time.gmtime(committed(store)[0].at))
    assert [row.split()[:2] for row in rows] == [["123456790", "-"], ["123456789", date], ["2", date]]
    assert rows[0].split()[2:] == ["1", "kB", "1", "-", "-", "-", "unfinished"]
    assert rows[1].split()[3:] == ["1.5", "MB", "2", "1", "2", "3.142", "whole"]
    assert max(map(len, [header, *rows])) <= 80


def test_a_list_shows_incomplete_damaged_and_foreign_checkpoints(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, newest = saved(store, 1, 2, 3)
    store.delete(f"{newest.folder}/tokenizer.json")
    store.put(manifest_of(2), b"{}")
    store.put(manifest_of(1), Checkpoint(1, "a", (), {}, schema=9).dump())
    checkpoints.list_command(store.url)
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines()[2:5]] == ["damaged", "damaged", "foreign"]
    assert "step 3: 1 of 2 files are missing or have another size, such as tokenizer.json" in out
    assert "step 2: the manifest is damaged" in out
    assert "checkpoint schema 9 is not" in out


def test_a_list_without_checkpoints_says_so(store: Store) -> None:
    done = emocap("list", store.url)
    assert done.exit_code == 0
    assert json.loads(emocap("list", store.url, "--json").stdout) == []


def test_a_list_as_json_holds_numbers(store: Store) -> None:
    (checkpoint,) = saved(store, 7)
    (row,) = json.loads(emocap("list", store.url, "--json").stdout)
    assert row == {
        "step": 7,
        "state": "whole",
        "bytes": 1_500_002,
        "files": 2,
        "at": checkpoint.at,
        "ranks": 1,
        "zero_stage": 2,
        "loss": 3.14159,
        "note": "",
    }


def test_verify_reads_every_byte_and_names_what_changed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    *_, newest = saved(store, 2, 4)
    assert emocap("verify", store.url).exit_code == 0
    changed = bytearray(1_500_000)
    changed[1_400_000] = 1
    store.put(f"{newest.folder}/model.safetensors", bytes(changed))
    done = emocap("verify", store.url, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"4": [f"{store.url}/{newest.folder}/model.safetensors"], "2": []}
    assert emocap("verify", store.url, "--step", 2).exit_code == 0
    assert emocap("verify", store.url, "--step", 4).exit_code == 1
    store.put(manifest_of(2), b"{}")
    assert json.loads(emocap("verify", store.url, "--json").stdout)["2"] == [f"{store.url}/{manifest_of(2)}"]


def test_verify_without_anything_to_verify_is_a_value_to_correct(store: Store) -> None:
    done = emocap("verify", store.url)
    assert done.exit_code == 2
    assert "has no checkpoints; steps: none" in done.stderr
    saved(store, 2)
    done = emocap("verify", store.url, "--step", 3)
    assert done.exit_code == 2
    assert "has no checkpoint of step 3; steps: 2." in done.stderr


def test_prune_keeps_the_best_checkpoint_of_the_run_or_of_the_given_score(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Attempt.begin(store)
    settings = {"checkpoint": {"keep_best": "task/uar"}, "evaluation": {"url": "faces"}}
    monkeypatch.setitem(STATE, "config", settings)
    saved(store, 2, 4, 6, 8, start=start)
    start.write_status(Status(at=time.time(), state="ended"))
    for step, uar, loss in ((2, 0.9, 0.5), (4, 0.5, 0.1), (6, 0.7, 0.3)):
        scores = (Score("uar", "UAR", uar), Score("loss", "loss", loss, lower_is_better=True))
        write_results(store, step, (TaskResult("task", 8, scores),), {"url": "faces"})
    checkpoints.prune_command(store.url, keep_last=1, keep_best="task/loss", dry_run=True)
    assert [line[:6] for line in capsys.readouterr().out.splitlines()[:-1]] == ["step 6", "step 2"]
    checkpoints.prune_command(store.url, keep_last=1)
    assert [each.step for each in committed(store)] == [8, 2]


def test_prune_prints_what_it_deletes_and_with_dry_run_deletes_nothing(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Attempt.begin(store)
    saved(store, 2, 4, 6, 8, start=start)
    cut_off(store, 9, start)
    start.write_status(Status(at=time.time(), state="ended"))
    before = store.list()
    checkpoints.prune_command(store.url, keep_last=1, keep_every=4, dry_run=True)
    assert capsys.readouterr().out.splitlines() == [
        "step 9: would delete files of an unfinished save, 1 kB",
        "step 6: would delete the checkpoint, 1.5 MB",
        "step 2: would delete the checkpoint, 1.5 MB",
        "3 MB would be freed.",
    ]
    assert store.list() == before
    checkpoints.prune_command(store.url, keep_last=1, keep_every=4)
    assert capsys.readouterr().out.splitlines()[-1] == "3 MB freed."
    assert [each.step for each in committed(store)] == [8, 4]
    assert len(store.list("checkpoints")) == 6


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (None, True),  # It has just begun.
        ({"ago_s": 0, "state": "training"}, True),
        ({"ago_s": 0, "state": "ended"}, False),
        ({"ago_s": 100, "state": "training"}, False),
    ],
)
def test_prune_refuses_a_run_that_is_alive(store: Store, status: dict[str, Any] | None, refused: bool) -> None:
    start = Attempt.begin(store)
    saved(store, 2, 4, start=start)
    if status:
        start.write_status(Status(at=time.time(), state=status["state"]))
        aged(store, "attempts/00001/status.json", status["ago_s"])
    done = emocap("prune", store.url, "--keep-last", 1)
    assert done.exit_code == (2 if refused else 0)
    assert ("attempt 1 of the run" in done.stderr) is refused
    assert [each.step for each in committed(store)] == ([4, 2] if refused else [4])


def test_prune_with_force_keeps_a_checkpoint_that_is_being_saved(store: Store) -> None:
    old, new = Attempt.begin(store), Attempt.begin(store)
    saved(store, 2, 4, start=new)
    cut_off(store, 6, old)
    cut_off(store, 6, new)
    new.write_status(Status(at=time.time() + 100))
    assert emocap("prune", store.url, "--keep-last", 1, "--force").exit_code == 0
    assert {entry.path.split("/")[1] for entry in store.list("checkpoints")} == {"step-00000004", "step-00000006"}
    assert [entry.path for entry in store.list("checkpoints/step-00000006")] == [
        "checkpoints/step-00000006/00001-cut/a",
        "checkpoints/step-00000006/00002-cut/a",
    ]


def test_prune_counts_no_checkpoint_whose_bytes_are_wrong(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    *_, newest = saved(store, 2, 4, 6)
    store.put(f"{newest.folder}/tokenizer.json", b"{]")
    checkpoints.prune_command(store.url, keep_last=1)
    assert "step 6: does not count" in capsys.readouterr().out
    assert [each.step for each in committed(store)] == [6, 4]
    checkpoints.prune_command(store.url, keep_last=1, sizes_only=True)
    assert [each.step for each in committed(store)] == [6]


def test_the_last_checkpoint_cannot_be_pruned(store: Store) -> None:
    saved(store, 2)
    assert emocap("prune", store.url, "--keep-last", 0).exit_code == 2
    assert committed(store)


def test_commands_about_checkpoints_need_no_torch() -> None:
    script = "import sys; import emocap_pretrain.cli.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
