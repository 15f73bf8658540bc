"""Tests runs without steps, and runs that evaluate checkpoints before their end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_trees import build, raf_db
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from pretrain_fakes import FakeRuntime, changed, stand_alone
from safetensors.torch import load_file, save_file
from torch import Tensor

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.config.model import ImageTowerConfig, ModelConfig, TextTowerConfig, starts_from_weights
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.evaluation import run_tasks
from emocap_pretrain.interop.restore import chosen, restore
from emocap_pretrain.interop.source import run_and_step
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.record import RunRecord
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import Score, TaskResult
from emocap_pretrain.run_folder.state import RunState
from emocap_pretrain.training import loop
from emocap_pretrain.training.conclusion import EvaluatedCheckpoint, prepare_tasks
from emocap_pretrain.training.loop import pretrain

STEPS = {"steps": 6, "checkpoint__every_steps": 1}
BEFORE, EVERY_FOURTH = {"evaluation__before_training": "always"}, {"evaluation__every_checkpoints": 4}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_alone()
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 120.0)  # A busy machine is slow.


@pytest.fixture
def new_run(tiny_config: Config, tmp_path: Path) -> Callable[..., Config]:
    """Returns a function that makes the config of a run with a given name and settings.

    By default the run has three steps. It is evaluated on its training data.
    """

    def make(name: str = "run", **changes: object) -> Config:
        values: dict[str, object] = {"url": str(tmp_path / name), "steps": 3}
        return changed(tiny_config, **(values | changes))

    return make


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which each evaluation that begins adds an entry."""
    found: list[int] = []
    evaluate = run_tasks.evaluate

    def counted(*arguments: Any, **others: Any) -> Any:
        found.append(1)
        return evaluate(*arguments, **others)

    monkeypatch.setattr(run_tasks, "evaluate", counted)
    return found


def report_of(config: Config) -> Report:
    report = RunFolder(open_store(config.url)).report(config.steps)
    assert report is not None
    return report


def saved(config: Config) -> list[Checkpoint]:
    return committed(open_store(config.url))


def weights(config: Config) -> dict[str, Tensor]:
    with downloaded(open_store(config.url), saved(config)[0], WEIGHTS.__eq__) as folder:
        return load_file(folder / WEIGHTS)


def curve(config: Config, metric: str) -> list[tuple[int, float]]:
    history = MlflowClient(config.tracking.uri).get_metric_history(report_of(config).run_id, metric)
    return sorted((point.step, point.value) for point in history)


def require_equal_training(config: Config, other: Config) -> None:
    assert curve(config, "loss") == curve(other, "loss")
    theirs = weights(other)
    for name, weight in weights(config).items():
        assert weight.equal(theirs[name]), name


class Killed(BaseException):
    """Ends an attempt almost like a signal: no `except Exception` of the product catches this exception.

    The monitor still records the failure.
    """


def kill(*_: object, **_others: object) -> None:
    raise Killed


def test_a_run_without_steps_evaluates_its_first_weights_and_is_done(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    config, runtime = new_run(steps=0), FakeRuntime()
    pretrain(config, runtime)
    report = report_of(config)
    assert (report.step, report.samples_per_s, report.loss, report.before_training) == (0, 0.0, None, ())
    assert [result.task for result in report.results] == ["zero_shot"]
    assert [each.step for each in saved(config)] == [0]
    assert curve(config, "zero_shot/uar") == [(0, report.results[0].metrics()["zero_shot/uar"])]
    assert MlflowClient(config.tracking.uri).get_run(report.run_id).info.status == "FINISHED"
    assert RunRecord(open_store(config.url), 0).done()
    assert RunRecord(open_store(config.url), None).done()
    pretrain(config, runtime)
    assert (runtime.beats, len(evaluations)) == ([], 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "sgd", "lr": 0.1}, "engine__zero_stage": 2},
        {"optimizer": {"name": "adafactor", "lr": 0.01}, "engine__zero_stage": 0},
        {"engine__zero_stage": 3},
    ],
    ids=["adamw", "sgd", "adafactor", "zero-3"],
)
def test_a_run_without_steps_that_gets_steps_trains_like_a_run_that_had_them_from_the_start(
    new_run: Callable[..., Config], changes: dict[str, object]
) -> None:
    unbroken = new_run("unbroken", **changes)
    pretrain(unbroken, FakeRuntime())
    pretrain(new_run(steps=0, **changes), FakeRuntime())
    runtime, config = FakeRuntime(), new_run(**changes)
    pretrain(config, runtime)
    assert runtime.beats == [1, 2, 3]
    require_equal_training(config, unbroken)


