"""Tests comparisons of models: the values, `emocap compare`, and the HTML page."""

import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import called, printed
from result_files import classified, file_of, found_texts, mapped, samples, with_extras
from rich.console import Console

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.comparison import ModelResults, by_model, compare
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.evaluation.page import page
from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile, save
from emocap_pretrain.run_folder.outcomes import NumberOutcomes, ProbabilityOutcomes, ShotOutcomes
from emocap_pretrain.run_folder.results import Domain, Score, TaskResult

OF = samples(120, persons=60)
EVIL = "<script>alert(1)</script>\" onload='x' \u202e"
TINY_JPEG = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx"


def models(*files: ResultFile) -> list[ModelResults]:
    return [ModelResults.of(each) for each in files]


def files(folder: Path, *saved: ResultFile) -> list[str]:
    paths = [str(folder / f"{number}.json") for number, _ in enumerate(saved)]
    for path, each in zip(paths, saved, strict=True):
        save(path, each)
    return paths


def a(*more: TaskResult) -> ResultFile:
    return file_of("a", with_extras(classified(OF, 0.3, seed=1)), found_texts(OF, seed=1), *more)


def b(*more: TaskResult) -> ResultFile:
    return file_of("b", with_extras(classified(OF, 0.8, seed=2)), found_texts(OF, seed=2), *more)


def test_models_are_compared_side_by_side_with_corrected_p_values() -> None:
    found = compare(models(a(), b()))
    assert [(each.task, len(each.rows)) for each in found.tasks] == [("guess", 5), ("search", 1)]
    uar, *_ = found.tasks[0].rows
    assert uar.differences[0] is None
    change = uar.differences[1]
    assert change is not None
    assert uar.scores[0] is not None
    assert uar.scores[1] is not None
    assert change.value == pytest.approx(uar.scores[1].value - uar.scores[0].value)
    assert change.p_holm == change.p  # Only one task has this score.
    (recall,) = found.tasks[1].rows
    assert recall.first.interval is not None  # Computed from the outcomes, because the task has none.
    two = compare(models(a(classified(OF, 0.3, seed=9, task="other")), b(classified(OF, 0.5, seed=8, task="other"))))
    first, other = (task.rows[0].differences[1] for task in two.tasks if task.task != "search")
    assert first is not None
    assert other is not None
    assert first.p_holm == pytest.approx(2 * first.p)
    assert other.p_holm == pytest.approx(max(other.p, 2 * first.p))


def test_few_shot_scores_and_calibration_errors_have_a_difference_in_every_output(tmp_path: Path) -> None:
    def of(name: str, share: float) -> ResultFile:
        random, truth = np.random.default_rng(0), np.arange(120) % 2
        right = random.random((3, 120)) < share
        columns = tuple(truth.tolist()), tuple(np.where(right[0], truth, 1 - truth).tolist())
        bits = tuple((right * [[1], [2], [4]]).sum(0).tolist())
        probes = ShotOutcomes((), ("a", "b"), columns[0], (4,), 3, (bits,), (("x", "y", "z"),))
        sure = ProbabilityOutcomes((), ("a", "b"), *columns, (0.9,) * 120, suffix="_before")
        results: list[TaskResult] = []
        for outcomes in (probes, sure):
            values = {each: float(metric(np.ones((1, 120)))[0]) for each, metric in metrics_of(outcomes).items()}
            scores = tuple(Score(each, each, value, lower_is_better="ece" in each) for each, value in values.items())
            results.append(TaskResult(outcomes.kind, 120, scores, url="f", outcomes=(outcomes,), scored_samples=OF))
        return file_of(name, *results)

    paths = files(tmp_path, of("a", 0.6), of("b", 0.9))
    tests = {"uar_4": "t test of crossed draws", "ece_before": "paired bootstrap of the debiased calibration error"}
    rows = {row["score"]: row["differences"][1] for task in printed("compare", *paths)["tasks"] for row in task["rows"]}
    assert {name: each and each["test"] for name, each in rows.items()} == {**tests, "uar_4_deviation": None}
    done = called("compare", *paths, "--html", tmp_path / "page.html")
    assert done.exit_code == 0
    shown = " ".join(done.stdout.split())
    for text in (shown, (tmp_path / "page.html").read_text(encoding="utf-8")):
        assert all(test in text for test in tests.values())
        assert text.count("better") >= 3  # Both differences, and the words below the table.


def test_a_score_that_its_outcomes_do_not_give_is_refused() -> None:
    wrong = classified(OF, 0.3, seed=1)
    scores = (replace(wrong.scores[0], value=0.99), *wrong.scores[1:])
    with pytest.raises(ConfigError, match=r"the file states uar=0.99, and its outcomes give 0\.[0-9]+: evaluate"):
        compare(models(file_of("a", replace(wrong, scores=scores))))


