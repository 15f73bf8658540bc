import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from emocap_pretrain.evaluation.intervals import DRAWS, areas, bootstrap, draws, mean_recalls, shares

ALONE = [None]


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_a_weight_counts_the_example_that_often(samples: int, classes: int, seed: int) -> None:
    """A score with weights equals the score of a list that repeats each example as often as its weight says."""
    random = np.random.default_rng(seed)
    truth, is_right = random.integers(0, classes, samples), random.random(samples) < 0.5
    weights = random.integers(0, 3, (5, samples)).astype(float)
    weights[:, 0] += 1  # No draw is empty.
    for row, uar, war in zip(
        weights, mean_recalls(truth, is_right, classes)(weights), shares(is_right)(weights), strict=True
    ):
        places = np.repeat(np.arange(samples), row.astype(int))
        recalls = [is_right[places][truth[places] == each].mean() for each in np.unique(truth[places])]
        assert uar == pytest.approx(np.mean(recalls))
        assert war == pytest.approx(is_right[places].mean())


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 2**31))
def test_the_area_of_a_draw_is_that_of_scikit_learn(samples: int, levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few levels give equal scores, of which each pair counts half.
    scores, is_positive = random.integers(0, levels, samples) / 7, random.random(samples) < 0.5
    is_positive[:2] = True, False
    weights = random.integers(0, 3, (5, samples)).astype(float)
    weights[:4, :2] += 1
    weights[4] = is_positive  # Without a negative example there is no area.
    *found, none = areas(is_positive, scores)(weights)
    assert np.isnan(none)
    for row, area in zip(weights, found, strict=False):
        assert area == pytest.approx(roc_auc_score(is_positive, scores, sample_weight=row), abs=1e-12)


def test_the_interval_of_an_accuracy_is_that_of_scipy() -> None:
    is_right = np.random.default_rng(1).random(400) < 0.7
    low, high = bootstrap(shares(is_right), ALONE * 400)
    wanted = scipy.stats.bootstrap((is_right,), np.mean, n_resamples=4000, method="percentile", rng=2)
    # A bound of 1,000 draws has a standard deviation of about 0.0015 here.
    assert low == pytest.approx(wanted.confidence_interval.low, abs=0.008)
    assert high == pytest.approx(wanted.confidence_interval.high, abs=0.008)


def test_equal_predictions_have_equal_intervals() -> None:
    is_right = np.arange(50) % 3 == 0
    assert bootstrap(shares(is_right), ALONE * 50) == bootstrap(shares(is_right), ALONE * 50)


def test_all_examples_of_a_person_are_drawn_together() -> None:
    groups = ["anna", None, "ben", "anna", None, "ben", "ben"]
    weights = np.concatenate(list(draws(groups)))
    assert weights.shape == (DRAWS, 7)
    assert (weights[:, 0] == weights[:, 3]).all()
    assert (weights[:, 2] == weights[:, 5]).all()
    assert (weights[:, 2] == weights[:, 6]).all()
    assert (weights[:, 1] != weights[:, 4]).any()
    # Four persons are drawn in each draw; an example without a person is one.
    assert (weights[:, [0, 1, 2, 4]].sum(1) == 4).all()


def test_persons_whose_examples_are_alike_give_wider_intervals() -> None:
    is_right = np.repeat(np.arange(40) % 2 == 0, 10)
    low, high = bootstrap(shares(is_right), ALONE * 400)
    low_of_persons, high_of_persons = bootstrap(shares(is_right), [str(row // 10) for row in range(400)])
    # Ten equal examples of each person count as one: the interval is the square root of 10 times as wide.
    assert (high_of_persons - low_of_persons) / (high - low) == pytest.approx(10**0.5, rel=0.15)


def test_many_examples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draws(ALONE * 20)))
    monkeypatch.setattr("emocap_pretrain.evaluation.intervals._ENTRIES", 20 * 7)
    blocks = list(draws(ALONE * 20))
    assert max(map(len, blocks)) == 7
    assert (np.concatenate(blocks) == whole).all()


def test_a_class_that_a_draw_lacks_is_left_out_of_its_mean() -> None:
    scores = mean_recalls(np.array([0, 1]), np.array([True, False]), 3)
    assert scores(np.array([[2.0, 0.0], [1.0, 1.0]])).tolist() == [1.0, 0.5]