def test_a_run_without_steps_and_without_an_evaluation_saves_its_first_weights(new_run: Callable[..., Config]) -> None:
    config = new_run(steps=0, evaluation__url=None)
    pretrain(config, FakeRuntime())
    assert [each.step for each in saved(config)] == [0]
    assert report_of(config).results == ()


def test_a_request_to_stop_does_not_keep_a_run_without_steps_from_its_evaluation(
    new_run: Callable[..., Config],
) -> None:
    config = new_run(steps=0)
    pretrain(config, FakeRuntime(stop_after=0))
    assert report_of(config).results


@pytest.mark.parametrize("changes", [{}, {"engine__zero_stage": 3, "data__workers": 1}], ids=["zero-1", "zero-3"])
def test_an_evaluation_before_training_changes_nothing_of_the_training(
    new_run: Callable[..., Config], changes: dict[str, object], evaluations: list[int]
) -> None:
    model: dict[str, object] = {"model__image__patch_dropout": 0.5, **changes}
    plain, config = new_run("plain", **model), new_run(evaluation__before_training="always", **model)
    pretrain(plain, FakeRuntime())
    pretrain(config, FakeRuntime())
    require_equal_training(config, plain)
    before, after = report_of(config).before_training[0].metrics(), report_of(config).results[0].metrics()
    assert after == report_of(plain).results[0].metrics()
    assert curve(config, "zero_shot/uar") == [(0, before["zero_shot/uar"]), (3, after["zero_shot/uar"])]
    assert report_of(plain).before_training == ()
    assert len(evaluations) == 3
    names = MlflowClient(config.tracking.uri).list_artifacts(report_of(config).run_id, "pictures/zero_shot")
    assert {Path(each.path).name for each in names} == {"confusion.png", "confusion_before_training.png"}


