import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from emocap_shards.store import open_store

from benchmarks.cluster import job, measured, model, restarts, tables, validate
from benchmarks.cluster.suite import SUITE
from benchmarks.harness import record
from benchmarks.harness.machine import Occasion
from benchmarks.harness.suite import run
from emocap_pretrain.dry_run.memory import MemoryEstimate
from emocap_pretrain.run_folder.attempts import Attempt

OCCASION = Occasion("a CPU", 0.0, "0123", "2026-01-01", "a test")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    patch = pytest.MonkeyPatch()
    patch.setattr(model, "LIVES", 50)
    patch.setattr(model, "MTBF_DAYS", (3.0, 30.0))
    # What tracing the towers gives, without tracing them.
    towers = MemoryEstimate(129_000_000, 129_000_000, *[0] * 7, patches=196, row_flops=175 * 10**9)
    patch.setattr(model, "estimate", lambda _config, _ranks, **_on_gpu: towers)
    assert run(SUITE, ["simulate", "--out", str(folder)]) == 0
    patch.undo()
    return folder


def test_simulate_records_every_number_of_ranks_on_both_fabrics(simulated):
    lines = record.read(simulated / "scaling.jsonl")
    found = {(line.contender, line.setting["objective"], line.setting["ranks"]) for line in lines}
    assert len(found) == len(lines) == 2 * 2 * 8
    assert {ranks for *_, ranks in found} == {8, 16, 32, 64, 128, 256, 512, 1024}
    for line in lines:
        assert 0 < line.value.median <= 1
        parts = [line.more[name] for name in ("towers_s", "loss_s", "update_s", "vectors_s", "gradients_s")]
        assert sum(parts) == pytest.approx(line.more["step_s"])
        assert line.device == "a model, no device"


def test_simulated_goodput_is_shown_with_the_formula(simulated):
    lines = record.read(simulated / "goodput.jsonl")
    shares = {(line.contender, line.at): line.value.median for line in lines}
    for (who, setting), share in shares.items():
        if who == model.FORMULA:
            assert shares[model.SIMULATED, setting] == pytest.approx(share, abs=0.1)
            assert shares[model.CONTINUES, setting] >= shares[model.WAITS, setting] - 0.02


def test_figures_and_tables_are_made_from_the_records_alone(simulated, capsys):
    assert run(SUITE, ["plot", "--out", str(simulated)]) == 0
    assert {path.name for path in simulated.glob("*.png")} == {"scaling.png", "goodput.png"}
    assert min(path.stat().st_size for path in simulated.glob("*.png")) > 10_000
    capsys.readouterr()
    assert run(SUITE, ["table", "--out", str(simulated)]) == 0
    printed = capsys.readouterr().out
    assert "| 1,024 |" in printed
    assert "(Daly)" in printed


def test_a_measured_line_says_its_ratio():
    size = job.RunSize(steps=200, width=64, depth=3)
    over = {"over torchrun": [1.0, 1.01, 1.02]}
    line = measured.measured_line(OCCASION, measured.OVERHEAD, "ray", size, [0.1, 0.2, 0.3], ratios=over)
    text = tables.small_jobs([line])
    row = "| step time | ray | 2 | 3 x 64 | 200 ms | 150 ms to 250 ms | over torchrun: 1.010 (1.005 to 1.015) |"
    assert row in text


