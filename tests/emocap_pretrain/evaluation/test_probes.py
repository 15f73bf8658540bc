"""Tests the tasks that train on vectors: against scikit-learn's own classes, and for what they must not look at."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.classification import LabelledRows, LabelledVectors
from emocap_pretrain.evaluation.examples import ExampleSource, PackedSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.few_shot import DRAWS, SHOTS, FewShot, drawn
from emocap_pretrain.evaluation.fine_tuned import FineTunedClasses, FineTunedNumbers
from emocap_pretrain.evaluation.linear_probe import LinearProbe
from emocap_pretrain.evaluation.nearest import NEIGHBOURS, Nearest, votes_of
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.evaluation.probe import INVERSE_STRENGTHS, fitted
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.run_folder.outcomes import ShotOutcomes
from emocap_pretrain.run_folder.results import TaskResult

NAMES = ("anger", "fear", "joy")
NO_MODEL: Any = None
SETTINGS = EvaluationConfig(url="faces")


def split(samples: int, seed: int, *, spread: float = 1.0, unlabelled: int = 0) -> Features:
    """Returns vectors of three overlapping clusters of unequal size, and some examples without a label."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, samples, p=[0.6, 0.3, 0.1])
    truth[:3] = [0, 1, 2]
    centres = np.random.default_rng(0).normal(size=(3, 8))
    pooled = centres[truth] + spread * random.normal(size=(samples, 8))
    labels = [{"emotion": NAMES[each]} for each in truth]
    for row in range(unlabelled):
        labels[-1 - row] = {}
    vectors = torch.from_numpy(pooled.astype(np.float32))
    return Features(tuple(map(str, range(samples))), vectors, vectors, tuple(labels))


@pytest.fixture
def features() -> dict[SplitName, Features]:
    return {"train": split(300, 1, unlabelled=4), "valid": split(120, 2), "test": split(150, 3, unlabelled=5)}


def arrays(found: Features) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row, labels in enumerate(found.labels) if labels]
    truth = np.array([NAMES.index(str(found.labels[row]["emotion"])) for row in rows])
    return found.pooled.double().numpy()[rows], truth


def scores(result: TaskResult) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


def test_a_probe_is_the_regression_of_scikit_learn_with_the_best_strength_on_the_validation_split(features) -> None:
    (train, train_truth), (valid, valid_truth), (test, test_truth) = map(arrays, features.values())
    scaler = StandardScaler().fit(train)

    def regression(strength: float) -> LogisticRegression:
        found = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-8)
        return found.fit(scaler.transform(train), train_truth)

    def uar(strength: float) -> float:
        return balanced_accuracy_score(valid_truth, regression(strength).predict(scaler.transform(valid)))

    best = max(INVERSE_STRENGTHS, key=lambda strength: (round(uar(strength), 9), -strength))
    predicted = regression(best).predict(scaler.transform(test))
    result = LinearProbe(SETTINGS).result(NO_MODEL, features)
    found = scores(result)
    assert found["inverse_strength"] == best
    assert found["uar"] == pytest.approx(balanced_accuracy_score(test_truth, predicted), abs=1e-9)
    assert found["war"] == pytest.approx((predicted == test_truth).mean(), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(f1_score(test_truth, predicted, average="macro"), abs=1e-9)
    assert result.samples == 145
    (low, high) = result.scores[0].interval or (0, 0)
    assert low < found["uar"] < high


def test_the_area_of_a_probe_is_that_of_its_log_odds(features) -> None:
    test = features["test"]
    labels = tuple({} if each.get("emotion") == "anger" else each for each in test.labels)
    features["test"] = Features(test.keys, test.images, test.pooled, labels)
    vectors, truth = arrays(features["test"])
    probe = fitted(arrays(features["train"]), arrays(features["valid"]))
    odds = probe.regression.predict_log_proba(probe.scaler.transform(vectors))
    wanted = roc_auc_score(truth == 2, odds[:, 2] - odds[:, 1])
    assert scores(LinearProbe(SETTINGS).result(NO_MODEL, features))["auc"] == pytest.approx(wanted, abs=1e-9)
    # Without training examples of one of the two classes there is no area.
    train = features["train"]
    labels = tuple({} if each.get("emotion") == "joy" else each for each in train.labels)
    features["train"] = Features(train.keys, train.images, train.pooled, labels)
    settings = SETTINGS.model_copy(update={"classes": {name: (name,) for name in NAMES}})
    assert "auc" not in scores(LinearProbe(settings).result(NO_MODEL, features))


def test_neighbours_vote_as_those_of_scikit_learn(features) -> None:
    (train, train_truth), (valid, valid_truth), (test, test_truth) = map(arrays, features.values())

    def predicted(count: int, vectors: np.ndarray) -> np.ndarray:
        index = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=lambda each: 1 - each)
        return index.fit(train, train_truth).predict(vectors)

    uars = {count: balanced_accuracy_score(valid_truth, predicted(count, valid)) for count in NEIGHBOURS}
    best = max(uars, key=lambda count: (round(uars[count], 9), count))
    found = scores(Nearest(SETTINGS).result(NO_MODEL, features))
    assert found["neighbours"] == best
    assert found["uar"] == pytest.approx(balanced_accuracy_score(test_truth, predicted(best, test)), abs=1e-9)


