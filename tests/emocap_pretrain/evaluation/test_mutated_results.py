"""Tests that a file of results which somebody else has changed is compared or refused, and causes no traceback."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import called
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from result_files import classified, file_of, found_texts, mapped, samples, with_extras

from emocap_pretrain.evaluation import intervals, paired, subgroups
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.evaluation.result_file import RESULT_FILE
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    ProbabilityOutcomes,
    RankOutcomes,
    ShotOutcomes,
    UnitOutcomes,
)
from emocap_pretrain.run_folder.results import Domain, Score, TaskResult

OF = samples(12, persons=6)
NUMBERS = tuple(float(number) for number in range(12))


def _numbers() -> TaskResult:
    outcomes = NumberOutcomes(tuple(range(12)), ("valence",), (NUMBERS,), (NUMBERS[::-1],))
    scores = (Score("ccc", "CCC", -1.0, is_share=False),)
    return TaskResult("guess_numbers", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _answers() -> TaskResult:
    outcomes = AnswerOutcomes(tuple(range(12)), (True, False) * 6)
    scores = (Score("accuracy", "accuracy", 0.5),)
    return TaskResult("answer", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _units() -> TaskResult:
    shown, margins = (1, 0, -1) * 4, tuple(0.5 - number % 2 for number in range(12))
    found = tuple(int(each > 0) for each in margins)
    outcomes = UnitOutcomes(tuple(range(12)), ("AU1",), (shown,), (found,), (margins,))
    scores = (Score("f1", "F1", 0.5), Score("auc", "AUC", 0.5))
    return TaskResult("units", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _two_classes() -> TaskResult:
    truth, margins = (0, 1) * 6, (0.5, 0.5) * 6
    outcomes = ClassOutcomes(tuple(range(12)), ("a", "b"), truth, (1,) * 12, margins)
    scores = (Score("uar", "UAR", 0.5), Score("auc", "AUC", 0.5))
    return TaskResult("two_classes", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _probes() -> TaskResult:
    columns = (0, 1) * 6, (1, 2, 3) * 4
    outcomes = ShotOutcomes((), ("a", "b"), columns[0], (4,), 2, (columns[1],), (("x", "y"),))
    # In each class, two thirds of the samples are right in each draw.
    scores = (Score("uar_4", "UAR", 2 / 3), Score("uar_4_deviation", "deviation", 0.0))
    return TaskResult("few_shot", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _probabilities() -> TaskResult:
    sure, losses = (0.5, 0.75) * 6, (0.25,) * 12
    outcomes = ProbabilityOutcomes((), ("a", "b"), (0, 1) * 6, (0,) * 12, sure, losses)
    scores = (Score("ece", "ECE", 0.625), Score("log_loss", "log loss", 0.25, is_share=False))
    return TaskResult("temperature_scaling", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _captions() -> TaskResult:
    outcomes = CaptionOutcomes((), ((1,) * 12,) * 10, ("cider",), ((0.5,) * 12,), "ab")
    scores = (Score("bleu", "BLEU-4", 1.0), Score("cider", "CIDEr-D", 0.5, is_share=False))
    return TaskResult("captions", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _regions() -> TaskResult:
    counts, halves = ((1,) * 12,), ((0.5,) * 12,)
    outcomes = RegionOutcomes((), ("eyes",), ("attention",), 9, counts, counts, halves, halves, ((0.0,) * 12,), "ab")
    scores = (Score("attention", "attention", 0.5), Score("attention/eyes", "eyes", 0.5))
    return TaskResult("maps", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _losses() -> TaskResult:
    outcomes = LossOutcomes((), ("global", "local"), (1.0, 0.5), ((2.0,) * 12, (1.0,) * 12), ("ab", "cd"))
    values = {"loss": 2.5, "loss_global": 2.0, "loss_local": 1.0}
    scores = tuple(Score(name, name, value, is_share=False, lower_is_better=True) for name, value in values.items())
    return TaskResult("losses", 12, scores, url="faces", outcomes=(outcomes,), scored_samples=OF)


def _texts() -> TaskResult:
    outcomes = RankOutcomes("to_face", (1, 5, 9), keys=("a", "b", "c"))
    scores = (Score("recall_at_5_to_face", "recall", 2 / 3),)
    domain = Domain("in domain", "the captions", ("anger",))
    return TaskResult("find", 3, scores, url="faces", domain=domain, outcomes=(outcomes,), scored_samples=OF)


def _body(name: str, seed: int) -> dict[str, Any]:
    classes = classified(OF, 0.5, seed=seed, task="zero_shot", benchmark="raf_db")
    others = (_numbers(), _answers(), _texts(), _units(), _two_classes(), _probes(), _probabilities())
    others += (_captions(), _regions(), _losses())
    results = (with_extras(classes), found_texts(OF, seed=seed), *others)
    file = file_of(name, *results, thumbnails={OF.keys[0]: "/9j/AAAA"}, faces=[mapped(OF.keys[0])])
    return json.loads(RESULT_FILE.dump(file))


BODY = _body("b", 2)
WRONG: list[Any] = [None, True, 0, 1, -1, 2, 1 << 60, 0.5, 1e300, "", "x", "anger", "uar", [], {}, [0], [[]], {"x": 1}]


def _paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([before] if before else []), *(path for key, each in inner for path in _paths(each, (*before, key)))]


# One field of each list is changed, and not all of them, so that long lists are not chosen more often than short ones.
PATHS = [path for path in _paths(BODY) if all(not isinstance(key, int) or key < 5 for key in path)]


def _at(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


@st.composite
def changed_bodies(draw: st.DrawFn) -> Any:
    body = copy.deepcopy(BODY)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(PATHS))
        try:
            place = _at(body, tuple(above))
            value = place[last]
        except (LookupError, TypeError):  # An earlier change has removed it.
            continue
        match draw(st.sampled_from(["drop", "replace", "exchange", "repeat", "shorten", "add"])):
            case "drop":
                del place[last]
            case "replace":
                place[last] = draw(st.sampled_from(WRONG))
            case "exchange":
                place[last] = copy.deepcopy(_at(BODY, draw(st.sampled_from(PATHS))))
            case "repeat" if isinstance(value, list):
                value.extend(copy.deepcopy(value[: draw(st.integers(1, 20))]))
            case "shorten" if isinstance(value, list):
                del value[draw(st.integers(0, 3)) :]
            case "add" if isinstance(value, dict):
                value["further"] = draw(st.sampled_from(WRONG))
            case _:
                pass
    return body


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets each example take a few milliseconds. The draws do not depend on what is changed in a file."""
    monkeypatch.setattr(paired, "DRAWS", 20)
    monkeypatch.setattr(intervals.draws, "__defaults__", (20,))
    monkeypatch.setattr(subgroups, "PERMUTATIONS", 5)


