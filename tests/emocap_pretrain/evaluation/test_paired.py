from dataclasses import replace

import numpy as np
import pytest
import torch
from result_files import CLASSES, classified, samples
from scipy.stats import binomtest, false_discovery_control
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from torchmetrics.functional.regression import concordance_corrcoef, mean_squared_error, pearson_corrcoef

from emocap_pretrain.evaluation.intervals import bootstrap, draws
from emocap_pretrain.evaluation.outcome_scores import metrics_of, part, with_intervals
from emocap_pretrain.evaluation.paired import Difference, differences, holm, mcnemar
from emocap_pretrain.evaluation.pairing import mismatches
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    Outcomes,
    RankOutcomes,
    UnitOutcomes,
    joined,
)
from emocap_pretrain.run_folder.results import Score
from emocap_pretrain.run_folder.samples import Samples, answers_digest

RANDOM = np.random.default_rng(7)
OF = samples(60)
ROWS = tuple(range(60))


def difference(name: str, one: tuple[Outcomes, Samples], other: tuple[Outcomes, Samples]) -> Difference | None:
    return differences(one, other, [name]).get(name)


def outcomes(kind: str) -> Outcomes:
    if kind == "class":
        (found,) = classified(OF, 0.4, seed=1).outcomes
        return found
    if kind == "two classes":
        truth, noise = RANDOM.integers(2, size=60) * 2, RANDOM.normal(size=60)
        margins = np.round(truth - 1 + 2 * noise, 1)  # Some margins are equal.
        guesses = np.where(margins > 0, 2, 0)
        return ClassOutcomes(ROWS, ("a", "b", "c"), *(tuple(each.tolist()) for each in (truth, guesses, margins)))
    if kind == "units":
        shown = RANDOM.integers(-1, 2, size=(3, 60))
        margins = np.round(shown + RANDOM.normal(size=(3, 60)), 1)
        tables = [tuple(map(tuple, each.tolist())) for each in (shown, (margins > 0).astype(int), margins)]
        return UnitOutcomes(ROWS, ("AU1", "AU2", "AU4"), *tables)
    if kind == "rank":
        return RankOutcomes("to_text", tuple(RANDOM.integers(1, 12, 60).tolist()), rows=ROWS)
    if kind == "answer":
        return AnswerOutcomes(ROWS, tuple((RANDOM.random(60) < 0.6).tolist()))
    truth, noise = RANDOM.normal(size=(2, 60)), RANDOM.normal(size=(2, 60))
    columns = [tuple(map(tuple, each.tolist())) for each in (truth, 0.7 * truth + 0.3 * noise + 0.1)]
    return NumberOutcomes(ROWS, ("valence", "arousal"), columns[0], columns[1])


