"""Tests evaluations on a real Ray cluster: of a run that trains there, and of `emocap evaluate --ray`."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from benchmark_trees import raf_db
from cli_calls import printed
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1600)]
PROGRAM = Path(__file__).parent / "evaluation" / "faulty_ranks_on_ray.py"


def on_ray(*words: object, home: Path) -> "subprocess.CompletedProcess[str]":
    """Runs Python with these arguments, as the driver of a Ray cluster of its own."""
    # The path is short, because Ray creates sockets in it. No other cluster of this machine uses the folder.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        outside = ("RAY_", "RANK", "WORLD_SIZE", "SLURM_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        env |= {"RAY_TMPDIR": place, "HOME": str(home), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        try:
            return subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=home)
        finally:
            for each in psutil.process_iter():
                with suppress(psutil.Error):
                    if each.environ().get("RAY_TMPDIR") == place:
                        each.kill()


def lines(text: str) -> list[str]:
    """Returns the lines without the one that says that the host is busy, which says nothing about the command."""
    return [line for line in text.splitlines() if "is this host busy?" not in line]


def file_of(config: Config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def test_a_run_on_ray_scores_its_benchmarks_as_one_process_does(finished_run: Config, tmp_path: Path) -> None:
    """It does so before training, at a checkpoint during training, and at its end."""
    copy = raf_db(tmp_path / "raf", 2)
    settings: dict[str, object] = {"before_training": "always", "every_checkpoints": 1, "batch": 7}
    settings |= {"benchmarks": {"raf_db": str(copy.root)}, "tasks": ["zero_shot"]}
    of_evaluation = {f"evaluation__{name}": value for name, value in settings.items()}
    config = changed(finished_run, url=str(tmp_path / "run"), cluster__ranks=2, steps=4, **of_evaluation)
    file = file_of(config, tmp_path / "run.yaml")
    trained = on_ray("-m", "emocap_pretrain.run", file, home=tmp_path)
    assert trained.returncode == 0, trained.stderr
    folder = RunFolder(open_store(config.url))
    report = folder.report(4)
    assert report is not None
    assert report.ranks == 2
    assert [each.benchmark for each in report.before_training] == ["", "raf_db"]
    during = json.loads(open_store(config.url).read("evaluations/step-00000002.json"))
    assert [each["benchmark"] for each in during["results"]] == ["", "raf_db"]
    told = printed("evaluate", config.url, "--config", file)["results"]
    assert [each["benchmark"] for each in told] == ["", "raf_db"]
    scores = [[(score["name"], score["value"]) for score in each["scores"]] for each in told]
    assert scores == [[(score.name, score.value) for score in each.scores] for each in report.results]


def test_a_rank_of_ray_that_is_killed_costs_a_restart_and_no_result(finished_run: Config, tmp_path: Path) -> None:
    """Four batches: rank 1 has one of its two when it is killed, and computes only the other one after the restart."""
    copy = raf_db(tmp_path / "raf", 4)
    file = file_of(changed(finished_run, evaluation__batch=7), tmp_path / "own.yaml")
    words = (
        "evaluate",
        finished_run.url,
        "--config",
        file,
        "--task",
        "zero_shot",
        "--benchmark",
        f"raf_db={copy.root}",
    )
    # Relative paths are those of the command, also for the ranks.
    with_ray = ("--ray", "--ranks", "2", "--json", "--cache", "cache")
    done = on_ray(PROGRAM, f"killed={tmp_path / 'batches'}", *words, *with_ray, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == printed(*words)
    first, second = lines(done.stderr)
    assert re.fullmatch(r"rank 1 on \S+ failed: Killed: .*", first)
    assert second.strip() == "Starting again now, from the beginning."
    of_rank_1 = (tmp_path / "batches").read_text().split()
    assert len(of_rank_1) == len(set(of_rank_1)) == 2
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 4


def test_a_rank_of_ray_without_the_copy_is_named_in_one_line(finished_run: Config, tmp_path: Path) -> None:
    copy = raf_db(tmp_path / "raf", 1)
    words = ("evaluate", finished_run.url, "--benchmark", f"raf_db={copy.root}", "--ray", "--ranks", "2")
    done = on_ray(PROGRAM, f"blind={tmp_path / 'absent'}", *words, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = lines(done.stderr)
    assert line.startswith("error: benchmark raf_db: the copies of ranks 0 and 1 differ: ")
    assert line.endswith(
        f"/absent is not a folder; give every rank the same copy (rank 1 runs on {socket.gethostname()})."
    )
