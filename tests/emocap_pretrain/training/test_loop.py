import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from emocap_shards.errors import BudgetSpent
from emocap_shards.index import load_index
from emocap_shards.manifest import read_manifest
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from mlflow.tracking import MlflowClient
from pretrain_fakes import FakeRuntime, changed, stand_alone
from safetensors.torch import load_file
from torch import Tensor

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError, TrainingError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.health.position import PHASES, TrainingPosition
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.tracking import pages
from emocap_pretrain.tracking.spool import row
from emocap_pretrain.training import conclusion, session
from emocap_pretrain.training.guard import Guard
from emocap_pretrain.training.loop import pretrain

STEPS = 5


@pytest.fixture(autouse=True)
def surroundings() -> None:
    stand_alone()


@pytest.fixture
def new_run(tiny_config: Config, tmp_path: Path) -> Callable[..., Config]:
    """Returns a function that makes a config with a new run folder.

    The epochs of the run end in a step with fewer rows, and only the last step is saved.
    """

    def make(name: str = "run", **changes: object) -> Config:
        values: dict[str, object] = {
            "url": str(tmp_path / name),
            "steps": STEPS,
            "global_batch": 10,
            "checkpoint__every_steps": 1000,
            "evaluation__url": None,
        }
        return changed(tiny_config, **(values | changes))

    return make


def run_id(config: Config) -> str:
    found = RunFolder(open_store(config.url)).run_id(config)
    assert found is not None
    return found


def curve(config: Config, metric: str = "loss") -> list[tuple[int, float]]:
    history = MlflowClient(config.tracking.uri).get_metric_history(run_id(config), metric)
    return sorted((point.step, point.value) for point in history)


def status(config: Config) -> str:
    return MlflowClient(config.tracking.uri).get_run(run_id(config)).info.status


def saved(config: Config) -> list[Checkpoint]:
    return committed(open_store(config.url))


class Crash(Exception):  # noqa: N818
    """Is an exception that no handler of the product catches."""


def crash(*_: object, **_others: object) -> None:
    raise Crash


@dataclass
class CrashingRuntime(FakeRuntime):
    crash_at: int = 0

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        if step == self.crash_at:
            crash()
        super().heartbeat(step, steps, note)


def test_a_run_trains_saves_reports_and_tracks(new_run: Callable[..., Config], faces: str) -> None:
    config = new_run(evaluation__url=faces, checkpoint__every_steps=3, steps=6, optimizer__lr=1e-2)
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert runtime.beats == [1, 2, 3, 4, 5, 6]
    assert [each.step for each in saved(config)] == [6, 3]
    assert len(runtime.commits) == 2
    losses = curve(config)
    assert [step for step, _ in losses] == runtime.beats
    assert losses[-1][1] < losses[0][1]
    report = RunFolder(open_store(config.url)).report(6)
    assert report is not None
    assert (report.step, report.ranks, report.run_id) == (6, 1, run_id(config))
    assert report.loss == losses[-1][1]
    assert curve(config, "zero_shot/uar")[0][1] == report.results[0].metrics()["zero_shot/uar"]
    assert status(config) == "FINISHED"
    tracked = MlflowClient(config.tracking.uri).get_run(run_id(config))
    assert report.experiment_id == tracked.info.experiment_id
    (used,) = tracked.inputs.dataset_inputs  # Both datasets of this run are one.
    assert used.dataset.digest == read_manifest(faces).digest[:16]
    charts = {metric for section in pages.sections(tasks.charts()).values() for chart in section for metric in chart}
    assert {name for name in tracked.data.metrics if not name.startswith("system/")} <= charts


def test_a_run_passes_through_the_phases_in_the_order_by_which_the_failure_detector_compares_ranks(
    new_run: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[int, int]] = []
    enter_section = TrainingPosition.enter_section

    def recorded(position: TrainingPosition, phase: str) -> None:
        enter_section(position, phase)
        places.append((position.step, PHASES.index(phase)))

    monkeypatch.setattr(TrainingPosition, "enter_section", recorded)
    pretrain(new_run(steps=3, checkpoint__every_steps=1), FakeRuntime())
    # After the last step, the run waits for its last checkpoint in the phase "saving", which it has been in before.
    before = [place for place in places if place[0] < 3]
    assert before == sorted(before)
    assert {PHASES[phase] for _, phase in before} >= {"training", "saving", "data", "update"}


