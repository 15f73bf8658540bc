"""Tests tasks on several ranks over gloo: equal scores to one rank, ranks without samples, ranks that fail."""

from dataclasses import replace
from pathlib import Path

import pytest
from emocap_shards.store import open_store
from evaluation_jobs import Numbered, collect, evaluate, evaluation_error, train
from gloo_ranks import on_gloo
from pretrain_fakes import changed, finished

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report

ALL = ["zero_shot", "retrieval", "held_out_loss"]
ALONE = RankGroup(Rank(), "cpu", None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Returns the config of a run that evaluates 24 faces in batches of seven; the fourth batch has three faces.

    The loss compares ten faces with each other.
    """
    return changed(tiny_config, evaluation__tasks=ALL, evaluation__batch=7, evaluation__loss_batch=10)


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_any_number_of_ranks_gives_the_results_of_one_to_the_bit(config: Config, ranks: int) -> None:
    """Two of six ranks have no batch, because there are four batches."""
    wanted = evaluate(ALONE, config)
    assert [result.task for result in wanted] == ALL
    assert [result.samples for result in wanted] == [24, 24, 20]
    assert on_gloo(ranks, evaluate, config) == [wanted] * ranks


@pytest.mark.parametrize("samples", [1, 2, 7, 9])
def test_the_batches_arrive_at_rank_0_in_the_order_of_the_data(samples: int) -> None:
    """Only rank 0 has a batch if there are one or two samples."""
    batches = [[str(number) for number in range(at, min(at + 2, samples))] for at in range(0, samples, 2)]
    assert on_gloo(3, collect, Numbered(samples)) == [(batches, ""), (None, ""), (None, "")]


def test_a_rank_that_fails_ends_all_ranks_with_its_message_and_none_waits() -> None:
    told = (None, "LostContact: rank 1 failed: the data do not fit")
    assert on_gloo(3, collect, Numbered(9, wrong=2)) == [told, (None, "DataError: the data do not fit"), told]
    wrong = (None, "ConfigError: the data do not fit")
    assert on_gloo(2, collect, Numbered(9, wrong=2, error=ConfigError)) == [wrong, wrong]


def test_a_task_that_fails_on_rank_0_ends_all_ranks(config: Config) -> None:
    lacking = changed(config, evaluation__label="mood")
    where = f"no sample of {config.evaluation.url} has this label; its samples have the labels emotion, "
    for told in on_gloo(2, evaluation_error, lacking):
        assert told.startswith(f"ConfigError: evaluation.label=mood: {where}")


def report(config: Config) -> Report:
    found = RunFolder(open_store(config.url)).report(config.steps)
    assert found is not None
    return found


def test_a_finished_run_is_evaluated_again_on_two_ranks_with_the_results_of_one(
    config: Config,
) -> None:
    trained = finished(changed(config, steps=2))
    first = report(trained)
    assert [result.task for result in first.results] == ALL
    turned = changed(trained, evaluation__tasks=ALL[::-1])
    on_gloo(2, train, turned)
    assert report(turned) == replace(first, results=first.results[::-1], evaluation=turned.stored()["evaluation"])
    # Nothing is left to do: the report stays as it is.
    before = open_store(turned.url).read("report.json")
    on_gloo(2, train, turned)
    assert open_store(turned.url).read("report.json") == before


def test_two_ranks_with_divided_parameters_evaluate_their_first_weights_as_one_rank_does(
    config: Config, tmp_path: Path
) -> None:
    both = changed(config, steps=1, engine__zero_stage=3, evaluation__before_training="always")
    on_gloo(2, train, both)
    alone = changed(both, url=str(tmp_path / "alone"), steps=0)
    on_gloo(1, train, alone)
    assert report(both).before_training == report(alone).results


def test_two_ranks_end_early_together_and_one_rank_trains_the_run_further(config: Config) -> None:
    tasks: dict[str, object] = {"evaluation__tasks": ["held_out_loss"], "checkpoint__every_steps": 1}
    best: dict[str, object] = {"checkpoint__keep_best": "held_out_loss/loss", "evaluation__every_checkpoints": 1}
    # No loss improves by so much, so the second evaluated checkpoint ends the run.
    early = changed(config, **tasks, **best, evaluation__stop_after=1, evaluation__min_improvement=1e6)
    on_gloo(2, train, early)
    assert (report(early).step, report(early).ranks) == (2, 2)
    finished(changed(early, evaluation__stop_after=None))
    assert (report(early).step, report(early).ranks, report(early).early_end) == (4, 1, None)
