"""Tests few-shot scores of two models against scikit-learn and the bootstrap, and how often they differ by chance."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import recall_score

from emocap_pretrain.evaluation.crossed_draws import crossed_scores, right_of
from emocap_pretrain.evaluation.intervals import draws
from emocap_pretrain.evaluation.outcome_scores import metrics_of, part, with_intervals
from emocap_pretrain.evaluation.paired import SMALLEST_P, differences
from emocap_pretrain.evaluation.pairing import mismatches
from emocap_pretrain.run_folder.outcomes import ShotOutcomes, joined
from emocap_pretrain.run_folder.results import Score, TaskResult
from emocap_pretrain.run_folder.samples import Samples

CLASSES = ("joy", "fear", "calm")


def probes(right: np.ndarray, truth: np.ndarray, *, chosen: str = "x") -> ShotOutcomes:
    """Returns the outcomes of probes on four examples. `right` has a row for each draw and a column for each sample."""
    bits = (right.astype(np.int64) << np.arange(len(right))[:, None]).sum(0)
    rows, classes = tuple(range(len(truth))), tuple(truth.tolist())
    return ShotOutcomes(rows, CLASSES, classes, (4,), len(right), (tuple(bits.tolist()),), ((chosen,) * len(right),))


def two_models(
    random: np.random.Generator, *, samples: int, of_draws: float, gain: float = 0.0, persons: int | None = None
) -> tuple[ShotOutcomes, ShotOutcomes, Samples]:
    """Returns the outcomes of two models, of which the second one is right more often by the probability `gain`.

    Draws have effects of their own on each model with the standard deviation `of_draws`, and so have samples (or
    persons).
    """
    truth = np.arange(samples) % 3
    person = np.arange(samples) % persons if persons else np.arange(samples)
    found: list[ShotOutcomes] = []
    for more in (0.0, gain):
        of_person, own = random.normal(0, 0.15, samples)[person], random.normal(0, of_draws, (5, 1))
        chance = np.clip(0.5 + more + of_person + own, 0, 1)
        found.append(probes(random.random((5, samples)) < chance, truth))
    keys = tuple(map(str, range(samples)))
    return found[0], found[1], Samples(keys, tuple(map(str, person)) if persons else ())


def test_scores_of_weighted_samples_are_those_of_scikit_learn_on_repeated_samples() -> None:
    found, _, _ = two_models(np.random.default_rng(0), samples=60, of_draws=0.1)
    weights = next(draws((None,) * 60, 3))
    for at, each in enumerate(weights):
        again = part(found, np.repeat(np.arange(60), each.astype(int)))
        assert isinstance(again, ShotOutcomes)
        truth = np.array(again.truth)
        guesses = np.where(right_of(again.right[0], 5), truth, 9)  # 9 is no class.
        uars = [recall_score(truth, guess, average="macro", labels=[0, 1, 2]) for guess in guesses]
        scores = {name: float(metric(weights)[at]) for name, metric in metrics_of(found).items()}
        assert scores == pytest.approx({"uar_4": np.mean(uars), "uar_4_deviation": np.std(uars, ddof=1)})


@pytest.mark.parametrize("persons", [None, 40])
def test_the_covariance_of_draws_is_that_of_a_bootstrap_of_persons(persons: int | None) -> None:
    found, _, of = two_models(np.random.default_rng(1), samples=400, of_draws=0.1, persons=persons)
    groups = of.groups or (None,) * 400
    truth, right = np.array(found.truth), right_of(found.right[0], 5)
    of_draws = [metrics_of(probes(np.stack([each, each]), truth))["uar_4"] for each in right]
    weights = np.concatenate(list(draws(groups, 2000)))
    wanted = np.cov(np.stack([metric(weights) for metric in of_draws]))
    crossed = crossed_scores(found, groups, None)["uar_4"]
    assert crossed.influences @ crossed.influences.T == pytest.approx(wanted, rel=0.15, abs=0.05 * wanted.max())
    assert crossed.influences.sum(1) == pytest.approx(np.zeros(5), abs=1e-12)


def test_scores_of_folds_are_means_over_the_folds() -> None:
    found, _, _ = two_models(np.random.default_rng(2), samples=90, of_draws=0.1)
    folds = np.repeat([0, 1], [30, 60])
    one, other = (part(found, np.flatnonzero(folds == each)) for each in (0, 1))
    crossed = crossed_scores(found, (None,) * 90, folds)["uar_4"]
    alone = [crossed_scores(each, (None,) * len(each.rows), None)["uar_4"] for each in (one, other)]  # pyright: ignore[reportArgumentType]
    assert crossed.values == pytest.approx(sum(each.values for each in alone) / 2)
    assert crossed.influences == pytest.approx(np.hstack([each.influences for each in alone]) / 2)
    whole = joined([one, other])
    assert isinstance(whole, ShotOutcomes)
    assert (whole.right, len(whole.chosen[0])) == (found.right, 5)
    assert whole.chosen != joined([one, replace(other, chosen=(("y",) * 5,))]).chosen  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("of_draws", "persons"), [(0.0, None), (0.1, None), (0.02, 15)], ids=["samples", "draws", "persons"]
)
def test_equal_models_differ_by_chance_as_often_as_the_level_of_the_test(of_draws: float, persons: int | None) -> None:
    """The largest source of chance is, in turn, the samples, the draws, and 15 persons with 20 samples each.

    A share of 5 % of 1,000 trials has a standard error of 0.7 %. A test that does not know of the largest source fails.
    """
    random, trials, rejected, ignorant = np.random.default_rng(3), 1000, 0, 0
    for _ in range(trials):
        one, other, of = two_models(random, samples=300, of_draws=of_draws, persons=persons)
        ours, theirs = (crossed_scores(each, of.groups or (None,) * 300, None)["uar_4"] for each in (one, other))
        change = theirs.minus(ours)
        rejected += change.p() < 0.05
        # A test of the mean over the draws that takes the draws as given, and each sample as a person.
        ours, theirs = (crossed_scores(each, (None,) * 300, None)["uar_4"] for each in (one, other))
        error = np.sqrt((theirs.minus(ours).influences.mean(0) ** 2).sum())
        ignorant += 2 * t.sf(abs(change.mean) / error, 299) < 0.05
    assert rejected / trials < 0.07
    if of_draws == 0.1:
        assert ignorant / trials > 0.3
    if persons:
        assert ignorant / trials > 0.15


def test_a_better_model_differs_and_an_equal_one_does_not() -> None:
    one, other, of = two_models(np.random.default_rng(4), samples=600, of_draws=0.01, gain=0.15)
    found = differences((one, of), (other, of))
    assert list(found) == ["uar_4"]  # Deviations are not compared.
    change = found["uar_4"]
    assert (change.test, change.verdict(lower_is_better=False)) == ("t test of crossed draws", "better")
    assert change.interval is not None
    assert change.p < 0.01
    assert 0 < change.interval[0] < change.value < change.interval[1]
    same = differences((one, of), (one, of))["uar_4"]
    assert (same.value, same.p) == (0.0, 1.0)
    # No test is more certain than the bootstrap of the other scores, not even if all samples agree.
    never, always = (probes(np.full((5, 30), each), np.arange(30) % 3) for each in (False, True))
    assert differences((never, of), (always, of))["uar_4"].p == SMALLEST_P
    moved = np.random.default_rng(0).permutation(600)
    shuffled = replace(part(other, moved), rows=tuple(range(600)))
    again = differences((one, of), (shuffled, Samples(tuple(of.keys[place] for place in moved))))["uar_4"]
    assert (again.value, again.p) == pytest.approx((change.value, change.p))


def test_probes_that_were_trained_on_other_examples_are_not_compared() -> None:
    one, other, of = two_models(np.random.default_rng(5), samples=30, of_draws=0.1)
    assert mismatches((one, of), (other, of)) == []
    others = replace(other, chosen=(("x", "x", "x", "x", "y"),))
    assert mismatches((one, of), (others, of)) == ["the probes were trained on other examples"]
    assert mismatches((one, of), (replace(others, shots=(8,)), of)) == []  # They have no score in common.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": ((8,),)}, "more than 3 bits"),
        ({"truth": (3,)}, "is not below 3"),
        ({"chosen": (("x", "y"),)}, "chosen has 2 entries, and should have 3"),
        ({"shots": (4, 4)}, "shots has 2 entries, and should have 1"),
        ({"right": ((0, 0),)}, "right has 2 entries, and should have 1"),
    ],
)
def test_outcomes_of_probes_that_do_not_fit_together_are_refused(change: dict[str, object], message: str) -> None:
    found = probes(np.ones((3, 1)), np.array([0]))
    with pytest.raises(ValueError, match=message):
        replace(found, **change)  # pyright: ignore[reportArgumentType]


def test_the_interval_of_a_score_contains_the_draws() -> None:
    narrow, wide = (two_models(np.random.default_rng(6), samples=600, of_draws=each)[0] for each in (0.0, 0.1))
    lengths: list[float] = []
    for found in (narrow, wide):
        value = float(metrics_of(found)["uar_4"](np.ones((1, 600)))[0])
        of = Samples(tuple(map(str, range(600))))
        result = TaskResult("few_shot", 600, (Score("uar_4", "UAR", value),), outcomes=(found,), scored_samples=of)
        (score,) = with_intervals(result).scores
        assert score.interval is not None
        assert score.interval[0] < value < score.interval[1]
        lengths.append(score.interval[1] - score.interval[0])
    assert lengths[1] > 2 * lengths[0]