def test_a_run_that_was_stopped_at_any_step_and_started_again_is_the_unbroken_run_to_the_bit(
    new_run: Callable[..., Config],
) -> None:
    unbroken = new_run("unbroken")
    pretrain(unbroken, FakeRuntime())
    for step in range(1, STEPS):
        config = new_run(f"stopped-{step}")
        pretrain(config, FakeRuntime(stop_after=step))
        assert [each.step for each in saved(config)] == [step]
        assert RunFolder(open_store(config.url)).report(STEPS) is None
        assert status(config) == "KILLED"
        runtime = FakeRuntime()
        pretrain(config, runtime)
        assert runtime.beats == list(range(step + 1, STEPS + 1))
        assert curve(config) == curve(unbroken), f"stopped at step {step}"
        assert status(config) == "FINISHED"
        for name, weight in weights(unbroken).items():
            assert weight.equal(weights(config)[name]), f"{name}, stopped at step {step}"


def weights(config: Config) -> dict[str, Tensor]:
    with downloaded(open_store(config.url), saved(config)[0], WEIGHTS.__eq__) as folder:
        return load_file(folder / WEIGHTS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "sgd", "lr": 0.1}, "engine__zero_stage": 2},
        {"optimizer": {"name": "adafactor", "lr": 0.01}, "engine__zero_stage": 0},
        {"model__image__freeze": "all", "model__text__freeze": 1, "micro_batch": 4},
        {"model__image__lora": {"dropout": 0.5}, "model__text__lora": {"targets": ["fc1"]}, "engine__zero_stage": 3},
    ],
    ids=["adamw", "sgd", "adafactor", "frozen", "adapters"],
)
def test_a_run_that_is_stopped_after_every_single_step_is_the_unbroken_run(
    new_run: Callable[..., Config], changes: dict[str, object]
) -> None:
    unbroken, config = (new_run(name, steps=4, **changes) for name in ("unbroken", "stopped"))
    pretrain(unbroken, FakeRuntime())
    for _ in range(4):
        pretrain(config, FakeRuntime(stop_after=1))
    assert curve(config) == curve(unbroken)