def test_a_dissimilar_neighbour_has_no_vote_and_the_more_frequent_class_wins_a_tie() -> None:
    index = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute")
    train = np.array([[0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]])
    index.fit(train)
    rows = LabelledRows(np.arange(5), np.array([1, 2, 2, 1, 2]), ("none", "one", "two"), (None,) * 5)
    # All cosines are at most 0: the class "none", which has no neighbour, must not win by 0 against -1.
    (found,) = votes_of(index, LabelledVectors(rows, train), np.array([[1.0, 0.0]]), (5,)).values()
    assert found.tolist() == [2]


def test_more_neighbours_than_training_examples_are_not_asked_for(features) -> None:
    features["train"] = split(6, 1)
    assert scores(Nearest(SETTINGS).result(NO_MODEL, features))["neighbours"] <= 5


def test_few_examples_are_better_than_chance_and_more_are_better_than_few(features) -> None:
    result = FewShot(SETTINGS).result(NO_MODEL, features)
    found = scores(result)
    assert 1 / 3 < found["uar_1"] < found["uar_16"]
    assert set(found) == {f"uar_{shots}{end}" for shots in SHOTS for end in ("", "_deviation")}
    assert all(found[f"uar_{shots}_deviation"] > 0 for shots in SHOTS)
    assert result.scores == FewShot(SETTINGS).result(NO_MODEL, features).scores
    assert DRAWS == 5