def test_the_terminal_shows_everything_in_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("emocap_pretrain.cli.compare.console", Console(file=screen, width=80, highlight=False))
    done = called("compare", *files(tmp_path, a(), b()), "--by", "gender", "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.stderr
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"guessed UAR +A +\d", text)
    assert re.search(r"B +\d\d\.\d% \[.*\] +\+\d\d\.\d \[.*\] +(<0\.001|0\.0\d\d)", text)
    assert "A, guess by gender" in text
    assert "by age" not in text
    assert "paired bootstrap" in text
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_results_on_other_samples_are_shown_and_not_paired(tmp_path: Path) -> None:
    fewer = file_of("c", classified(samples(100), 0.5, seed=1))
    paths = files(tmp_path, a(), fewer)
    done = called("compare", *paths)
    assert done.exit_code == 1
    assert "B is not compared with A, because the samples differ: 20 only in the first; " in " ".join(
        done.stdout.split()
    )
    (found,) = (each for each in compare(models(a(), fewer)).tasks if each.task == "guess")
    assert all(each is None for row in found.rows for each in row.differences)
    assert found.rows[0].scores[1] is not None


def test_json_has_scores_differences_and_groups_and_no_samples(tmp_path: Path) -> None:
    found = printed("compare", *files(tmp_path, a(), b()))
    assert [model["name"] for model in found["models"]] == ["a", "b"]
    task = found["tasks"][0]
    assert task["rows"][0]["score"] == "uar"
    assert 0 < task["rows"][0]["differences"][1]["p"] < 0.05
    assert {each["label"] for each in task["groups"][0]} == {"gender", "age"}
    assert "face/00000" not in str(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a}", "--by", "mood"], r"--by mood: the files do not contain this label .*, they have age, gender"),
        (["missing.json"], "missing.json: there is no such file"),
        (["{a}", "--html", "/nowhere/page.html"], "--html /nowhere/page.html: it cannot be written"),
        (["{a}"] * 13, "13 models: at most 12"),
    ],
)
def test_a_wrong_use_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    (path,) = files(tmp_path, a())
    done = called("compare", *(word.replace("{a}", path) for word in words))
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(message, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


class Tags(HTMLParser):
    """Collects the tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_inert_and_complete() -> None:
    classes = (EVIL, "happiness", "surprise", "sadness")
    benchmarks = [
        classified(
            replace(OF, labels={EVIL: OF.labels["gender"]}),
            0.5,
            seed=3,
            task="zero_shot",
            benchmark=name,
            classes=classes,
        )
        for name in ("ferplus", "raf_db", "affectnet_7", EVIL)
    ]
    texts = replace(found_texts(OF, seed=1), url=EVIL)
    first = file_of(
        EVIL,
        with_extras(classified(OF, 0.3, seed=1)),
        texts,
        *benchmarks,
        thumbnails={OF.keys[0]: TINY_JPEG},
        faces=[mapped(OF.keys[0], EVIL), mapped(OF.keys[1])],
    )
    text = page(compare(models(first, b())))
    tags = Tags(text).found
    assert not [tag for tag, _ in tags if tag in {"script", "iframe", "object", "link", "form", "base"}]
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        links = [attributes[name] or "" for name in ("href", "src") if name in attributes]
        assert all(each.startswith(("#", "data:image/jpeg;base64,/9j/")) for each in links), links
    policy = next(each["content"] for tag, each in tags if tag == "meta" and each.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "\u202e" not in text
    assert html.escape("<script>alert(1)") in text
    assert "<script>" not in text
    # Every part is there.
    for part in ("Overview", "Published scores", "EmoCapCLIP", "radar chart", "Confusion matrices", "recall by class"):
        assert part in text, part
    for part in (
        "Spread over choices",
        "examples of each class",
        "by gender",
        "right answer at place",
        "not an emotion",
    ):
        assert part in text, part
    assert text.count(TINY_JPEG) == 2  # An example of the search, and a face with attention maps.
    assert "largest weight 100.0% (uniform 16.7%)" in text
    squares = [each for tag, each in tags if tag == "rect" and each.get("width") == "32.0"]
    assert [(each["x"], each["y"], each["fill-opacity"]) for each in squares] == [("64.0", "0.0", "0.6")] * 2
    assert "contains images of persons" in text


@pytest.mark.parametrize(("task", "is_shown"), [("zero_shot", True), ("fine_tuned_classes", False)])
def test_only_scores_of_prompts_are_beside_published_scores_of_prompts(task: str, is_shown: bool) -> None:
    result = classified(OF, 0.5, seed=3, task=task, benchmark="raf_db")
    assert ("Published scores" in page(compare(models(file_of("a", result))))) == is_shown


def test_a_page_of_one_model_compares_nothing_and_shows_no_image() -> None:
    text = page(compare(models(a())))
    assert "Holm" not in text
    assert "<img" not in text
    assert "Where the model looks" not in text
    assert "images of persons" not in text


def test_groups_of_a_score_that_is_no_share_have_numbers_and_not_per_cent(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth, noise = random.normal(size=(2, 120))
    predicted = np.where(np.arange(120) % 3, truth, truth + 2 * noise)
    columns = tuple(truth.tolist()), tuple(predicted.tolist())
    outcomes = NumberOutcomes(tuple(range(120)), ("valence",), (columns[0],), (columns[1],))
    value = float(metrics_of(outcomes)["ccc"](np.ones((1, 120)))[0])
    result = TaskResult(
        "numbers", 120, (Score("ccc", "CCC", value, is_share=False),), outcomes=(outcomes,), scored_samples=OF
    )
    found = compare(models(file_of("a", replace(result, url="faces"))), by=["gender"])
    (groups,) = found.tasks[0].groups[0]
    male = next(each.score for each in groups.groups if each.value == "male")
    assert male is not None
    (path,) = files(tmp_path, file_of("a", replace(result, url="faces")))
    told = called("compare", path, "--by", "gender").stdout
    assert f" {male:.4g} [" in told
    assert f"{100 * male:.1f}" not in told
    assert "points" not in told
    text = page(found)
    assert f"{male:.4g} [" in text
    assert f"{100 * male:.1f}%" not in text
    assert "points" not in text.split("minus male")[1][:40]


def test_another_crop_or_ensemble_is_a_remark_beside_the_difference() -> None:
    def of(crop: str | None, ensemble: str, domain: Domain | None) -> ResultFile:
        found = file_of("a", replace(classified(OF, 0.3, seed=1), domain=domain))
        return replace(found, evaluation={"crop": crop, "ensemble": ensemble})

    def remarks(one: ResultFile, other: ResultFile) -> tuple[str, ...]:
        (task,) = compare(models(one, other)).tasks
        assert task.refusals[1] == ()
        assert task.rows[0].differences[1] is not None
        return task.remarks[1]

    first = of("center", "logits", Domain())
    assert remarks(first, of("center", "logits", Domain())) == ()
    assert remarks(first, of("whole", "logits", Domain())) == ("evaluation.crop is whole, not center",)
    assert remarks(first, of("center", "embeddings", Domain())) == ("evaluation.ensemble is embeddings, not logits",)
    assert remarks(first, of(None, "logits", Domain())) == ()  # As in files of earlier versions.
    # The ensemble changes nothing in a task without prompts.
    assert remarks(of("center", "logits", None), of("center", "embeddings", None)) == ()
    assert "B: evaluation.crop is whole, not center." in page(compare(models(first, of("whole", "logits", Domain()))))


def test_files_of_one_model_on_several_datasets_are_one_model_in_the_comparison(tmp_path: Path) -> None:
    saved = [
        file_of(name, replace(classified(of, 0.6, seed=seed), url=url))
        for name, seed in (("a", 1), ("b", 2))
        for url, of in (("faces", OF), ("photos", samples(30, prefix="photo")))
    ]
    tree = printed("compare", *files(tmp_path, *saved), "--json")
    assert [each["name"] for each in tree["models"]] == ["a", "b"]
    assert [[each["url"] for each in task["results"]] for task in tree["tasks"]] == [["faces"] * 2, ["photos"] * 2]
    assert all(task["rows"][0]["differences"][1] for task in tree["tasks"])


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        ({"model": EvaluatedModel("a", "/runs/a", 60, "raw", "cd" * 32)}, 2),
        ({"evaluation": {"crop": "whole"}}, 2),
        ({"thumbnails": {OF.keys[0]: "/9j/other"}}, 2),
        ({"evaluation": {"templates": ["{}"]}}, 1),
        ({}, 1),
    ],
)
def test_only_results_of_one_model_in_one_way_are_put_together(change: dict[str, Any], entries: int) -> None:
    first = file_of("a", classified(OF, 0.3, seed=1), thumbnails={OF.keys[0]: TINY_JPEG})
    other = file_of("a", replace(classified(OF, 0.3, seed=1), url="photos"), thumbnails={OF.keys[0]: TINY_JPEG})
    assert len(by_model([first, replace(other, **change)])) == entries
    # The same task on the same dataset is another evaluation of the model.
    assert len(by_model([first, first])) == 2


def test_the_scores_of_captions_are_put_beside_the_other_tasks_of_the_model() -> None:
    classes, texts = classified(OF, 0.5, seed=1), found_texts(OF, seed=1)
    one, two = file_of("one", classes), file_of("two", classes)
    captions = replace(file_of("one", texts), model=replace(one.model, name="folder", step=None), evaluation={})
    for order in ([one, two, captions], [captions, one, two]):
        found = by_model(order)
        assert [(each.model.name, len(each.results)) for each in found] == [("one", 2), ("two", 1)]
    unknown = replace(one.model, digest="")
    assert len(by_model([replace(one, model=unknown), replace(captions, model=unknown)])) == 2