@pytest.mark.parametrize("crash_at", [1, 5])
def test_a_crash_loses_the_steps_after_the_last_checkpoint_and_doubles_no_point(
    new_run: Callable[..., Config], crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FLUSH_S", 60.0)  # A busy machine may need longer for the rows than a crash waits.
    unbroken, config = new_run("unbroken", steps=6), new_run(steps=6, checkpoint__every_steps=2)
    pretrain(unbroken, FakeRuntime())
    with pytest.raises(Crash):
        pretrain(config, CrashingRuntime(crash_at=crash_at))
    assert status(config) == "FAILED"
    assert [step for step, _ in curve(config)] == list(range(1, crash_at + 1))
    runtime = FakeRuntime()
    pretrain(config, runtime)
    # The saver's thread survives a crash of this kind, so the second checkpoint may be committed or not; the first is.
    assert runtime.beats[0] - 1 in ({2, 4} if crash_at == 5 else {0})
    assert curve(config) == curve(unbroken)


def test_a_crash_between_the_last_checkpoint_and_the_report_costs_the_evaluation_only(
    new_run: Callable[..., Config], faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = new_run(steps=2, evaluation__url=faces)
    with monkeypatch.context() as crashing:
        crashing.setattr(conclusion.run_tasks, "evaluate", crash)
        with pytest.raises(Crash):
            pretrain(config, FakeRuntime())
    runtime = FakeRuntime()
    pretrain(config, runtime)
    report = RunFolder(open_store(config.url)).report(2)
    assert report is not None
    assert runtime.beats == []
    assert report.loss == curve(config)[-1][1]
    assert report.seconds == saved(config)[0].state["progress"]["seconds"] > 0


def test_the_seconds_of_a_run_are_those_of_all_its_starts(new_run: Callable[..., Config]) -> None:
    config = new_run(steps=2)
    pretrain(config, FakeRuntime(stop_after=1))
    first = saved(config)[0].state["progress"]["seconds"]
    pretrain(config, FakeRuntime())
    report = RunFolder(open_store(config.url)).report(2)
    assert report is not None
    assert report.seconds > first > 0
    assert report.samples_per_s == 2 * config.global_batch / report.seconds


def test_a_finished_run_is_not_changed(new_run: Callable[..., Config]) -> None:
    config = new_run(steps=2)
    pretrain(config, FakeRuntime())
    before = {path: path.stat().st_mtime_ns for path in Path(config.url).rglob("*")}
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert runtime == FakeRuntime()
    assert {path: path.stat().st_mtime_ns for path in Path(config.url).rglob("*")} == before
    assert "emocap.restarts" not in MlflowClient(config.tracking.uri).get_run(run_id(config)).data.tags


def test_a_finished_run_continues_if_steps_is_increased(new_run: Callable[..., Config], faces: str) -> None:
    short, long = new_run(steps=2, evaluation__url=faces), new_run(steps=4, evaluation__url=faces)
    pretrain(short, FakeRuntime())
    runtime = FakeRuntime()
    pretrain(long, runtime)
    assert runtime.beats == [3, 4]
    assert [step for step, _ in curve(long)] == [1, 2, 3, 4]
    report = RunFolder(open_store(long.url)).report(4)
    assert report is not None
    assert report.step == 4


def test_another_learning_rate_at_the_same_url_is_refused_by_name(new_run: Callable[..., Config]) -> None:
    pretrain(new_run(), FakeRuntime(stop_after=1))
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0\.001.*0\.002"):
        pretrain(new_run(optimizer__lr=0.002), FakeRuntime())


def test_other_data_at_another_place_are_refused(new_run: Callable[..., Config], tmp_path: Path) -> None:
    pretrain(new_run(), FakeRuntime(stop_after=1))
    other = str(tmp_path / "other")
    write_shards(records(20, seed=1, pixels=32), other)
    with pytest.raises(CheckpointError, match="is not the data"):
        pretrain(new_run(data__url=other), FakeRuntime())


def test_the_same_data_may_move(new_run: Callable[..., Config], tmp_path: Path) -> None:
    config = new_run()
    pretrain(config, FakeRuntime(stop_after=1))
    moved = shutil.copytree(config.data.url, tmp_path / "moved")
    pretrain(new_run(data__url=str(moved)), FakeRuntime())
    assert RunFolder(open_store(config.url)).report(config.steps)


def test_another_dataset_at_the_same_place_is_refused(new_run: Callable[..., Config], tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    write_shards(records(20, pixels=32), data)
    config = new_run(data__url=data)
    pretrain(config, FakeRuntime(stop_after=1))
    for entry in open_store(data).list():
        open_store(data).delete(entry.path)
    write_shards(records(20, seed=1, pixels=32), data)
    with pytest.raises(CheckpointError, match="is not the data"):
        pretrain(config, FakeRuntime())
    assert [each.step for each in saved(config)] == [1]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_in_no_checkpoint(
    new_run: Callable[..., Config],
) -> None:
    config = new_run(optimizer__lr=1e30, optimizer__warmup_steps=0, checkpoint__every_steps=1)
    with pytest.raises(TrainingError, match=r"step \d: .*loss=nan") as caught:
        pretrain(config, FakeRuntime())
    failed_at = int(str(caught.value).split()[1].rstrip(":"))
    assert [each.step for each in saved(config)] == list(range(failed_at - 1, 0, -1))
    assert all(math.isfinite(value) for _, value in curve(config))
    assert status(config) == "FAILED"


def test_a_loss_that_is_not_finite_between_two_logged_steps_is_in_no_checkpoint(
    new_run: Callable[..., Config],
) -> None:
    config = new_run(
        optimizer__lr=1e30, optimizer__warmup_steps=0, checkpoint__every_steps=3, tracking__every_steps=100
    )
    with pytest.raises(TrainingError, match="step 3"):
        pretrain(config, FakeRuntime())
    assert saved(config) == []


def test_a_run_whose_weights_are_broken_for_good_fails_and_keeps_the_checkpoints_from_before(
    new_run: Callable[..., Config],
) -> None:
    good = {"steps": 8, "checkpoint__every_steps": 1, "checkpoint__keep_last": 1, "health__nonfinite": "skip"}
    config = new_run(**good)
    pretrain(config, FakeRuntime(stop_after=3))
    assert [each.step for each in saved(config)] == [3]
    with pytest.MonkeyPatch.context() as breaking:
        breaking.setattr("emocap_pretrain.training.engine.learning_rate", lambda *_: 1e30)
        with pytest.raises(
            TrainingError, match=r"the updates of the last \d of 8 steps were left out \(.*step 8"
        ) as caught:
            pretrain(config, FakeRuntime())
    # Step 4 made the weights huge, which only the loss of step 5 shows; nothing was saved or deleted after it.
    assert [each.step for each in saved(config)] == [4, 3]
    assert "has not trained since step 4" in str(caught.value)
    assert status(config) == "FAILED"
    assert RunFolder(open_store(config.url)).report(8) is None
    with pytest.raises(TrainingError, match="were left out"):
        pretrain(config, FakeRuntime())
    assert [each.step for each in saved(config)] == [4, 3]


def test_a_single_update_that_was_left_out_does_not_make_a_run_fail(new_run: Callable[..., Config]) -> None:
    config = new_run(steps=4, health__nonfinite="skip", checkpoint__every_steps=1)
    store = open_store(config.url)
    for step in (2, 4):
        Guard(config.health).remember(store, step, "was a spike")
    pretrain(config, FakeRuntime())
    assert RunFolder(store).report(4)
    assert [each.step for each in saved(config)] == [3, 1], "a step without an update has the weights of the one before"


def models(config: Config, of: str) -> dict[str, str]:
    client = MlflowClient(config.tracking.uri)
    experiment = client.get_run(of).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id='{of}'")
    return {model.name: model.tags["checkpoint.url"] for model in found}


def test_a_copy_of_a_run_continues_as_a_run_of_its_own_and_leaves_the_original_alone(
    new_run: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = new_run(checkpoint__every_steps=1, checkpoint__keep_last=1)
    pretrain(config, FakeRuntime(stop_after=2))
    original, before = run_id(config), curve(config)
    listed = models(config, original)
    shutil.copytree(config.url, tmp_path / "copy")
    copy = changed(config, url=str(tmp_path / "copy"))
    unsent.write_or_warn(open_store(copy.url), [row("metrics", 99, {"loss": 99.0})], number=99)
    files = {path: path.read_bytes() for path in Path(config.url).rglob("*") if path.is_file()}
    runtime = FakeRuntime()
    pretrain(copy, runtime)
    assert runtime.beats == [3, 4, 5]
    assert f"up to 1 rows are left to MLflow run {original}" in caplog.text
    assert run_id(copy) != original
    client = MlflowClient(config.tracking.uri)
    assert client.get_run(run_id(copy)).data.tags["mlflow.parentRunId"] == original
    assert [step for step, _ in curve(copy)] == [3, 4, 5]
    assert (curve(config), models(config, original), status(config)) == (before, listed, "KILLED")
    assert {path: path.read_bytes() for path in Path(config.url).rglob("*") if path.is_file()} == files
    pretrain(config, FakeRuntime())
    assert run_id(config) == original
    assert [step for step, _ in curve(config)] == [1, 2, 3, 4, 5]
    assert set(models(config, original).values()).isdisjoint(models(copy, run_id(copy)).values())


def test_a_backup_that_was_restored_in_place_is_tracked_as_a_run_of_its_own(
    new_run: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = new_run(checkpoint__every_steps=1)
    pretrain(config, FakeRuntime(stop_after=1))
    shutil.copytree(config.url, tmp_path / "backup")
    pretrain(config, FakeRuntime(stop_after=2))
    original, before = run_id(config), curve(config)
    shutil.rmtree(config.url)
    shutil.copytree(tmp_path / "backup", config.url)
    pretrain(config, FakeRuntime())
    assert "is a backup or a copy of it" in caplog.text
    assert run_id(config) != original
    assert [step for step, _ in curve(config)] == [2, 3, 4, 5]
    history = MlflowClient(config.tracking.uri).get_metric_history(original, "loss")
    assert sorted((point.step, point.value) for point in history) == before


def test_a_run_whose_rows_are_not_taken_for_another_folder_s_says_so_at_its_end(
    new_run: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    config = new_run(steps=3)

    @dataclass
    class Meddled(FakeRuntime):
        def heartbeat(self, step: int, steps: int, note: str) -> None:
            if step == 1:  # As an attempt in a copy does that could not be told from the run.
                MlflowClient(config.tracking.uri).set_tag(run_id(config), "emocap.starts", "7")
            super().heartbeat(step, steps, note)

    pretrain(config, Meddled())
    assert RunFolder(open_store(config.url)).report(3)
    assert "with a higher number: find out which other folder writes to the run" in caplog.text


def damaged_faces(folder: Path, count: int) -> str:
    """Writes a dataset of faces, some of which have a flipped bit."""
    write_shards(records(24, pixels=32), folder, samples_per_shard=24)
    tar = folder / "shard-000000.tar"
    index = load_index((folder / "shard-000000.npy").read_bytes(), shard="")
    data = bytearray(tar.read_bytes())
    for sample in range(count):
        data[index[sample * 5].offset + 600] ^= 1
    tar.write_bytes(data)
    return str(folder)


def test_damaged_samples_are_left_out_reported_and_tracked(new_run: Callable[..., Config], tmp_path: Path) -> None:
    config = new_run(data__url=damaged_faces(tmp_path / "faces", 2), data__error_budget=3)
    pretrain(config, FakeRuntime())
    rows = json.loads((tmp_path / "run" / "quarantine.json").read_text())
    assert len({row["key"] for row in rows["samples"]}) == len(rows["samples"]) == 2
    client = MlflowClient(config.tracking.uri)
    history = client.get_metric_history(run_id(config), "data_quarantined")
    assert [point.value for point in history][-1] == 2
    assert "quarantine.json" in [file.path for file in client.list_artifacts(run_id(config))]


def test_more_damage_than_the_budget_ends_the_run_with_a_list(new_run: Callable[..., Config], tmp_path: Path) -> None:
    config = new_run(data__url=damaged_faces(tmp_path / "faces", 4), data__error_budget=2)
    with pytest.raises(BudgetSpent, match="error_budget=2 is used up"):
        pretrain(config, FakeRuntime())
    assert len(json.loads((tmp_path / "run" / "quarantine.json").read_text())["samples"]) >= 3


def test_a_mixture_trains_and_resumes(new_run: Callable[..., Config], faces: str, tmp_path: Path) -> None:
    write_shards(records(9, seed=5, pixels=32), tmp_path / "others")
    mix = [{"url": faces, "weight": 3}, {"url": str(tmp_path / "others"), "weight": 1}]
    config = new_run(data__url=None, data__mix=mix)
    broken = changed(config, url=str(tmp_path / "broken"))
    pretrain(broken, FakeRuntime(stop_after=2))
    pretrain(broken, FakeRuntime())
    pretrain(config, FakeRuntime())
    assert curve(broken) == curve(config)


def test_a_finished_run_whose_evaluation_has_changed_is_evaluated_again_and_not_trained(
    new_run: Callable[..., Config], faces: str
) -> None:
    pretrain(new_run(steps=2, evaluation__url=faces), FakeRuntime())
    classes = {"happiness": ["joy"]} | {name: [name] for name in ("anger", "disgust", "fear")}
    classes |= {name: [name] for name in ("neutral", "sadness", "surprise", "contempt")}
    changed_run = new_run(steps=2, evaluation__url=faces, evaluation__classes=classes)
    store = open_store(changed_run.url)
    before = {entry.path: store.read(entry.path) for entry in store.list()}
    runtime = FakeRuntime()
    pretrain(changed_run, runtime)
    assert runtime.beats == []
    report = RunFolder(store).report(2)
    assert report is not None
    (found,) = report.results
    assert found.confusion_matrices[0].classes == tuple(classes)
    assert curve(changed_run, "zero_shot/uar")[-1][1] == found.metrics()["zero_shot/uar"]
    assert status(changed_run) == "FINISHED"
    after = {entry.path: store.read(entry.path) for entry in store.list()}
    assert {path for path in after if after[path] != before.get(path)} == {"report.json"}
    pretrain(changed_run, FakeRuntime())
    assert store.read("report.json") == after["report.json"]


def test_a_copy_of_a_finished_run_that_is_evaluated_again_names_the_rows_that_it_does_not_send(
    new_run: Callable[..., Config], faces: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = new_run(steps=1)
    pretrain(config, FakeRuntime())
    copy = changed(config, url=str(shutil.copytree(config.url, tmp_path / "copy")), evaluation__url=faces)
    unsent.write_or_warn(open_store(copy.url), [row("metrics", 1, {"late": 2.0})], number=99)
    pretrain(copy, FakeRuntime())
    assert run_id(copy) != run_id(config)
    assert f"{copy.url} counts as a copy: up to 1 rows are left to MLflow run {run_id(config)}" in caplog.text
    assert curve(copy, "late") == []


def test_a_refused_evaluation_of_a_finished_run_changes_nothing_of_it(
    new_run: Callable[..., Config], faces: str
) -> None:
    pretrain(new_run(steps=1, evaluation__url=faces), FakeRuntime())
    wrong = new_run(steps=1, evaluation__url=faces, evaluation__classes={"joy": ["joy"]})
    store = open_store(wrong.url)
    before = {entry.path: store.read(entry.path) for entry in store.list()}
    with pytest.raises(ConfigError, match=r"evaluation\.classes lacks"):
        pretrain(wrong, FakeRuntime())
    assert {entry.path: store.read(entry.path) for entry in store.list()} == before
    assert status(wrong) == "FINISHED"


def test_labels_that_the_classes_lack_are_refused_before_a_start_is_counted(
    new_run: Callable[..., Config], faces: str
) -> None:
    wrong = new_run(evaluation__url=faces, evaluation__classes={"joy": ["joy"]})
    with pytest.raises(ConfigError, match=r"evaluation\.classes lacks"):
        pretrain(wrong, FakeRuntime())
    assert open_store(wrong.url).list() == []
