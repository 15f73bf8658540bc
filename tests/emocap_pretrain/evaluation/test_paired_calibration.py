"""Tests the calibration errors of two models, and for how often they differ by chance."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torchmetrics.functional.classification import multiclass_calibration_error

from emocap_pretrain.evaluation import calibration_error, paired
from emocap_pretrain.evaluation.calibration_error import debiased_errors, errors, probabilities
from emocap_pretrain.evaluation.intervals import draws
from emocap_pretrain.evaluation.outcome_scores import metrics_of, with_intervals
from emocap_pretrain.evaluation.paired import differences
from emocap_pretrain.evaluation.pairing import mismatches
from emocap_pretrain.run_folder.outcomes import ProbabilityOutcomes
from emocap_pretrain.run_folder.results import Score, TaskResult
from emocap_pretrain.run_folder.samples import Samples

Confidences = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def unsure(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns confidences and the probabilities of being right, which are equal: the model is calibrated."""
    found = random.uniform(0.4, 0.95, count)
    return found, found


def sure(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = random.uniform(0.9, 1.0, count)
    return found, found


def too_sure(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = random.uniform(0.5, 0.95, count)
    return found, found - 0.08


def too_unsure(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = random.uniform(0.45, 0.9, count)
    return found, found + 0.08


def outcomes(of: Confidences, random: np.random.Generator, ease: np.ndarray) -> ProbabilityOutcomes:
    """Returns the outcomes of a model that is right on easy samples rather than on others. `ease` is normal."""
    confidences, chances = of(random, len(ease))
    is_right = ndtr(0.5 * ease + np.sqrt(0.75) * random.normal(size=len(ease))) < chances
    losses = -np.log(np.where(is_right, confidences, (1 - confidences) / 2))
    predicted = tuple(np.where(is_right, 0, 1).tolist())
    rows, truth = tuple(range(len(ease))), (0,) * len(ease)
    return ProbabilityOutcomes(
        rows, ("a", "b", "c"), truth, predicted, tuple(confidences.tolist()), tuple(losses.tolist())
    )


def samples(count: int, groups: tuple[str, ...] = ()) -> Samples:
    return Samples(tuple(map(str, range(count))), groups)


def test_the_error_of_weighted_samples_is_that_of_torchmetrics_on_repeated_samples() -> None:
    random = np.random.default_rng(0)
    sure_of, is_right = random.uniform(0.51, 0.99, 60), random.random(60) < 0.7
    weights = next(draws((None,) * 60, 3))
    found = errors(sure_of, is_right)(weights)
    for value, each in zip(found, weights, strict=True):
        again = np.repeat(np.arange(60), each.astype(int))
        shares = torch.from_numpy(np.stack([sure_of, 1 - sure_of], axis=1)[again])
        labels = torch.from_numpy((~is_right[again]).astype(np.int64))
        wanted = multiclass_calibration_error(shares, labels, num_classes=2, n_bins=15, norm="l1")
        assert value == pytest.approx(float(wanted), abs=1e-6)  # torchmetrics computes in float32.


def test_the_debiased_error_of_a_calibrated_model_is_0_on_average_and_that_of_another_one_its_error() -> None:
    random = np.random.default_rng(1)
    # The gap of a bin of 20 samples has a random error of about 10 %, and that of 400 samples 2 %.
    for of, count, wanted in ((unsure, 300, 0.0), (sure, 300, 0.0), (too_sure, 6000, 0.08)):
        everything, found = np.ones((1, count)), list[tuple[float, float]]()
        for _ in range(200):
            confidences, chances = of(random, count)
            is_right = random.random(count) < chances
            plain, debiased = errors(confidences, is_right), debiased_errors(confidences, is_right, (None,) * count)
            found.append((float(plain(everything)[0]), float(debiased(everything)[0])))
        plain, debiased = np.mean(found, axis=0)
        assert debiased == pytest.approx(wanted, abs=0.004)
        assert plain > 0.01 + debiased or wanted


def test_gaps_of_one_person_are_added_before_they_are_squared() -> None:
    confidences, is_right = np.full(40, 0.7), np.arange(40) % 4 > 0
    everything = np.ones((1, 40))
    alone = debiased_errors(confidences, is_right, (None,) * 40)(everything)
    # In this order every person is as often right as all of them, so that nothing is left to chance.
    even = debiased_errors(confidences, is_right, [f"{row // 4}" for row in range(40)])(everything)
    assert alone < 0 < even
    assert even == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("one", "other", "plain_differs"),
    [(unsure, unsure, False), (unsure, sure, True), (too_sure, too_unsure, False)],
    ids=["equal", "one is surer", "too sure and too unsure"],
)
def test_models_with_equal_errors_differ_by_chance_as_often_as_the_level_of_the_test(
    one: Confidences, other: Confidences, plain_differs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of 5 % of 200 trials has a standard error of 1.5 %. A bootstrap of the plain error fails."""
    monkeypatch.setattr(paired, "DRAWS", 200)
    random, of, rejected, plain = np.random.default_rng(2), samples(300), 0, 0
    weights = next(draws((None,) * 300, 200))
    for _ in range(200):
        ease = random.normal(size=300)
        ours, theirs = outcomes(one, random, ease), outcomes(other, random, ease)
        rejected += differences((ours, of), (theirs, of), ["ece"])["ece"].p < 0.05
        drawn = metrics_of(theirs)["ece"](weights) - metrics_of(ours)["ece"](weights)
        plain += min((drawn <= 0).mean(), (drawn >= 0).mean()) < 0.025
    assert rejected / 200 < 0.08
    assert (plain / 200 > 0.8) == plain_differs


def test_calibration_errors_and_log_losses_are_compared_on_the_same_samples() -> None:
    random, of = np.random.default_rng(3), samples(3000)
    ease = random.normal(size=3000)
    good, poor = (
        outcomes(unsure, random, ease),
        outcomes(lambda *each: (unsure(*each)[0], unsure(*each)[0] * 0.6), random, ease),
    )
    found = differences((good, of), (poor, of))
    assert {name: each.test for name, each in found.items()} == {
        "ece": "paired bootstrap of the debiased calibration error",
        "log_loss": "paired bootstrap",
    }
    for each in found.values():
        assert each.p < 0.001
        assert each.verdict(lower_is_better=True) == "worse"
        assert each.interval is not None
        assert 0 < each.interval[0] < each.value < each.interval[1]
    everything = np.ones((1, 3000))
    assert found["ece"].value == pytest.approx(
        float(metrics_of(poor)["ece"](everything)[0] - metrics_of(good)["ece"](everything)[0])
    )
    assert {each.p for each in differences((good, of), (good, of)).values()} == {1.0}
    assert mismatches((good, of), (replace(good, truth=(1, *good.truth[1:])), of)) == ["1 with another true value"]


def test_the_log_loss_gets_an_interval_and_the_calibration_error_none() -> None:
    random = np.random.default_rng(4)
    found = outcomes(unsure, random, random.normal(size=200))
    values = {name: float(metric(np.ones((1, 200)))[0]) for name, metric in metrics_of(found).items()}
    scores = tuple(Score(name, name, value, is_share=False) for name, value in values.items())
    result = with_intervals(TaskResult("t", 200, scores, outcomes=(found,), scored_samples=samples(200)))
    assert [score.name for score in result.scores if score.interval] == ["log_loss"]


def test_probabilities_of_too_many_samples_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, truth, rows = torch.eye(3), np.arange(3), np.array([4, 5, 7])
    (found,) = probabilities(logits, truth, rows, ("a", "b", "c"), with_losses=True)
    assert (found.rows, found.truth, found.predicted) == ((4, 5, 7), (0, 1, 2), (0, 1, 2))
    assert found.losses == pytest.approx(-np.log(found.confidences))
    monkeypatch.setattr(calibration_error, "MOST_PROBABILITIES", 2)
    assert probabilities(logits, truth, rows, ("a", "b", "c")) == ()