def test_a_run_without_steps_has_the_results_that_the_same_run_has_before_its_training(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    alone = new_run("alone", steps=0)
    pretrain(alone, FakeRuntime())
    config = new_run("alone", evaluation__before_training="always")
    wanted = report_of(alone).results
    evaluations.clear()
    pretrain(config, FakeRuntime())
    assert report_of(config).before_training == wanted
    assert len(evaluations) == 1, "the results of step 0 were stored"


def test_only_a_run_that_starts_from_weights_is_evaluated_before_training_by_default(
    new_run: Callable[..., Config], tmp_path: Path
) -> None:
    text = TextTowerConfig(pretrained="towers/minilm")
    assert not starts_from_weights(ModelConfig())
    assert starts_from_weights(ModelConfig(text=text))
    assert starts_from_weights(ModelConfig(image=ImageTowerConfig(pretrained="hub")))
    config = new_run(model__image__pretrained=written_tower(new_run(), tmp_path / "tower.safetensors"))
    assert config.evaluates_before_training
    assert not new_run(evaluation__before_training="auto").evaluates_before_training
    assert not changed(config, evaluation__before_training="never").evaluates_before_training
    assert not changed(config, evaluation__url=None).evaluates_before_training
    pretrain(config, FakeRuntime())
    assert report_of(config).before_training


def written_tower(config: Config, path: Path) -> str:
    """Writes a file of random weights for the image tower of the config, and returns its path."""
    torch.manual_seed(7)
    tower = TimmImageTower(config.model.image)
    save_file(tower.backbone.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("place", ["evaluate", "write"])
@pytest.mark.parametrize(("changes", "step"), [(BEFORE, 0), (EVERY_FOURTH, 4)], ids=["before training", "step 4"])
def test_a_kill_during_or_after_the_evaluation_of_a_checkpoint_repeats_at_most_the_evaluation(
    new_run: Callable[..., Config],
    changes: dict[str, object],
    step: int,
    place: str,
    evaluations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, config = new_run("plain", **STEPS), new_run(**STEPS, **changes)
    pretrain(plain, FakeRuntime())
    with monkeypatch.context() as killing:
        if place == "evaluate":
            killing.setattr(run_tasks, "evaluate", kill)
        else:  # The results are stored, and nothing of them is tracked.
            killing.setattr("emocap_pretrain.training.interim_evaluation.track", kill)
        with pytest.raises(Killed):
            pretrain(config, FakeRuntime())
    evaluations.clear()
    assert saved(config)[0].step == step
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert runtime.beats == list(range(step + 1, 7))
    assert len(evaluations) == (2 if place == "evaluate" else 1)
    require_equal_training(config, plain)
    assert [each for each, _ in curve(config, "zero_shot/uar")] == [step, 6]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_run_reads_its_results_from_before_training_unless_they_are_damaged(
    new_run: Callable[..., Config], evaluations: list[int], caplog: pytest.LogCaptureFixture, damaged: bool
) -> None:
    config = new_run(evaluation__before_training="always")
    # The run asks before and after the evaluation, and then after each step.
    pretrain(config, FakeRuntime(stop_after=3))
    assert [each.step for each in saved(config)] == [2, 0]
    if damaged:
        open_store(config.url).put("before_training.json", b'{"results": [')
    evaluations.clear()
    pretrain(config, FakeRuntime())
    assert len(evaluations) == 1 + damaged
    assert ("before_training.json cannot be read (it is not JSON)" in caplog.text) == damaged
    assert report_of(config).before_training


def test_a_request_to_stop_before_the_first_step_is_served_before_the_evaluation(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    config = new_run(evaluation__before_training="always")
    pretrain(config, FakeRuntime(stop_after=0))
    assert (evaluations, saved(config)) == ([], [])
    pretrain(config, FakeRuntime(stop_after=1))
    assert (len(evaluations), [each.step for each in saved(config)]) == (1, [0])


def test_other_evaluation_settings_evaluate_step_0_again_as_long_as_its_checkpoint_exists(
    new_run: Callable[..., Config], evaluations: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = new_run(evaluation__before_training="always")
    pretrain(config, FakeRuntime())
    first = report_of(config).before_training
    turned = changed(config, evaluation__templates=["someone who shows {}."])
    evaluations.clear()
    pretrain(turned, FakeRuntime())
    assert len(evaluations) == 2
    assert report_of(turned).before_training != first
    shutil.rmtree(Path(config.url, "checkpoints", "step-00000000"))
    caplog.set_level("INFO")
    pretrain(config, FakeRuntime())
    assert report_of(config).before_training == ()
    assert "the run has no checkpoint of step 0" in caplog.text


@pytest.mark.parametrize(
    "changes", [{}, {"engine__zero_stage": 3, "ema": {"decay": 0.5}}], ids=["zero-1", "zero-3-ema"]
)
def test_an_evaluation_of_every_second_checkpoint_changes_nothing_of_the_training(
    new_run: Callable[..., Config], changes: dict[str, object], evaluations: list[int]
) -> None:
    model: dict[str, object] = {"model__image__patch_dropout": 0.5, **STEPS, **changes}
    plain, config = new_run("plain", **model), new_run(evaluation__every_checkpoints=2, **model)
    pretrain(plain, FakeRuntime())
    evaluations.clear()
    pretrain(config, FakeRuntime())
    require_equal_training(config, plain)
    # With a moving average, the end of the run evaluates two kinds of weights.
    assert len(evaluations) == (3 if not changes else 4)
    assert report_of(config).results == report_of(plain).results
    assert [step for step, _ in curve(config, "zero_shot/uar")] == [2, 4, 6]
    files = {file.path for file in open_store(config.url).list("evaluations")}
    assert files == {"evaluations/step-00000002.json", "evaluations/step-00000004.json"}


def test_benchmarks_are_scored_at_every_second_checkpoint_beside_the_dataset(
    new_run: Callable[..., Config], tmp_path: Path
) -> None:
    copy, units = raf_db(tmp_path / "raf", 2), catalogue.card("faba_au")
    build(units, units.layouts[0], tmp_path / "units")
    copies = {"raf_db": str(copy.root), "faba_au": str(tmp_path / "units")}
    steps: dict[str, object] = {"steps": 4, "checkpoint__every_steps": 1}
    plain = new_run("plain", **steps)
    config = new_run(evaluation__every_checkpoints=2, evaluation__benchmarks=copies, **steps)
    pretrain(plain, FakeRuntime())
    pretrain(config, FakeRuntime())
    require_equal_training(config, plain)
    # The default task needs classes, so the benchmark of action units is left out.
    results = report_of(config).results
    assert [(each.benchmark, each.task) for each in results] == [("", "zero_shot"), ("raf_db", "zero_shot")]
    assert results[:1] == report_of(plain).results
    assert results[1].domain is not None
    assert [step for step, _ in curve(config, "raf_db/zero_shot/uar")] == [2, 4]
    pictures = {
        each.path for each in MlflowClient(config.tracking.uri).list_artifacts(report_of(config).run_id, "pictures")
    }
    assert {"pictures/zero_shot", "pictures/raf_db"} <= pictures
    page = MlflowClient(config.tracking.uri).download_artifacts(report_of(config).run_id, "report.html")
    text = Path(page).read_text(encoding="utf-8")
    assert "RAF-DB, basic expressions" in text
    assert "data:image" not in text
    with pytest.raises(ConfigError, match="is not a copy of RAF-DB"):
        prepare_tasks(
            changed(config, url=str(tmp_path / "new"), evaluation__benchmarks={"raf_db": str(tmp_path)}),
            open_store(str(tmp_path / "new")),
        )


def test_a_request_to_stop_is_served_before_an_evaluation_which_the_next_attempt_makes_up(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    config = new_run(evaluation__every_checkpoints=2, **STEPS)
    pretrain(config, FakeRuntime(stop_after=2))
    assert (saved(config)[0].step, evaluations) == (2, [])
    pretrain(config, FakeRuntime())
    assert len(evaluations) == 3


def test_results_of_a_checkpoint_that_was_trained_again_are_not_taken_for_its_own(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    config = new_run(evaluation__every_checkpoints=2, **STEPS)
    pretrain(config, FakeRuntime(stop_after=3))
    (newest, evaluated, *_), store = saved(config), open_store(config.url)
    assert (newest.step, evaluated.step, len(evaluations)) == (3, 2, 1)
    file = "evaluations/step-00000002.json"
    store.put(file, store.read(file).replace(evaluated.digest.encode(), b"0" * 64))
    shutil.rmtree(Path(config.url, "checkpoints", "step-00000003"))  # The next attempt begins at step 2.
    pretrain(config, FakeRuntime())
    assert len(evaluations) == 1 + 3


# The losses that the scripted evaluations below find at each step. Step 2 is the best one, and step 3 is as good.
LOSSES = {1: 0.5, 2: 0.2, 3: 0.2, 4: 0.4, 5: 0.3, 6: 0.25}
BY_LOSS: dict[str, object] = {
    **STEPS,
    "checkpoint__keep_last": 1,
    "checkpoint__keep_best": "held_out_loss/loss",
    "evaluation__tasks": ["held_out_loss"],
    "evaluation__every_checkpoints": 1,
}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces each evaluation by the loss of its step in `LOSSES`. Returns a list with the step of each evaluation."""
    found: list[int] = []

    def evaluate(
        config: Config, *_: object, step: int | None = None, known: object = None, **_others: object
    ) -> EvaluatedCheckpoint:
        at = saved(config)[0].step if step is None else step
        found.extend([at] if known is None else [])
        score = Score("loss", "held-out loss", LOSSES[at], is_share=False, lower_is_better=True)
        return EvaluatedCheckpoint("raw", (TaskResult("held_out_loss", 8, (score,), url="faces"),))

    for module in ("interim_evaluation", "conclusion"):
        monkeypatch.setattr(f"emocap_pretrain.training.{module}.evaluate_checkpoint", evaluate)
    return found


def test_the_best_checkpoint_is_kept_named_in_the_report_and_restored_by_this_word(
    new_run: Callable[..., Config], scripted: list[int]
) -> None:
    plain, config = new_run("plain", **STEPS, evaluation__url=None), new_run(**BY_LOSS)
    pretrain(plain, FakeRuntime())
    scripted.clear()
    pretrain(config, FakeRuntime())
    require_equal_training(config, plain)
    assert scripted == [1, 2, 3, 4, 5, 6]
    assert [each.step for each in saved(config)] == [6, 2]
    report = report_of(config)
    assert report.best is not None
    assert (report.best.step, report.best.score.value, report.early_end) == (2, 0.2, None)
    assert "| best checkpoint | step 2: held-out loss 0.2 |" in report.markdown()
    assert f"emocap evaluate {config.url} --step 2, or run:{config.url}@2" in report.markdown()
    assert restore(config.url, step="best").step == 2
    assert run_and_step(f"run:{config.url}@best") == (config.url, "best")
    assert chosen(open_store(config.url), config.url, None).step == 6
    with pytest.raises(CheckpointError, match=r"its settings have no checkpoint\.keep_best; steps: 4, 5, 6\."):
        chosen(open_store(plain.url), plain.url, "best")


def test_a_run_that_is_stopped_after_every_step_keeps_the_same_best_checkpoint(
    new_run: Callable[..., Config], scripted: list[int]
) -> None:
    config = new_run(**BY_LOSS)
    # Each attempt evaluates the checkpoint of the one before it, and then makes one step; the first one makes two. It
    # evaluates step 1, which is the best one until step 2 is evaluated.
    for newest in (2, 3, 4, 5):
        pretrain(config, FakeRuntime(stop_after=2))
        assert [each.step for each in saved(config)] == ([2, 1] if newest == 2 else [newest, 2])
    assert RunFolder(open_store(config.url)).report(6) is None
    pretrain(config, FakeRuntime())
    assert [each.step for each in saved(config)] == [6, 2]
    assert scripted == [1, 2, 3, 4, 5, 6]
    best = report_of(config).best
    assert best is not None
    assert best.step == 2


@pytest.mark.parametrize("stage", [0, 3])
def test_validation_and_stops_after_every_step_change_no_bit_of_the_training(
    new_run: Callable[..., Config], stage: int
) -> None:
    model: dict[str, object] = {"model__image__patch_dropout": 0.5, "engine__zero_stage": stage, "steps": 6}
    plain = new_run("plain", **model, evaluation__url=None)
    config = new_run(**{**model, **BY_LOSS, "checkpoint__every_steps": 3})
    pretrain(plain, FakeRuntime())
    # The fourth attempt asks a second time after it has evaluated the checkpoint of step 3.
    for stop_after in (1, 1, 1, 2, 1, 1):
        pretrain(config, FakeRuntime(stop_after=stop_after))
    require_equal_training(config, plain)
    assert [step for step, _ in curve(config, "held_out_loss/loss")] == [3, 6]


def test_a_run_whose_score_no_longer_improves_ends_early_and_can_be_trained_further(
    new_run: Callable[..., Config], scripted: list[int]
) -> None:
    plain, config = new_run("plain", **STEPS, evaluation__url=None), new_run(**BY_LOSS, evaluation__stop_after=2)
    pretrain(plain, FakeRuntime())
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert runtime.beats == [1, 2, 3, 4]
    report, store = report_of(config), open_store(config.url)
    assert (report.step, report.best and report.best.step, [each.step for each in saved(config)]) == (4, 2, [4, 2])
    assert "| ended early | before step 6: held_out_loss/loss has not improved since step 2" in report.markdown()
    assert MlflowClient(config.tracking.uri).get_run(report.run_id).info.status == "FINISHED"
    assert RunState.read(store, last=1).newest.how == "done"
    assert RunRecord(store, 6).done()
    assert scripted == [6, 1, 2, 3, 4]  # The first one is that of `plain`.
    # It is finished: the same command neither trains nor evaluates it again.
    scripted.clear()
    pretrain(config, runtime)
    assert (runtime.beats, scripted) == ([1, 2, 3, 4], [])
    # Other evaluation settings evaluate it again, and do not train it.
    pretrain(changed(config, evaluation__label="mood"), runtime)
    assert (runtime.beats, scripted, report_of(config).early_end) == ([1, 2, 3, 4], [4], report.early_end)
    # More patience trains it further, from where it ended.
    patient = changed(config, evaluation__stop_after=3)
    pretrain(patient, runtime)
    assert runtime.beats == [1, 2, 3, 4, 5]
    assert report_of(patient).step == 5
    endless = changed(config, evaluation__stop_after=None)
    pretrain(endless, runtime)
    assert runtime.beats == [1, 2, 3, 4, 5, 6]
    assert (report_of(endless).step, report_of(endless).early_end) == (6, None)
    require_equal_training(endless, plain)


@pytest.mark.parametrize("place", ["early_end_at", "conclude"])
def test_a_kill_between_the_last_evaluation_and_the_end_repeats_no_step(
    new_run: Callable[..., Config], scripted: list[int], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = new_run(**BY_LOSS, evaluation__stop_after=1)
    original: Any = getattr(loop, place)

    def killing(*arguments: Any, **others: Any) -> Any:
        if scripted[-1] == 3:  # The first checkpoint that does not improve the loss.
            raise Killed
        return original(*arguments, **others)

    with monkeypatch.context() as patched:
        patched.setattr(loop, place, killing)
        with pytest.raises(Killed):
            pretrain(config, FakeRuntime())
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert runtime.beats == []
    assert (report_of(config).step, scripted) == (3, [1, 2, 3, 3])
    assert report_of(config).early_end


def test_a_failure_while_a_run_that_ended_early_is_trained_further_leaves_a_run_that_is_not_done(
    new_run: Callable[..., Config], scripted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = new_run(**BY_LOSS, evaluation__stop_after=1)
    pretrain(config, FakeRuntime())
    with monkeypatch.context() as patched:
        patched.setattr(loop, "open_session", kill)
        with pytest.raises(Killed):
            pretrain(changed(config, evaluation__stop_after=None), FakeRuntime())
    assert not RunRecord(open_store(config.url), 6).done()
    # With the old patience it ends where it ended before.
    runtime = FakeRuntime()
    pretrain(config, runtime)
    assert (runtime.beats, report_of(config).step, scripted) == ([], 3, [1, 2, 3, 3])


def test_the_last_checkpoint_of_a_run_that_ends_early_is_evaluated_once(
    new_run: Callable[..., Config], evaluations: list[int]
) -> None:
    # No score can improve by more than 1, so the run ends at the second evaluated checkpoint.
    config = new_run(
        **STEPS,
        checkpoint__keep_best="zero_shot/uar",
        evaluation__tasks=["zero_shot", "retrieval"],
        evaluation__every_checkpoints=1,
        evaluation__stop_after=1,
        evaluation__min_improvement=1.0,
    )
    pretrain(config, FakeRuntime())
    report = report_of(config)
    assert (report.step, len(evaluations)) == (2, 2)
    assert curve(config, "zero_shot/uar")[-1] == (2, report.results[0].metrics()["zero_shot/uar"])
    # The results are those of the evaluation itself: stored ones have no examples of queries.
    page = MlflowClient(config.tracking.uri).download_artifacts(report.run_id, "report.html")
    assert "right answer at place" in Path(page).read_text(encoding="utf-8")
