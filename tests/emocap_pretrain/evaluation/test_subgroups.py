from dataclasses import replace

import numpy as np
import pytest
from result_files import classified, samples

from emocap_pretrain.evaluation.outcome_scores import part
from emocap_pretrain.evaluation.subgroups import named, subgroups
from emocap_pretrain.run_folder.outcomes import AnswerOutcomes, ClassOutcomes, RankOutcomes
from emocap_pretrain.run_folder.samples import Samples


def test_a_model_that_is_worse_for_one_group_has_a_significant_difference() -> None:
    of = samples(300, persons=150)
    (fair,) = classified(of, 0.8, seed=2).outcomes
    (poor,) = classified(of, 0.1, seed=2).outcomes
    assert isinstance(fair, ClassOutcomes)
    assert isinstance(poor, ClassOutcomes)
    male = [gender == "male" for gender in of.labels["gender"]]
    predicted = tuple(b if is_male else a for a, b, is_male in zip(fair.predicted, poor.predicted, male, strict=True))
    found = subgroups(replace(fair, predicted=predicted), of, "gender", "war")
    assert found is not None
    assert [(each.value, each.samples, each.persons) for each in found.groups] == [
        ("female", 200, 100),
        ("male", 100, 50),
    ]
    assert (found.highest, found.lowest) == ("female", "male")
    assert found.difference == pytest.approx((found.groups[0].score or 0) - (found.groups[1].score or 0))
    assert found.p is not None
    assert found.p < 0.01
    even = subgroups(fair, of, "gender", "war")
    assert even is not None
    assert even.p is not None
    assert even.p > 0.05


def test_small_groups_are_named_and_not_scored_and_missing_values_are_counted() -> None:
    of = samples(60)
    gender = ("other",) * 5 + (None,) * 4 + of.labels["gender"][9:]
    found = subgroups(
        classified(of, 0.5, seed=1).outcomes[0], replace(of, labels={"gender": gender}), "gender", "uar", least=12
    )
    assert found is not None
    assert found.unlabelled == 4
    assert {each.value: each.score is not None for each in found.groups} == {
        "female": True,
        "male": True,
        "other": False,
    }


def test_a_group_that_lacks_a_class_is_not_compared() -> None:
    of = samples(120)
    (found,) = classified(of, 0.5, seed=1).outcomes
    assert isinstance(found, ClassOutcomes)
    half = tuple("a" if number == 0 or place % 2 else "b" for place, number in enumerate(found.truth))
    divided = subgroups(found, replace(of, labels={"half": half}), "half", "uar")
    assert divided is not None
    assert {each.value: each.lacks for each in divided.groups} == {"a": (), "b": ("neutral",)}
    assert divided.difference is None


def test_many_numbers_are_divided_at_their_quartiles() -> None:
    names = named([*map(float, range(20, 60)), None])
    assert list(dict.fromkeys(names)) == ["20 to 29", "30 to 39", "40 to 49", "50 to 59", None]
    assert named([1.0, 0.0, 1.0]) == ["1", "0", "1"]
    assert named([float(place > 1) for place in range(9)]) == ["0"] * 2 + ["1"] * 7


def test_a_label_with_a_value_for_each_person_and_queries_without_samples_have_no_groups() -> None:
    of = samples(60)
    (found,) = classified(of, 0.5, seed=1).outcomes
    assert subgroups(found, replace(of, labels={"name": of.keys}), "name", "uar") is None
    texts = RankOutcomes("to_face", (1, 2), keys=("a", "b"))
    assert subgroups(texts, of, "gender", "recall_at_1_to_face") is None


def test_the_score_of_a_group_is_that_of_its_samples_alone() -> None:
    of = samples(90)
    (outcomes,) = classified(of, 0.5, seed=4).outcomes
    found = subgroups(outcomes, of, "gender", "war")
    assert found is not None
    for each in found.groups:
        own = part(outcomes, np.flatnonzero([gender == each.value for gender in of.labels["gender"]]))
        assert isinstance(own, ClassOutcomes)
        assert each.score == pytest.approx(np.mean(np.array(own.truth) == np.array(own.predicted)))


@pytest.mark.parametrize("unlabelled", [False, True])
def test_whole_persons_change_their_group_also_if_a_sample_has_no_value(
    unlabelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples of a person are equally easy, so samples alone would make differences of persons look certain."""
    monkeypatch.setattr("emocap_pretrain.evaluation.subgroups.PERMUTATIONS", 100)
    persons, each = 20, 20
    rows = tuple(range(persons * each))
    person = np.repeat(np.arange(persons), each)
    gender = tuple("female" if number % 2 else "male" for number in person)
    if unlabelled:
        gender = (None, *gender[1:])
    of = Samples(tuple(map(str, rows)), tuple(map(str, person)), labels={"gender": gender})
    ps: list[float] = []
    for seed in range(40):
        is_right = np.random.default_rng(seed).random(persons)[person] < 0.5
        found = subgroups(AnswerOutcomes(rows, tuple(is_right.tolist())), of, "gender", "accuracy")
        assert found is not None
        assert found.p is not None
        ps.append(found.p)
    assert np.mean(np.array(ps) < 0.05) < 0.15
    assert np.mean(np.array(ps) < 0.5) < 0.75


def test_persons_with_samples_of_several_groups_have_no_p() -> None:
    of = samples(120, persons=30)
    glasses = tuple("yes" if number % 2 else "no" for number in range(60)) + ("yes",) * 60
    found = subgroups(
        classified(of, 0.5, seed=1).outcomes[0], replace(of, labels={"glasses": glasses}), "glasses", "war"
    )
    assert found is not None
    assert found.difference is not None
    assert found.p is None