def expected(found: Outcomes) -> dict[str, float]:
    """Returns the scores that scikit-learn, torchmetrics and NumPy compute from outcomes, by their names."""
    match found:
        case ClassOutcomes():
            truth, guess = np.array(found.truth), np.array(found.predicted)
            scores = {"uar": recall_score(truth, guess, average="macro"), "war": float((truth == guess).mean())}
            if found.margins:
                scores["auc"] = roc_auc_score(truth == 2, found.margins)
            return {**scores, "macro_f1": f1_score(truth, guess, labels=np.unique(truth), average="macro")}
        case UnitOutcomes():
            f1, auc = list[float](), list[float]()
            for shown, is_found, margins in zip(found.shown, found.found, found.scores, strict=True):
                rows = np.array(shown) >= 0
                truth = np.array(shown)[rows] == 1
                f1.append(f1_score(truth, np.array(is_found)[rows]))
                auc.append(roc_auc_score(truth, np.array(margins)[rows]))
            return {"f1": float(np.mean(f1)), "auc": float(np.mean(auc))}
        case RankOutcomes():
            ranks = np.array(found.ranks)
            recalls = {f"recall_at_{k}_to_text": float((ranks <= k).mean()) for k in (1, 5, 10)}
            return {**recalls, "median_rank_to_text": float(np.median(ranks))}
        case AnswerOutcomes():
            return {"accuracy": float(np.mean(found.is_right))}
        case NumberOutcomes():
            scores = {}
            for name, truth, guess in zip(found.names, found.truth, found.predicted, strict=True):
                pair = torch.tensor(guess, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
                scores |= {
                    f"{name}_ccc": float(concordance_corrcoef(*pair)),
                    f"{name}_pcc": float(pearson_corrcoef(*pair)),
                    f"{name}_rmse": float(mean_squared_error(*pair, squared=False)),
                    f"{name}_sagr": float((pair[0].sign() == pair[1].sign()).double().mean()),
                }
            return {**scores, "ccc": np.mean([scores[f"{name}_ccc"] for name in found.names])}


@pytest.mark.parametrize("kind", ["class", "two classes", "rank", "answer", "numbers", "units"])
def test_scores_of_weighted_samples_are_those_of_libraries_on_repeated_samples(kind: str) -> None:
    found = outcomes(kind)
    weights = next(draws((None,) * 60, 3))
    repeated = [part(found, np.repeat(np.arange(60), each.astype(int))) for each in weights]
    for name, metric in metrics_of(found).items():
        assert metric(np.ones((1, 60)))[0] == pytest.approx(expected(found)[name], abs=1e-9)
        assert metric(weights).tolist() == pytest.approx([expected(each)[name] for each in repeated], abs=1e-9)


def test_scores_of_folds_are_means_over_the_folds() -> None:
    found = outcomes("class")
    folds = np.array([0] * 20 + [1] * 40)
    parts = [expected(part(found, np.flatnonzero(folds == fold))) for fold in (0, 1)]
    for name, metric in metrics_of(found, folds).items():
        assert metric(np.ones((1, 60)))[0] == pytest.approx(np.mean([each[name] for each in parts]))


def test_every_score_that_follows_from_outcomes_gets_the_interval_of_the_bootstrap() -> None:
    of = samples(60, persons=20)
    result = classified(of, 0.4, seed=1)
    found = with_intervals(replace(result, scores=(*result.scores, Score("other", "other", 0.5))))
    metric = metrics_of(result.outcomes[0])["macro_f1"]
    by_name = {score.name: score for score in found.scores}
    assert by_name["macro_f1"].interval == bootstrap(metric, of.groups)
    assert by_name["uar"] == result.scores[0]  # Its task has computed the interval.
    assert by_name["other"].interval is None
    assert with_intervals(result, most=59) == result


def test_a_unit_that_no_sample_of_a_draw_shows_is_left_out_of_the_means() -> None:
    found = UnitOutcomes((), ("AU1", "AU2"), ((1, 0, 0), (0, 1, -1)), ((1, 0, 1), (1, 1, 0)), ((2, 1, 3), (1, 2, 0)))
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    scores = metrics_of(found)
    assert scores["f1"](weights).tolist() == pytest.approx([2 / 3, 1.0, np.nan], nan_ok=True)
    assert scores["auc"](weights).tolist() == pytest.approx([0.75, np.nan, np.nan], nan_ok=True)
    assert list(metrics_of(replace(found, scores=()))) == ["f1"]


def test_models_are_compared_by_their_action_units_and_areas() -> None:
    for kind, names in (("units", ["f1", "auc"]), ("two classes", ["auc"])):
        one = outcomes(kind)
        same = differences((one, OF), (one, OF), names)
        assert {name: (each.value, each.p) for name, each in same.items()} == dict.fromkeys(names, (0.0, 1.0))
        assert mismatches((one, OF), (one, OF)) == []
    units = outcomes("units")
    assert isinstance(units, UnitOutcomes)
    relabelled = replace(units, shown=(tuple(1 - abs(each) for each in units.shown[0]), *units.shown[1:]))
    assert "with another true value" in mismatches((units, OF), (relabelled, OF))[0]


def test_joined_folds_keep_margins_of_the_same_two_classes_and_scores_of_all_units() -> None:
    two = outcomes("two classes")
    assert isinstance(two, ClassOutcomes)
    assert len(joined([two, two]).margins) == 120  # pyright: ignore[reportAttributeAccessIssue]
    others = replace(two, truth=tuple(min(each, 1) for each in two.truth))
    for second in (replace(two, margins=()), others):
        assert joined([two, second]).margins == ()  # pyright: ignore[reportAttributeAccessIssue]
    units = outcomes("units")
    assert isinstance(units, UnitOutcomes)
    assert [len(each) for each in joined([units, units]).scores] == [120] * 3  # pyright: ignore[reportAttributeAccessIssue]
    assert joined([units, replace(units, scores=())]).scores == ()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_draw_without_a_sample_of_a_fold_has_no_score_and_causes_no_warning() -> None:
    found = outcomes("class")
    folds = np.array([0] * 20 + [1] * 40)
    weights = np.stack([np.ones(60), np.repeat([0.0, 1.0], [20, 40])])
    for metric in metrics_of(found, folds).values():
        assert np.isnan(metric(weights)).tolist() == [False, True]


def test_mcnemar_s_test_is_the_binomial_test_of_the_samples_on_which_one_model_is_right() -> None:
    one, other = np.array([True] * 9 + [False] * 5), np.array([True] * 2 + [False] * 7 + [True] + [False] * 4)
    assert mcnemar(one, other) == pytest.approx(binomtest(7, 8).pvalue)
    assert mcnemar(one, one) == 1.0


def test_holm_s_correction_multiplies_by_the_number_of_hypotheses_that_are_left() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    found = RANDOM.random(20)  # It is at least as strict as a control of the false discovery rate.
    assert all(np.array(holm(found.tolist())) >= false_discovery_control(found) - 1e-12)


def test_a_better_model_differs_and_an_equal_one_does_not() -> None:
    of = samples(300)
    poor, good = (classified(of, share, seed=3).outcomes[0] for share in (0.2, 0.7))
    for name, test in (("war", "exact McNemar test"), ("uar", "paired bootstrap"), ("macro_f1", "paired bootstrap")):
        found = difference(name, (poor, of), (good, of))
        assert found is not None
        assert found.test == test
        assert found.p < 0.01
        assert found.interval is not None
        assert 0 < found.interval[0] < found.value < found.interval[1]
        same = difference(name, (poor, of), (poor, of))
        assert same is not None
        assert (same.value, same.p) == (0.0, 1.0)
    assert difference("recall_at_1_to_text", (poor, of), (good, of)) is None


def test_samples_are_paired_by_their_keys_and_not_by_their_order() -> None:
    of = samples(80)
    one, other = (classified(of, 0.5, seed=seed).outcomes[0] for seed in (1, 2))
    order = RANDOM.permutation(80)
    shuffled = Samples(tuple(of.keys[place] for place in order))
    moved = replace(part(other, order), rows=tuple(range(80)))
    assert mismatches((one, of), (moved, shuffled)) == []
    straight, crooked = difference("war", (one, of), (other, of)), difference("war", (one, of), (moved, shuffled))
    assert straight is not None
    assert crooked is not None
    assert (straight.value, straight.p) == (pytest.approx(crooked.value), crooked.p)


def test_persons_are_drawn_as_a_whole_and_then_no_test_takes_samples_as_independent() -> None:
    of = samples(200, persons=10)
    one, other = (classified(of, share, seed=5).outcomes[0] for share in (0.5, 0.6))
    grouped, alone = (
        difference("war", (one, of), (other, of)),
        difference("war", (one, samples(200)), (other, samples(200))),
    )
    assert grouped is not None
    assert alone is not None
    assert (grouped.test, alone.test) == ("paired bootstrap", "exact McNemar test")


def test_different_samples_are_counted() -> None:
    of = samples(50)
    (found,) = classified(of, 0.5, seed=1).outcomes
    assert isinstance(found, ClassOutcomes)
    fewer = part(found, np.arange(40))
    assert mismatches((found, of), (fewer, of)) == ["10 only in the first"]
    others = replace(of, keys=(*of.keys[:48], "x", "y"))
    assert mismatches((found, of), (found, others)) == ["2 only in the first", "2 only in the other"]
    truth = tuple((number + 1) % len(CLASSES) for number in found.truth[:3]) + found.truth[3:]
    assert mismatches((found, of), (replace(found, truth=truth), of)) == ["3 with another true value"]
    twice = replace(of, keys=(of.keys[0], *of.keys[:-1]))
    assert "1 of the other occur more than once" in mismatches((found, of), (found, twice))
    assert "kinds" in mismatches((found, of), (outcomes("answer"), OF))[0]


def test_a_fold_that_a_draw_lacks_has_no_median_rank() -> None:
    ranks = RankOutcomes("to_text", (1, 2, 9, 9), rows=(0, 1, 2, 3))
    folds = np.array([0, 0, 1, 1])
    weights = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = metrics_of(ranks, folds)["median_rank_to_text"](weights)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx((1.5 + 9) / 2)


def test_models_that_chose_among_other_classes_or_candidates_are_not_paired() -> None:
    of = samples(40)
    (three,) = classified(of, 0.5, seed=1).outcomes
    assert isinstance(three, ClassOutcomes)
    more = replace(three, classes=(*three.classes, "contempt"))
    assert mismatches((three, of), (more, of)) == ["the classes to choose from differ: 4 and 5"]
    ranks = RankOutcomes("to_text", (1,) * 40, rows=tuple(range(40)), candidates=40, answers="ab")
    for changes, reason in (
        ({"candidates": 80}, "the numbers of candidates differ: 40 and 80"),
        ({"answers": "cd"}, "the answers to choose from, or the right ones, differ"),
    ):
        assert mismatches((ranks, of), (replace(ranks, **changes), of)) == [reason]
    # Files of earlier versions do not have them.
    assert mismatches((ranks, of), (replace(ranks, candidates=0, answers=""), of)) == []
    assert mismatches((ranks, of), (ranks, of)) == []


def test_the_digest_of_answers_does_not_depend_on_the_order_of_queries() -> None:
    queries = [("a", ["x", "y"]), ("b", ["z"])]
    assert answers_digest(queries) == answers_digest([("b", ["z"]), ("a", ["y", "x"])])
    assert answers_digest(queries) != answers_digest([("a", ["x"]), ("b", ["y", "z"])])


def test_joined_folds_keep_what_is_known_of_their_answers() -> None:
    first, second = (AnswerOutcomes((number,), (True,), answers=answers) for number, answers in enumerate(("ab", "cd")))
    assert joined([first, second]).answers  # pyright: ignore[reportAttributeAccessIssue]
    assert joined([first, second]) != joined([first, replace(second, answers="ef")])
    assert joined([first, replace(second, answers="")]).answers == ""  # pyright: ignore[reportAttributeAccessIssue]
    ranks = RankOutcomes("to_text", (1,), rows=(0,), candidates=4)
    assert joined([ranks, ranks]).candidates == 8  # pyright: ignore[reportAttributeAccessIssue]