class Place:
    """Takes the place of `benchmarks.cluster.job.Site`, and starts no run.

    The logged times say that a step takes 0.3 s under Ray, otherwise 0.1 s; step 0 is logged at second 5.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"RAY_TMPDIR": str(folder)}
        self.names: list[str] = []

    def config(self, name: str, _size: job.RunSize, **_: Any) -> Path:
        self.names.append(name)
        return self.folder / name / "cfg.yaml"

    def logged(self, config: Path) -> list[tuple[int, float]]:
        step_s = 0.3 if "ray" in config.parent.name else 0.1
        return [(step, 5 + step * step_s) for step in range(0, 50, 10)]


@dataclass
class Job:
    began: float = 2.0

    def wait(self) -> None: ...

    def wait_for(self, *_: Any) -> None: ...


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    @contextmanager
    def started(*_: Any):
        yield Job()

    monkeypatch.setattr(measured, "started", started)
    monkeypatch.setattr(measured, "_cores_beside", lambda *_: 0.5)
    return Place(tmp_path)


def test_steps_of_both_launchers_are_compared_in_rounds_that_begin_with_another_one(place):
    torchrun, ray = measured.overhead(place, job.RunSize(steps=50), 2, OCCASION)
    assert place.names == ["overhead-torchrun", "overhead-ray", "overhead-ray", "overhead-torchrun"]
    assert (torchrun.contender, ray.contender) == ("torchrun", "ray")
    assert (torchrun.median, ray.median) == pytest.approx((0.1, 0.3))
    assert torchrun.ratios is None
    assert ray.ratios["over torchrun"].median == pytest.approx(3)
    assert ray.spread_of("cores_beside_ranks").median == 0.5


def test_a_start_ends_with_the_first_step(place):
    lines = list(measured.start(place, job.RunSize(steps=3), 2, OCCASION))
    assert [(line.contender, line.median, line.repetitions) for line in lines] == [
        ("ray job", 3.0, 2),
        ("torchrun", 3.0, 2),
    ]
    assert sorted(place.names) == ["start-ray", "start-ray", "start-torchrun", "start-torchrun"]


def test_a_step_that_a_surviving_rank_logs_after_the_kill_ends_no_recovery(place, tmp_path, monkeypatch):
    store = open_store(tmp_path / "run")
    Attempt.begin(store)
    monkeypatch.setattr(measured, "ranks_of", lambda _: [Mock()])
    monkeypatch.setattr(Job, "family", list, raising=False)
    rows = [(9, time.time() - 1)]

    def wait_for(_job: Job, what: str, ready: Callable[[], bool]) -> None:
        if what == "checkpoint":
            return
        rows.append((10, time.time()))
        assert not ready()
        Attempt.begin(store)
        assert not ready()
        rows.append((11, time.time() + 7))
        assert ready()

    monkeypatch.setattr(Job, "wait_for", wait_for)
    monkeypatch.setattr(place, "logged", lambda _: rows)
    assert measured._killed_s(Job(), place, tmp_path / "cfg.yaml") == pytest.approx(7, abs=1)


def logged(seconds: list[float]) -> list[tuple[int, float]]:
    at, rows = 0.0, []
    for step, each in enumerate(seconds, 1):
        at += each
        rows.append((step, at))
    return rows


def test_the_steady_step_comes_after_the_first_ones_and_no_outlier_moves_it():
    seconds = [5.0] * 10 + [0.1] * 60
    seconds[30] = 9.0
    rows = logged(seconds)
    assert measured.steady_s(rows) == pytest.approx(0.1)
    assert measured.steady_s(rows[9::10]) == pytest.approx(0.1)
    with pytest.raises(job.JobError, match="at least 20"):
        measured.steady_s(logged([0.1] * 10))


def test_a_save_is_in_the_time_after_the_row_of_its_step():
    # Step 10 saves after its row: the row of step 11 comes late.
    seconds = [0.9 if step % 10 == 1 else 0.1 for step in range(1, 51)]
    saving, others = measured.split_by_saves(logged(seconds), every_steps=10)
    assert saving == pytest.approx([0.9] * 4)
    assert others == pytest.approx([0.1] * 36)
    with pytest.raises(job.JobError, match="no save"):
        measured.split_by_saves(logged(seconds), every_steps=1000)


@dataclass
class Process:
    """A fake of psutil's process, with the attributes that `ranks_of` reads."""

    pid: int
    parent: int
    words: list[str] = field(default_factory=list)

    def ppid(self) -> int:
        return self.parent

    def cmdline(self) -> list[str]:
        return self.words


def test_ranks_are_the_leaves_that_run_the_training():
    agent = Process(1, 0, ["torchrun", "-m", "emocap_pretrain.run"])
    ranks = [Process(number, 1, ["python", "-m", "emocap_pretrain.run"]) for number in (2, 3)]
    assert measured.ranks_of([agent, *ranks, Process(4, 2, ["loader"])]) == ranks
    worker = Process(5, 9, ["ray::RayTrainWorker"])
    assert measured.ranks_of([Process(9, 0, ["raylet"]), worker]) == [worker]
    with pytest.raises(job.JobError, match="looks like a rank"):
        measured.ranks_of([Process(4, 2, ["loader"])])


def test_a_restart_counts_once_each_rank_has_entered_after_the_kill(tmp_path):
    for name in ("rank-0-1000000000-11", "rank-1-1500000000-12", "rank-0-3000000000-13", "rank-0-4000000000-14"):
        (tmp_path / name).touch()
    assert restarts.started_since(tmp_path, 0.0) == {0: (4.0, 14), 1: (1.5, 12)}
    assert restarts.started_since(tmp_path, 2.0) == {0: (4.0, 14)}


def test_a_job_that_fails_shows_the_end_of_its_output(tmp_path):
    place = job.Site(tmp_path, "", {})
    with (
        job.started(["sh", "-c", "echo why; exit 3"], place, tmp_path) as started,
        pytest.raises(job.JobError, match="exit 3: why"),
    ):
        started.wait()


def test_all_started_processes_have_ended_afterwards(tmp_path):
    place = job.Site(tmp_path, "", {})
    with job.started(["sh", "-c", "sleep 100 & sleep 100"], place, tmp_path) as started:
        started.wait_for("children", lambda: len(started.family()) == 2)
        family = started.family()
    assert started.process.poll() is not None
    assert not any(each.is_running() and each.status() != "zombie" for each in family)


def test_an_error_is_one_line(tmp_path, capsys):
    assert run(SUITE, ["table", "--write", "--out", str(tmp_path / "none")]) == 0
    (tmp_path / "scaling.jsonl").write_text("{")
    capsys.readouterr()
    assert run(SUITE, ["table", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_is_described_by_its_size(tmp_path):
    place = job.Site(tmp_path, "/faces", {})
    path, other = (place.config("one", job.RunSize(steps=7, ranks=3), checkpoint={"every_steps": 2}) for _ in range(2))
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    assert (tree["steps"], tree["cluster"]["ranks"], tree["checkpoint"]) == (7, 3, {"every_steps": 2})
    assert place.logged(path) == []
    assert path.parent != other.parent


@pytest.mark.slow
def test_the_model_of_a_step_is_held_against_two_real_ranks(tmp_path):
    lines = list(validate.measure((validate.Case("tiny", 4, 32, 1, 16),), 2, OCCASION))
    assert [line.contender for line in lines] == [validate.PREDICTED, validate.MEASURED]
    assert all(line.value.median > 0 for line in lines)
    record.append(tmp_path / "cluster-model.jsonl", lines)
    assert "tiny" in tables.validation(record.read(tmp_path / "cluster-model.jsonl"))
    assert json.loads((tmp_path / "cluster-model.jsonl").read_text().splitlines()[0])["ratios"]
