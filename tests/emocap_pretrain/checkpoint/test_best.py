"""Tests which checkpoint is the best one by stored results, and that retention keeps it."""

from typing import Any

import pytest
from checkpoint_cases import saved, steps
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.best import Criterion, best_checkpoint, file_of, history, steps_to_keep, write_results
from emocap_pretrain.checkpoint.layout import delete_checkpoint, manifest_of
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.run_folder.results import Score, TaskResult

SETTINGS = EvaluationConfig(url="faces").model_dump(mode="json")
OTHER = EvaluationConfig(url="other").model_dump(mode="json")
BY_LOSS = Criterion("task/loss", SETTINGS)


def evaluated(store: Store, values: dict[int, float], settings: dict[str, Any] = SETTINGS) -> None:
    """Stores the loss of the checkpoint of each step, as an evaluation during training does."""
    for step, value in values.items():
        score = Score("loss", "loss", value, is_share=False, lower_is_better=True)
        write_results(store, step, (TaskResult("task", 8, (score,)),), settings)


def best_step(store: Store, criterion: Criterion = BY_LOSS) -> int | None:
    best = best_checkpoint(store, criterion, steps(store))
    return best and best.step


def test_retention_keeps_the_best_evaluated_checkpoint_and_the_earlier_of_equal_ones(store: Store) -> None:
    saved(store, 2, 4, 6, 8, 10)
    evaluated(store, {2: 0.9, 4: 0.5, 6: 0.5, 8: 0.7})
    assert best_step(store) == 4
    assert retain(store, Retention(1, keep_best=BY_LOSS)) == [8, 6, 2]
    assert steps(store) == [10, 4]
    saved(store, 12)
    evaluated(store, {12: 0.1})
    assert retain(store, Retention(1, keep_best=BY_LOSS)) == [10, 4]
    assert steps(store) == [12]


@pytest.mark.parametrize("criterion", [None, Criterion("task/other", SETTINGS), Criterion("task/loss", OTHER)])
def test_without_results_of_the_score_and_the_settings_no_checkpoint_is_kept_for_them(
    store: Store, criterion: Criterion | None
) -> None:
    saved(store, 2, 4)
    evaluated(store, {2: 0.5})
    assert retain(store, Retention(1, keep_best=criterion)) == [2]


def test_results_of_an_earlier_checkpoint_of_the_step_or_of_other_settings_do_not_count(store: Store) -> None:
    saved(store, 2, 4, 6)
    evaluated(store, {2: 0.1, 4: 0.5, 6: 0.6})
    delete_checkpoint(store, 2)
    saved(store, 2)  # The step was trained again.
    assert best_step(store) == 4
    evaluated(store, {2: 0.1})
    assert best_step(store) == 2
    evaluated(store, {2: 0.1}, OTHER)
    assert best_step(store) == 4
    # How large the batches of the evaluation are decides nothing.
    evaluated(store, {2: 0.1}, SETTINGS | {"batch": 3})
    assert best_step(store) == 2


@pytest.mark.parametrize("path", [file_of(4), manifest_of(4)])
def test_a_checkpoint_whose_results_or_manifest_cannot_be_read_is_kept_beside_the_best_one(
    store: Store, path: str
) -> None:
    saved(store, 2, 4, 6)
    evaluated(store, {2: 0.5, 4: 0.9})
    store.put(path, b"{")
    assert steps_to_keep(store, BY_LOSS, [2, 4, 6]) == {2, 4}


def test_the_history_has_deleted_checkpoints_and_no_later_steps(store: Store) -> None:
    saved(store, 0, 2, 4, 6)
    evaluated(store, {0: 3.0, 2: 0.5, 4: 0.9, 6: 0.7})
    delete_checkpoint(store, 2)
    found = [(each.step, each.score.value) for each in history(store, BY_LOSS, 4)]
    assert found == [(0, 3.0), (2, 0.5), (4, 0.9)]
    assert history(store, Criterion("task/loss", OTHER), 6) == []


def test_the_criterion_in_a_checkpoint_is_that_of_its_settings_unless_a_name_is_given() -> None:
    def of(state: dict[str, Any], name: str | None = None) -> Criterion | None:
        return Criterion.of_checkpoint(Checkpoint(1, "a", (), {"config": state}), name)

    stored = {"checkpoint": {"keep_best": "task/loss"}, "evaluation": {"url": SETTINGS["url"]}}
    assert of(stored) == BY_LOSS
    assert of(stored, "task/uar") == Criterion("task/uar", SETTINGS)
    assert of({"checkpoint": {}, "evaluation": {}}) is None
    assert of({"checkpoint": {"keep_best": 3}, "evaluation": {}}) is None
    assert of({"checkpoint": 3}, "task/loss") is None
    assert Criterion.of_checkpoint(None) is None
