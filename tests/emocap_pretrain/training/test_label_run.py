"""Tests runs that train a head on labels, from their checks before the start to their evaluation."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_calls import called
from emocap_shards.inspecting.label_values import label_values
from emocap_shards.store import open_store
from pretrain_fakes import FakeRuntime, changed, stand_alone
from sklearn.metrics import balanced_accuracy_score

import emocap_pretrain as emocap
from emocap_pretrain.benchmarks.catalogue import card
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.labels import check_labels, count_classes
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.dry_run.preflight import preflight
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Extraction, joined
from emocap_pretrain.evaluation.on_benchmarks import tasks_of
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.export import portable
from emocap_pretrain.interop.export.formats import without_head
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.loop import pretrain

ALONE = RankGroup(Rank(), "cpu", None)
OFF = {"objective__global": 0.0, "objective__summary": 0.0, "objective__local": 0.0}
NAMED = ["fine_tuned_classes", "fine_tuned_numbers"]
STEPS = 4


@pytest.fixture(scope="module")
def classes(faces: str) -> tuple[str, ...]:
    return tuple(sorted(map(str, label_values(faces, "emotion").values)))


def labels(classes: tuple[str, ...]) -> list[dict[str, Any]]:
    emotion = {"name": "emotion", "classes": classes, "balance": "effective", "smoothing": 0.1}
    return [emotion, {"name": "valence"}, {"name": "arousal"}]


@pytest.fixture(scope="module")
def new_run(
    tiny: Callable[[Path], Config], classes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """Returns a function that makes the config of a run that is trained on labels alone, without captions.

    The last step of an epoch has fewer rows than the others, because 24 samples do not divide into batches of 10.
    """

    def make(name: str, **changes: object) -> Config:
        values: dict[str, object] = {
            "steps": STEPS,
            "global_batch": 10,
            "objective__labels": labels(classes),
            "ema": {},
        }
        values |= {"checkpoint__every_steps": 1000, "evaluation__tasks": NAMED, **OFF}
        return changed(tiny(tmp_path_factory.mktemp(name)), **(values | changes))

    return make


@pytest.fixture(scope="module")
def run(new_run: Callable[..., Config]) -> Config:
    """Returns the config of a run that is trained on labels alone and finished."""
    stand_alone()
    config = new_run("finished")
    pretrain(config, FakeRuntime())
    return config


def test_a_stopped_run_resumes_to_the_bit_with_the_class_counts_of_its_checkpoint(
    run: Config, new_run: Callable[..., Config], faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = new_run("stopped")
    pretrain(config, FakeRuntime(stop_after=2))
    found = committed(open_store(config.url))[0].state["class_counts"]
    counts = label_values(faces, "emotion").values
    assert {name: list(each) for name, each in found.items()} == {"emotion": [counts[name] for name in sorted(counts)]}
    monkeypatch.setattr("emocap_pretrain.training.session.count_classes", lambda *_: pytest.fail("counted again"))
    pretrain(config, FakeRuntime())
    weights, expected = (restore(each.url).model.state_dict() for each in (config, run))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_report_has_the_scores_of_the_head_that_a_checkpoint_restores(
    run: Config, faces: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    report = RunFolder(open_store(run.url)).report(STEPS)
    assert report is not None
    scores = {name: value for result in report.results for name, value in result.metrics().items()}
    restored = restore(run.url)
    assert [label.name for label in restored.model.labels] == ["emotion", "valence", "arousal"]
    features = joined(
        Extraction(Embedder(restored.model, restored.tokenizer), 64).collect(PackedSource(faces), ALONE) or [], ""
    )
    outputs = features.pooled @ restored.model.head.weight.T + restored.model.head.bias
    predicted = [classes[number] for number in outputs[:, : len(classes)].argmax(1)]
    truth = [each["emotion"] for each in features.labels]
    assert scores["fine_tuned_classes/uar"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    errors = outputs[:, -1].detach() - torch.tensor([each["arousal"] for each in features.labels])
    assert scores["fine_tuned_numbers/arousal_rmse"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)
    assert restored.model.head.weight.any()
    # The Python interface gives the same predictions of images.
    images = [sample.content.crops(16, "center")[0] for sample in PackedSource(faces).examples(range(3))]  # pyright: ignore[reportAttributeAccessIssue]
    found = emocap.load(run.url).predict_labels(images, batch_size=2)
    assert found["emotion"].best == predicted[:3]
    np.testing.assert_allclose(found["emotion"].values.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(found["arousal"].values[:, 0], outputs[:3, -1].detach(), rtol=1e-4, atol=1e-5)
    assert found["arousal"].best == []
    # `emocap predict` writes the same, and compares the images with texts only if the user names classes.
    outcomes: list[pd.DataFrame] = []
    for name, words in (("head", ()), ("texts", ("--classes", "joy,fear", "--sentences", "none"))):
        done = called("predict", run.url, faces, "--out", tmp_path / f"{name}.csv", "--batch", 64, *words)
        assert done.exit_code == 0, done.output
        outcomes.append(pd.read_csv(tmp_path / f"{name}.csv"))
    head, texts = outcomes
    assert list(head.predicted) == predicted
    np.testing.assert_allclose(head[[f"p_{name}" for name in classes]].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(head.n_arousal, outputs[:, -1].detach(), rtol=1e-3, atol=1e-4)
    scores = [f"p_{each}" for each in classes]
    assert list(head.columns) == ["name", "predicted", "confidence", *scores, "n_valence", "n_arousal", "error"]
    assert list(texts.columns) == ["name", "predicted", "confidence", "p_joy", "p_fear", "error"]
    # Our own format of exports keeps the head, and the others say that they do not.
    portable.write(restored, tmp_path)
    again = portable.read(tmp_path).model.state_dict()
    assert torch.equal(again["head.weight"], restored.model.head.weight)
    (line,) = without_head(restored)
    assert "predicts the labels (emotion, valence, arousal)" in line


def test_a_run_that_starts_from_another_one_takes_its_tower_and_not_its_head(
    run: Config, new_run: Callable[..., Config]
) -> None:
    other = [{"name": "emotion", "classes": ["x", "y"]}]
    config = changed(
        new_run("next", objective__labels=other), model__from=f"run:{run.url}", model__text__tokenizer="from"
    )
    start = StartingPoint(config.model)
    torch.manual_seed(0)
    model = build_model(config, start.tokenizer(lambda: pytest.fail("trained")).vocabulary, weights=False)
    report = start.load_into(model)
    assert report is not None
    assert set(report.left_out) == set(report.fresh) == {"head.weight", "head.bias"}
    before = restore(run.url).model.state_dict()
    assert all(torch.equal(each, before[name]) for name, each in model.image.state_dict(prefix="image.").items())
    assert not model.head.weight.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective__labels": [{"name": "emotion", "classes": ["joy", "hunger"]}]},
            "which is none of the classes joy",
        ),
        ({"objective__labels": [{"name": "emotion"}]}, "is not a number; give the label classes"),
        ({"objective__labels": [{"name": "mood"}]}, "no training sample has the label mood; they have"),
        (
            {"evaluation__label": "mood", "objective__labels": [{"name": "valence"}]},
            "has no head that predicts classes",
        ),
        (
            {"evaluation__numbers": ["AU1"]},
            "AU1 cannot be predicted, because the model has a head for the numbers valence",
        ),
        ({"global_batch": 1}, "the CCC of a single sample is always 0"),
    ],
)
def test_wrong_labels_are_one_line_before_the_start(
    new_run: Callable[..., Config], changes: dict[str, Any], message: str
) -> None:
    problems = preflight(new_run("refused", **changes)).problems
    assert [problem for problem in problems if message in problem], problems
    assert all(len(problem.splitlines()) == 1 for problem in problems)


def test_the_plan_names_the_losses_and_what_is_trained(
    new_run: Callable[..., Config], classes: tuple[str, ...]
) -> None:
    text = " ".join(RunPlan.of(new_run("planned", cluster__ranks=1), 1, on_gpu=False).text().split())
    assert f"emotion: cross-entropy of {len(classes)} classes, balanced by effective numbers" in text
    assert "valence: 1 - CCC of the global batch" in text
    assert "text tower: frozen" in text
    assert re.search(r"head: [\d,]+ parameters, lr", text)


def test_a_mixture_counts_a_sample_as_often_as_it_is_drawn(faces: str, classes: tuple[str, ...]) -> None:
    emotion = [LabelConfig.model_validate(each) for each in labels(classes)]
    once = count_classes(DataConfig(url=faces), emotion)["emotion"]
    twice = count_classes(DataConfig.model_validate({"mix": [{"url": faces, "weight": 3}, {"url": faces}]}), emotion)
    assert twice["emotion"] == pytest.approx([2 * count for count in once])
    assert check_labels(DataConfig(url=faces), emotion) == []
    unseen = LabelConfig.model_validate({**labels(classes)[0], "classes": [*classes, "hunger"]})
    with pytest.raises(ConfigError, match="no training sample has the class hunger of the label emotion"):
        count_classes(DataConfig(url=faces), [unseen])


def test_a_benchmark_is_scored_by_a_head_only_if_the_settings_ask_for_it() -> None:
    about = card("raf_db")
    found = {type(task) for task in tasks_of(EvaluationConfig(), about)}
    assert found
    assert not found & set(tasks.NEED_A_HEAD)
    assert [task.name for task in tasks_of(EvaluationConfig(tasks=("fine_tuned_classes",)), about)] == NAMED[:1]
    # The head of one label of classes is taken, whatever its name is.
    head = LabelConfig.model_validate({"name": "feeling", "classes": ["a", "b"]})
    named = tasks.tasks_of(EvaluationConfig(tasks=("fine_tuned_classes",), label="class"))
    tasks.require_head(named, [head])
    others = [head, head.model_copy(update={"name": "mood"})]
    for other, said in ((others, "has a head for the labels feeling, mood"), ([], "has no head that predicts classes")):
        with pytest.raises(ConfigError, match=said):
            tasks.require_head(named, other)