@pytest.mark.usefixtures("_few_draws")
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # Each example compares, so looking for a smaller one would take minutes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changed_bodies(), st.booleans())
def test_a_changed_file_is_compared_or_refused_in_one_line(tmp_path: Path, body: Any, is_first: bool) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_body("a", 1)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(body), encoding="utf-8")
    files = ("b.json", "a.json") if is_first else ("a.json", "b.json")
    paths = [tmp_path / each for each in files]
    done = called("compare", *paths, "--html", tmp_path / "page.html", "--least-group", 2)
    # 1 says that the samples of the two files differ, and 2 that a file cannot be used.
    assert done.exit_code in {0, 1, 2}, done.output
    assert done.exit_code != 2 or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result, _: result["confusion_matrices"][0].update(classes=["a", "b"], counts=[[1]]), "counts"),
        (lambda result, _: result["confusion_matrices"][0]["counts"][1].pop(), "counts"),
        (lambda result, _: result["class_values"][0]["values"].pop(), "values"),
        (lambda result, _: result["class_values"][0]["samples"].pop(), "samples"),
        (lambda _, found: found.update(classes=[], truth=[0] * 12, predicted=[0] * 12), "classes"),
        (lambda _, found: found.update(classes=["x"] * 1001), "at most 1000"),
    ],
)
def test_a_file_whose_lengths_do_not_fit_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    body = _body("b", 2)
    change(body["tasks"][0]["result"], body["tasks"][0]["outcomes"][0])
    (tmp_path / "b.json").write_text(json.dumps(body), encoding="utf-8")
    done = called("compare", tmp_path / "b.json", tmp_path / "b.json")
    assert done.exit_code == 2
    assert message in done.stderr


def test_scores_of_many_classes_take_the_memory_of_their_samples() -> None:
    """A matrix in float64 of 100,000 samples and 1,000 classes would need 800 MB."""
    truth = tuple(range(1000)) * 100
    outcomes = ClassOutcomes(tuple(range(len(truth))), tuple(f"{number}" for number in range(1000)), truth, truth)
    tracemalloc.start()
    scores = metrics_of(outcomes)
    found = [float(metric(np.ones((1, len(truth))))[0]) for metric in scores.values()]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [1.0, 1.0, 1.0]
    assert peak_bytes < 50 << 20
