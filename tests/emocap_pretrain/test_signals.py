"""Tests real ranks that a user interrupts, and a run whose folder is deleted while it trains."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import Status

LIMIT_S = 180.0
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Returns the config of a run that does not end by itself within the test."""
    return changed(tiny_config, steps=100_000, checkpoint__every_steps=100_000, evaluation__url=None)


@contextmanager
def running(config: Config, folder: Path, *, torchrun: bool) -> Iterator[subprocess.Popen[str]]:
    """Starts the launcher, or the rank itself, as the leader of a process group of its own, as a terminal does."""
    path = folder / "cfg.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, *(TORCHRUN if torchrun else []), "-m", "emocap_pretrain.run", str(path)]
    clean = {name: value for name, value in os.environ.items() if name not in {*ALONE, "TORCHELASTIC_RUN_ID"}}
    process = subprocess.Popen(
        command,
        env=clean | ({} if torchrun else ALONE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def status(config: Config) -> Status | None:
    found = attempts.status(open_store(config.url), 1)
    return found if isinstance(found, Status) else None


def until(config: Config, reached: Callable[[Status], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = status(config)
        if found and reached(found):
            return
        time.sleep(0.05)
    pytest.fail(f"the run did not get there: {status(config)}")


@pytest.mark.parametrize("torchrun", [False, True], ids=["alone", "torchrun"])
def test_the_first_ctrl_c_saves_and_stops(config: Config, tmp_path: Path, torchrun: bool) -> None:
    config = changed(config, data__workers=1)  # A loader process belongs to the process group and gets the signal too.
    with running(config, tmp_path, torchrun=torchrun) as process:
        until(config, lambda found: found.step >= 3)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=LIMIT_S)
    (saved,) = committed(open_store(config.url))
    assert f"is stopped and saved at step {saved.step}" in printed
    assert "another Ctrl-C ends it at once" in printed
    found = status(config)
    assert found
    assert (found.how, found.reason) == ("stopped", "told to stop; the state is saved")
    assert torchrun or process.returncode == 75


def test_the_second_ctrl_c_ends_at_once(config: Config, tmp_path: Path) -> None:
    with running(config, tmp_path, torchrun=False) as process:
        until(config, lambda found: found.state == "opening")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout
        for line in process.stdout:
            if "another Ctrl-C ends it at once" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGINT
    assert committed(open_store(config.url)) == []


def test_a_signal_before_the_first_step_does_not_claim_that_anything_is_saved(config: Config, tmp_path: Path) -> None:
    with running(config, tmp_path, torchrun=False) as process:
        until(config, lambda found: found.state == "opening")
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75
    assert "is stopped before its first checkpoint" in printed
    assert "saved" not in printed
    found = status(config)
    assert found
    assert found.reason == "told to stop; before the first step, so no training is lost"


def test_a_run_whose_folder_is_deleted_ends_with_one_line_and_does_not_recreate_it(
    config: Config, tmp_path: Path
) -> None:
    with running(config, tmp_path, torchrun=False) as process:
        until(config, lambda found: found.step >= 3)
        shutil.rmtree(config.url, ignore_errors=True)
        shutil.rmtree(config.url, ignore_errors=True)
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert re.search(r"error: rank 0: the folder of the run at .* was deleted or replaced: attempt 1 ends", printed)
    assert open_store(config.url).list() == []
