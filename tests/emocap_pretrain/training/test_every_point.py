"""Tests whole runs that are stopped after every step and resumed, on one to three ranks, with all state that they have.

A run is compared with one that was never stopped by the digests of all files of all its checkpoints, and by its curves.
The attempts of one test are made in the same processes of ranks, because starting these takes longer than an attempt.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_calls import torchrun
from emocap_shards.filter_file import Exclusion
from emocap_shards.store import open_store
from filter_files import filter_for
from gloo_ranks import on_gloo
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed
from run_jobs import Digests, Scale, digests_of, newest, train, train_step_by_step

from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.state import RunState

CHANGES = ("rotation", "colour", "greyscale", "blur", "resolution", "jpeg", "erasing")
SAVED_AT_EVERY_STEP: dict[str, Any] = {"steps": 7, "global_batch": 9, "checkpoint__every_steps": 1}
VALIDATED: dict[str, Any] = {
    "evaluation__tasks": ["held_out_loss"],
    "evaluation__every_checkpoints": 3,
    "checkpoint__keep_best": "held_out_loss/loss",
    "checkpoint__keep_last": 1,
}
# All state that a run can have beside its weights. A moving average and schedule-free AdamW exclude each other.
EVERYTHING: dict[str, Any] = {
    **SAVED_AT_EVERY_STEP,
    **VALIDATED,
    "evaluation__stop_after": 2,
    "evaluation__min_improvement": 0.001,
    "micro_batch": 3,
    "model__image__patch_dropout": 0.5,
    "data__balance": {"label": "emotion"},
    "data__augment": {name: {"probability": 0.7} for name in CHANGES},
    "data__captions": {"weights": [3, 1], "per_part": True, "drop": {"summary": 0.2, "local": 0.1, "each_local": 0.3}},
    "engine__precision": "fp16",
    "health__nonfinite": "skip",
}
NOT_VALIDATED: dict[str, Any] = {
    "evaluation__url": None,
    "evaluation__every_checkpoints": None,
    "evaluation__stop_after": None,
    "evaluation__min_improvement": 0.0,
    "checkpoint__keep_best": None,
}
AVERAGED = {"ema": {"decay": 0.7}, "engine__zero_stage": 2}
SCHEDULE_FREE = {
    "optimizer": {"name": "schedule_free", "lr": 3e-3, "warmup_steps": 2, "schedule": "constant"},
    "engine__zero_stage": 1,
}
# The gradients of these models overflow at a scale between 2^10 and 2^13. So a scale that grows after every update
# overflows between two updates, and one that begins at 2^12 overflows before the first update.
GROWING, FALLING = Scale(2.0**10, 1), Scale(2.0**12, 2)
NewRun = Callable[..., Config]
# A filter leaves out two of the 24 faces, one for its caption, and texts of three others.
EXCLUSIONS = (
    Exclusion("0000-00000003", 1),
    Exclusion("0000-00000010", 0, "global"),
    Exclusion("0000-00000004", 0, "summary"),
    *(Exclusion(f"0000-{number:08d}", 0, "local", sentence=0) for number in (5, 6)),
)


@pytest.fixture
def new_run(tiny_config: Config) -> NewRun:
    """Returns a function that makes the config of a run with a given name and settings."""
    return lambda name, **changes: changed(tiny_config, url=f"{tiny_config.url}-{name}", **changes)


@pytest.fixture
def filtered(faces: str, tmp_path: Path) -> dict[str, str]:
    """Returns settings of a filter, for training and for evaluation."""
    place = filter_for(faces, tmp_path / "filter.jsonl", *EXCLUSIONS)
    return {"data__filter": place, "evaluation__filter": place}


def report_of(config: Config) -> Report:
    report = RunFolder(open_store(config.url)).report(config.steps)
    assert report is not None
    return report


def curves(config: Config) -> dict[str, list[tuple[int, float]]]:
    """Returns the points of all metrics of a run that follow from its training, and not from the time that it took."""
    client, run = MlflowClient(config.tracking.uri), report_of(config).run_id
    timed = re.compile(r"(time|system|memory|straggler|data_wait).*|.*_per_s")
    names = [name for name in client.get_run(run).data.metrics if not timed.fullmatch(name)]
    assert {"loss", "learning_rate"} <= set(names)
    histories = {name: client.get_metric_history(run, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}


def require_equal_ends(run: Config, other: Config) -> None:
    assert curves(run) == curves(other)
    mine, theirs = report_of(run), report_of(other)
    assert (mine.step, mine.loss, mine.results) == (theirs.step, theirs.loss, theirs.results)
    assert (mine.weights, mine.other_weights) == (theirs.weights, theirs.other_weights)
    assert (mine.best, mine.early_end) == (theirs.best, theirs.early_end)


def kept(config: Config) -> list[int]:
    """Returns the steps of the checkpoints that exist, newest first."""
    return [each.step for each in committed(open_store(config.url))]


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("averaged", 2),
        ("schedule_free", 1),
        slow("averaged", 1),
        slow("averaged", 3),
        slow("schedule_free", 2),
        slow("schedule_free", 3),
    ],
)
def test_a_run_with_all_state_that_is_stopped_after_every_step_is_the_unbroken_run_to_the_bit(
    new_run: NewRun, filtered: dict[str, str], kind: str, ranks: int
) -> None:
    changes, scale = (AVERAGED, GROWING) if kind == "averaged" else (SCHEDULE_FREE, FALLING)
    unbroken, stopped = (new_run(name, **EVERYTHING, **filtered, **changes) for name in ("unbroken", "stopped"))
    wanted: Digests = on_gloo(ranks, train, unbroken, None, scale)[0]
    found, attempts = on_gloo(ranks, train_step_by_step, stopped, scale)[0]
    assert found == wanted
    assert attempts > len(wanted) > 3
    require_equal_ends(stopped, unbroken)
    curve = curves(unbroken)
    scales = [value for _, value in curve["loss_scale"]]
    assert {later / before for before, later in pairwise(scales)} >= {0.5, 2.0}
    assert curve["overflows"][-1][1] >= 1
    # A step whose update was left out has no checkpoint, so it is not evaluated.
    assert {step for step, _ in curve["held_out_loss/loss"]} in ({3, 6, 7}, {3, 7}, {6, 7})
    report = report_of(stopped)
    assert report.best is not None
    # An attempt that ends counts its last checkpoint as good, so it may delete one more than the unbroken run does.
    assert {kept(stopped)[0], report.best.step} <= set(kept(stopped)) <= set(kept(unbroken))
    assert (report.step, report.early_end, report.weights) == (7, None, "ema" if kind == "averaged" else kind)


@pytest.mark.parametrize("ranks", [1, slow(2), slow(3)])
def test_validation_and_its_early_end_change_no_bit_of_the_curve_also_with_a_stop_after_every_step(
    new_run: NewRun, ranks: int
) -> None:
    model = {**SAVED_AT_EVERY_STEP, "model__image__patch_dropout": 0.5}
    # No loss improves by so much, so the second evaluated checkpoint ends the run.
    early = {**VALIDATED, "evaluation__stop_after": 1, "evaluation__min_improvement": 1e6}
    plain = new_run("plain", **model, evaluation__url=None)
    unbroken, stopped = (new_run(name, **model, **early) for name in ("unbroken", "stopped"))
    assert plain.engine.zero_stage == 1
    wanted = on_gloo(ranks, train, plain)[0]
    validated = on_gloo(ranks, train, unbroken)[0]
    found, _ = on_gloo(ranks, train_step_by_step, stopped)[0]
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert found == validated == {step: wanted[step] for step in found}
    require_equal_ends(stopped, unbroken)
    assert kept(stopped) == kept(unbroken)
    assert curves(stopped)["loss"] == curves(plain)["loss"][:6]
    assert report_of(stopped).early_end


def train_on(ranks: Sequence[int], config: Config, scale: Scale | None) -> Digests:
    """Stops the run after every step, and makes step n on `ranks[n - 1]` ranks. Returns the digests of checkpoints."""
    store, saved, stop_after = open_store(config.url), Digests(), 1
    while not RunFolder(store).report(config.steps):
        before = newest(store)
        saved |= on_gloo(ranks[max(before, 0)], train, config, stop_after, scale)[0]
        stop_after = stop_after + 1 if newest(store) == before else 1
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_validation_changes_no_bit_of_a_run_that_resumes_every_step_on_another_number_of_ranks(
    new_run: NewRun, precision: str
) -> None:
    settings: dict[str, Any] = {**EVERYTHING, **AVERAGED, "engine__precision": precision}
    if precision == "fp32":  # The masks of dropout depend on the rank.
        settings["model__image__patch_dropout"] = 0.0
    validated, plain = new_run("validated", **settings), new_run("plain", **{**settings, **NOT_VALIDATED})
    ranks = (2, 3, 1, 3, 2, 1, 2)
    found = train_on(ranks, validated, GROWING)
    assert found == train_on(ranks, plain, GROWING)
    (curve, wanted) = (curves(each) for each in (validated, plain))
    assert {name: curve[name] for name in wanted} == wanted
    if precision == "fp32":
        unbroken = new_run("unbroken", **settings)
        on_gloo(1, train, unbroken)
        for name in ("loss", "gradient_norm"):
            values = [[value for _, value in each[name]] for each in (curve, curves(unbroken))]
            assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
def test_a_balanced_run_whose_rank_is_killed_under_torchrun_is_the_unbroken_run_to_the_bit(
    new_run: NewRun, tmp_path: Path
) -> None:
    program = Path(__file__).parent / "killed_training.py"
    settings: dict[str, Any] = {
        "steps": 8,
        "checkpoint__every_steps": 2,
        "cluster__ranks": 2,
        "data__balance": {"label": "emotion", "weights": "inverse"},
        "data__workers": 1,
    }
    unbroken, killed = (new_run(name, **settings) for name in ("unbroken", "killed"))
    for config, command in ((unbroken, ["-m", "emocap_pretrain.run"]), (killed, ["--max-restarts=1", program])):
        file = tmp_path / f"{Path(config.url).name}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        torchrun(*command, file)
    assert [RunState.read(open_store(each.url), last=9).newest.number for each in (unbroken, killed)] == [1, 2]
    require_equal_ends(killed, unbroken)
    found, wanted = (digests_of(committed(open_store(each.url))[0]) for each in (killed, unbroken))
    assert found == wanted