def test_few_shot_probes_of_all_models_learn_from_the_same_examples(features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.evaluation.few_shot.SHOTS", (1, 4))

    def outcomes(splits: dict[SplitName, Features]) -> ShotOutcomes:
        result = FewShot(SETTINGS).result(NO_MODEL, splits)
        (found,) = result.outcomes
        assert isinstance(found, ShotOutcomes)
        everything = np.ones((1, len(found.rows)))
        stated = {name: float(metric(everything)[0]) for name, metric in metrics_of(found).items()}
        assert stated == pytest.approx(scores(result))
        return found

    one = outcomes(features)
    others = {name: replace(each, pooled=each.pooled.roll(1, 1) ** 2) for name, each in features.items()}
    other = outcomes(others)
    assert one.right != other.right
    assert one.chosen == other.chosen
    assert len({digest for of_shots in one.chosen for digest in of_shots}) == 2 * DRAWS
    # An example that one of the models cannot read moves the others to other places.
    train = features["train"]
    fewer = replace(train, keys=train.keys[1:], pooled=train.pooled[1:], labels=train.labels[1:])
    assert outcomes({**features, "train": fewer}).chosen != one.chosen


def test_a_draw_has_the_same_number_of_each_class_and_no_example_twice() -> None:
    truth = np.array([0] * 9 + [1] * 3 + [2] * 7)
    found = drawn(truth, 4, np.random.default_rng(0))
    assert np.bincount(truth[found]).tolist() == [4, 3, 4]
    assert len(set(found.tolist())) == len(found)
    others = drawn(truth, 4, np.random.default_rng(1))
    assert found.tolist() != others.tolist()


@pytest.mark.parametrize("task", [LinearProbe, FewShot, Nearest])
def test_the_labels_of_the_test_split_decide_nothing(task: Any, features) -> None:
    """The same choices are made and the same classes are predicted if the labels of the split `test` are exchanged."""

    def predictions(result: TaskResult) -> Any:
        return [np.array(each.counts).sum(0).tolist() for each in result.confusion_matrices]

    def choices(result: TaskResult) -> list[float]:
        return [score.value for score in result.scores if score.name in {"inverse_strength", "neighbours"}]

    before = task(SETTINGS).result(NO_MODEL, features)
    test = features["test"]
    turned = tuple(test.labels[::-1])[5:] + ({},) * 5
    features["test"] = Features(test.keys, test.images, test.pooled, turned)
    after = task(SETTINGS).result(NO_MODEL, features)
    assert predictions(after) == predictions(before)
    assert choices(after) == choices(before)


def test_a_class_of_the_test_split_that_training_lacks_is_named(features) -> None:
    test = features["test"]
    labels: Sequence[dict[str, str]] = [{"emotion": "contempt"}, *test.labels[1:]]
    features["test"] = Features(test.keys, test.images, test.pooled, tuple(labels))
    with pytest.raises(ConfigError, match="'emotion': contempt is not among the classes anger, fear, joy"):
        LinearProbe(SETTINGS).result(NO_MODEL, features)


def test_a_class_that_training_or_choices_lack_does_not_end_the_evaluation(features) -> None:
    settings = EvaluationConfig(url="faces", classes={name: (name,) for name in (*NAMES, "pride")})
    valid = features["valid"]
    labels = tuple({} if each.get("emotion") == "joy" else each for each in valid.labels)
    features["valid"] = Features(valid.keys, valid.images, valid.pooled, labels)
    for task in (FewShot, LinearProbe, Nearest):
        assert scores(task(settings).result(NO_MODEL, features))


def packed(folder: Path, *labels: str) -> PackedSource:
    """Writes a dataset of one pixel for each label."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    samples = [
        Record(f"k{number}", file.getvalue(), "png", Caption("A face.", (), ""), {"emotion": label})
        for number, label in enumerate(labels)
    ]
    write_shards(samples, str(folder), samples_per_shard=len(samples))
    return PackedSource(str(folder))


def test_a_class_that_training_lacks_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    sources: dict[SplitName, ExampleSource] = {
        "train": packed(tmp_path / "train", "joy", "fear"),
        "valid": packed(tmp_path / "valid", "joy"),
        "test": packed(tmp_path / "test", "joy", "contempt"),
    }
    with pytest.raises(ConfigError, match=r"contempt, which samples of .*test have, occurs in no sample of .*train"):
        LinearProbe(SETTINGS).prepare(sources)
    named = SETTINGS.model_copy(update={"classes": {name: (name,) for name in ("joy", "fear", "contempt")}})
    assert LinearProbe(named).prepare(sources) == ()


def test_classes_that_the_head_of_a_model_does_not_predict_are_found_before_anything_is_computed(faces: str) -> None:
    settings = EvaluationConfig(url=faces, tasks=("fine_tuned_classes",))
    with pytest.raises(ConfigError, match="which the head of the model does not predict; it predicts joy, mirth"):
        tasks.prepare(settings, head=[LabelConfig.model_validate({"name": "emotion", "classes": ["joy", "mirth"]})])
    with pytest.raises(ConfigError, match="has no head that predicts classes"):
        tasks.prepare(settings, head=[])
    known = sorted(map(str, PackedSource(faces).label_values("emotion").values))
    assert tasks.prepare(settings, head=[LabelConfig.model_validate({"name": "emotion", "classes": known})]) == []


@pytest.mark.parametrize("task", [FineTunedClasses, FineTunedNumbers])
def test_outputs_of_a_head_that_are_not_finite_end_the_evaluation(task: Any) -> None:
    labels = [LabelConfig.model_validate({"name": "emotion", "classes": NAMES}), *map(number, ("valence", "arousal"))]
    outputs = {each.name: torch.zeros(3, each.outputs) for each in labels}
    outputs["emotion" if task is FineTunedClasses else "arousal"][1] = float("nan")
    model: Any = SimpleNamespace(model=SimpleNamespace(labels=labels), head_outputs=lambda _: outputs)
    vectors = torch.zeros(3, 2)
    found = Features(
        ("a", "b", "c"), vectors, vectors, tuple({"emotion": "joy", "valence": 0.1, "arousal": 0.2} for _ in range(3))
    )
    with pytest.raises(DataError, match="outputs of the head for b are not finite"):
        task(SETTINGS).result(model, {"test": found})


def number(name: str) -> LabelConfig:
    return LabelConfig.model_validate({"name": name})


def test_training_on_a_single_class_is_refused(features) -> None:
    train = features["train"]
    labels = ({"emotion": "joy"},) * len(train)
    features["train"] = Features(train.keys, train.images, train.pooled, labels)
    settings = EvaluationConfig(url="faces", classes={name: (name,) for name in NAMES})
    with pytest.raises(ConfigError, match="training examples of at least two classes"):
        LinearProbe(settings).result(NO_MODEL, features)


@pytest.mark.parametrize("task", [LinearProbe, FewShot, Nearest])
def test_a_split_without_labels_is_refused(task: Any, features) -> None:
    valid = features["valid"]
    features["valid"] = Features(valid.keys, valid.images, valid.pooled, ({},) * len(valid))
    with pytest.raises(ConfigError, match="label 'emotion': none of the 120 examples of a split has it"):
        task(SETTINGS).result(NO_MODEL, features)
