"""Tests evaluations on tiny copies of benchmarks, with a model with random weights."""

import json
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_trees import CODES, build, raf_db
from cli_calls import called
from evaluation_jobs import embedder_of, evaluate_copies
from gloo_ranks import on_gloo
from torch.nn.functional import normalize
from video_trees import a_frame_folder, a_text, a_video_file

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import Card, ClassTarget
from emocap_pretrain.benchmarks.item import CroppedImage, FrameFiles
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation import prompt_set
from emocap_pretrain.evaluation.benchmark_source import BenchmarkSource, MediaContent, sources_of
from emocap_pretrain.evaluation.classification import LabelledRows, scored
from emocap_pretrain.evaluation.folds import mean_of_folds
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy, NoTaskError, prepare
from emocap_pretrain.evaluation.on_benchmarks import evaluate as evaluate_all
from emocap_pretrain.evaluation.result_file import load
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.results import Baseline, ConfusionMatrix, Score, Series, TaskResult

ALONE = RankGroup(Rank(), "cpu", None)
PROMPTS = EvaluationConfig(tasks=("zero_shot",))
BY_HAND = {"afew", "afew_va", "crema_d", "dfew", "enterface05", "ferv39k", "mafw", "mafw_captions", "mafw_compound"}
BY_HAND |= {"aff_wild2_expression", "aff_wild2_units", "aff_wild2_va", "ravdess"}
IMAGES = [name for name in catalogue.names() if name not in BY_HAND]


@pytest.fixture
def embedder(tiny_config: Config) -> Embedder:
    return embedder_of(tiny_config)


def evaluate(
    copy: BenchmarkCopy, settings: EvaluationConfig, embedder: Embedder, world: RankGroup
) -> tuple[TaskResult, ...]:
    return evaluate_all([copy], settings, embedder, world).results


def metrics(results: tuple[TaskResult, ...]) -> dict[str, float]:
    return {name: value for result in results for name, value in result.metrics().items()}


@pytest.mark.parametrize("name", IMAGES)
def test_a_model_is_scored_on_a_tiny_copy_of_every_image_benchmark(
    name: str, embedder: Embedder, tmp_path: Path
) -> None:
    card = catalogue.card(name)
    expected = build(card, card.layouts[0], tmp_path)
    copy = BenchmarkCopy(card, tmp_path)
    if not isinstance(card.target, ClassTarget):
        with pytest.raises(ConfigError, match=f"benchmark {name}: none of the tasks can be run"):
            evaluate(copy, PROMPTS, embedder, ALONE)
        return
    (result,) = evaluate(copy, PROMPTS, embedder, ALONE)
    assert result.samples == expected[card.scored].total()
    assert result.benchmark == name
    (recall,) = result.class_values
    assert dict(zip(recall.classes, recall.samples, strict=True)) == {
        each: expected[card.scored][each] for each in card.target.classes
    }


def video_copies(root: Path) -> Mapping[str, tuple[str, int]]:
    """Writes copies of three benchmarks with videos, and returns the number of test clips of all folds of each."""
    for actor in range(1, 25):
        emotion = 1 + actor % 8
        a_video_file(root / "ravdess" / f"Actor_{actor:02d}" / f"01-01-{emotion:02d}-01-01-01-{actor:02d}.mp4", 3)
    for fold in range(1, 6):
        for split in ("train", "test"):
            rows = "".join(f"{number},{number}\n" for number in range(1, 8))
            a_text(
                root / "dfew" / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv",
                f"video_name,label\n{rows}",
            )
    for number in range(1, 8):
        a_frame_folder(root / "dfew" / f"Clip/jpg_256/{number:05d}", [f"{frame}.jpg" for frame in range(1, 4)])
    return {"ravdess": ("ravdess", 24), "dfew": ("dfew", 35)}


def test_videos_are_scored_fold_after_fold(embedder: Embedder, tmp_path: Path) -> None:
    for name, (folder, clips) in video_copies(tmp_path).items():
        (result,) = evaluate(BenchmarkCopy(catalogue.card(name), tmp_path / folder), PROMPTS, embedder, ALONE)
        assert result.samples == clips
        assert np.sum(result.confusion_matrices[0].counts) == clips
        assert {score.baseline.note for score in result.scores if score.baseline} == {
            f"mean of {catalogue.card(name).folds} folds"
        }
        assert all(score.interval for score in result.scores if score.name in {"uar", "war", "macro_f1"})


def test_every_task_for_classes_runs_on_a_copy_with_a_training_split(embedder: Embedder, tmp_path: Path) -> None:
    results = evaluate(raf_db(tmp_path, 40), EvaluationConfig(), embedder, ALONE)
    assert [result.task for result in results] == [
        "zero_shot",
        "temperature_scaling",
        "linear_probe",
        "few_shot",
        "nearest_neighbours",
    ]
    # Each class has a colour of its own, so neighbours and probes find it with random weights too.
    assert metrics(results)["raf_db/nearest_neighbours/uar"] > 0.5
    assert metrics(results)["raf_db/linear_probe/uar"] > 0.5


def test_a_benchmark_that_allows_no_task_is_left_out_with_a_reason(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    units = catalogue.card("faba_au")
    build(units, units.layouts[0], tmp_path / "units")
    copies = [BenchmarkCopy(units, tmp_path / "units"), raf_db(tmp_path / "faces", 2)]
    (note,) = prepare(copies, PROMPTS)
    assert note.startswith("left out: benchmark faba_au: none of the tasks can be run, because its target is")
    (result,) = evaluate_all(copies, PROMPTS, embedder, ALONE).results
    assert result.benchmark == "raf_db"
    count, reason = [record.getMessage() for record in caplog.records][-2:]
    assert count == "1 of 2 benchmarks have no result:"
    assert note == f"left out: {reason}"
    with pytest.raises(NoTaskError, match="benchmark faba_au"):
        prepare(copies[:1], PROMPTS)


def test_a_benchmark_whose_scored_split_is_empty_does_not_end_the_others(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty, full = raf_db(tmp_path / "empty", 2), raf_db(tmp_path / "full", 2)
    (labels,) = (tmp_path / "empty").rglob("list_patition_label.txt")
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(line for line in lines if line.startswith("train")))
    results = evaluate_all([empty, full], PROMPTS, embedder, ALONE).results
    assert len(results) == 1
    assert caplog.records[-1].getMessage() == "benchmark raf_db: the split test has no example for zero_shot."
    with pytest.raises(NoTaskError, match="the split test has no example for zero_shot"):
        evaluate(empty, PROMPTS, embedder, ALONE)


def test_prompts_need_only_the_scored_split_of_a_copy(embedder: Embedder, tmp_path: Path) -> None:
    card = catalogue.card("sfew")
    expected = build(card, card.layouts[0], tmp_path)
    (train,) = [each for each in tmp_path.iterdir() if each.name == "Train"]
    shutil.rmtree(train)
    copy = BenchmarkCopy(card, tmp_path)
    (result,) = evaluate(copy, PROMPTS, embedder, ALONE)
    assert result.samples == sum(expected[card.scored].values())
    with pytest.raises(DataError, match="Train"):
        evaluate(copy, PROMPTS.model_copy(update={"tasks": ("linear_probe",)}), embedder, ALONE)


def test_missing_images_are_counted_with_their_reason(embedder: Embedder, tmp_path: Path) -> None:
    copy = raf_db(tmp_path, 2, missing=3)
    (tmp_path / "Image" / "aligned" / "test_00004_aligned.jpg").write_bytes(b"no image")
    (result,) = evaluate(copy, PROMPTS, embedder, ALONE)
    assert result.samples == 10
    assert dict(result.left_out) == {"missing image": 3, "cannot be decoded": 1}
    assert ("left out", "3 x missing image") in result.rows()


def test_a_cache_gives_the_same_scores_without_decoding(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = raf_db(tmp_path / "copy", 2)
    settings = PROMPTS.model_copy(update={"cache": str(tmp_path / "cache")})
    first = evaluate(copy, settings, embedder, ALONE)
    monkeypatch.setattr(MediaContent, "crops", lambda *_: pytest.fail("an image is decoded"))
    assert evaluate(copy, settings, embedder, ALONE) == first


def test_whole_persons_are_held_out_of_training(tmp_path: Path) -> None:
    video_copies(tmp_path)
    card = catalogue.card("ravdess")
    _, reader = fitting(card, tmp_path / "ravdess")
    sources = sources_of(card, tmp_path / "ravdess", reader, 1)
    groups = {
        split: {example.group for example in source.examples(range(len(source)))}  # pyright: ignore[reportAttributeAccessIssue]
        for split, source in sources.items()
    }
    assert not groups["train"] & groups["valid"]
    assert not (groups["train"] | groups["valid"]) & groups["test"]
    whole = BenchmarkSource(card, tmp_path / "ravdess", reader, "train", 1)
    assert len(sources["train"]) + len(sources["valid"]) == len(whole)


def test_the_digest_of_a_medium_changes_with_what_is_read(tmp_path: Path) -> None:
    frames = a_frame_folder(tmp_path / "frames", [f"{number}.png" for number in range(20)])
    paths = tuple(frames / f"{number}.png" for number in range(20))
    image = paths[3]
    media: list[Any] = [
        image,
        paths[4],
        CroppedImage(image, 0, 0, 4, 4),
        CroppedImage(image, 0, 0, 4, 5),
        FrameFiles(paths),
        FrameFiles(paths[:18]),
        np.zeros((4, 4), np.uint8),
        np.zeros((2, 8), np.uint8),
    ]
    assert len({MediaContent(each).digest() for each in media}) == len(media)
    before = MediaContent(FrameFiles(paths)).digest()
    (frames / "0.png").write_bytes(paths[5].read_bytes())  # The middle of the first segment.
    assert MediaContent(FrameFiles(paths)).digest() != before


def test_the_mean_over_folds_is_that_of_their_scores() -> None:
    def fold(value: float, counts: tuple[tuple[int, ...], ...]) -> TaskResult:
        score = Score("uar", "UAR", value, Baseline("chance", value / 2), interval=(0.0, 1.0))
        matrix = ConfusionMatrix("confusion", "Confusion", ("a", "b"), counts)
        curve = Series("uar", "few-shot UAR", "examples", (1, 2), (value, 2 * value), (0.1, value), 0.5)
        left_out = (("missing image", 2),)
        return TaskResult("task", 5, (score,), confusion_matrices=(matrix,), left_out=left_out, series=(curve,))

    first = fold(0.2, ((1, 2), (0, 2)))
    found = mean_of_folds([first, fold(0.4, ((3, 0), (1, 1)))])
    (score,) = found.scores
    assert score.value == pytest.approx(0.3)
    assert score.interval is None
    assert score.baseline == Baseline("chance", pytest.approx(0.15), "mean of 2 folds")  # pyright: ignore[reportArgumentType]
    assert found.samples == 10
    assert found.confusion_matrices[0].counts == ((4, 2), (1, 3))
    assert found.left_out == (("missing image", 4),)
    (curve,) = found.series
    assert (curve.title, curve.x, curve.chance) == ("few-shot UAR, mean of 2 folds", (1, 2), 0.5)
    assert (*curve.values, *curve.deviations) == pytest.approx((0.3, 0.6, 0.1, 0.3))
    assert mean_of_folds([first]) == first


def test_the_summed_matrix_of_folds_states_their_mean_scores_and_lists_classes_without_samples() -> None:
    def fold(truth: list[int], predicted: list[int]) -> TaskResult:
        rows = LabelledRows(np.arange(len(truth)), np.array(truth), ("joy", "fear", "anger"), (None,) * len(truth))
        return scored("guess", "guessed", rows, np.array(predicted))

    found = mean_of_folds([fold([0, 0, 1, 1], [0, 0, 1, 0]), fold([0, 0, 0, 0], [0, 1, 1, 1])])
    uar, war, _ = (score.value for score in found.scores)
    assert (uar, war) == (pytest.approx(0.5), pytest.approx(0.5))
    (matrix,) = found.confusion_matrices
    assert matrix.title == "Guessed, 2 folds: mean UAR 50.0% (chance 75.0%), mean WAR 50.0%"
    (recall,) = found.class_values
    assert recall.classes == ("joy", "fear", "anger")
    assert recall.samples == (6, 2, 0)
    # The recalls of joy are 1 and 1/4, and fear has samples in the first fold alone.
    assert recall.values == (pytest.approx(0.625), pytest.approx(0.5), None)
    assert recall.title == "guessed recall, mean of folds"
    assert ("without samples", "anger") in found.rows()
    assert found.left_out == ()


def test_a_class_without_a_test_example_has_no_recall(embedder: Embedder, tmp_path: Path) -> None:
    copy = raf_db(tmp_path, 2)
    file = tmp_path / "EmoLabel" / "list_patition_label.txt"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not (line.startswith("test") and line.endswith("2\n"))))
    (result,) = evaluate(copy, PROMPTS, embedder, ALONE)
    assert dict(zip(result.class_values[0].classes, result.class_values[0].values, strict=True))["fear"] is None
    assert result.scores[0].baseline == Baseline("chance", pytest.approx(1 / 6), "6 classes")  # pyright: ignore[reportArgumentType]
    assert ("without samples", "fear") in result.rows()


def test_what_cannot_be_scored_is_counted_and_its_first_places_are_named(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = raf_db(tmp_path, 2, missing=2)
    file = tmp_path / "EmoLabel" / "list_patition_label.txt"
    file.write_text(file.read_text().replace("test_00005.jpg 3\n", "test_00005.jpg 9\n"))
    (result,) = evaluate(copy, PROMPTS, embedder, ALONE)
    assert dict(result.left_out) == {"missing image": 2, "unknown class code": 1}
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith(
        "raf_db, test: 3 examples left out: 2 x missing image, 1 x unknown class code; first: Image/"
    )


def test_a_compound_class_without_prompts_is_refused_before_an_image_is_read(
    embedder: Embedder, tmp_path: Path
) -> None:
    card = catalogue.card("raf_db_compound")
    build(card, card.layouts[0], tmp_path)
    copy = BenchmarkCopy(card, tmp_path)
    described = PROMPTS.model_copy(update={"prompts": "descriptions"})
    with pytest.raises(ConfigError, match="no prompts for the class 'happily surprised'"):
        prepare([copy], described)
    parts = described.model_copy(update={"compound": "parts", "ensemble": "embeddings"})
    prepare([copy], parts)
    (result,) = evaluate(copy, parts, embedder, ALONE)
    columns = []
    for names in card.target.parts.values():  # pyright: ignore[reportAttributeAccessIssue]
        sentences = [text for name in names for text in prompt_set.shipped("descriptions").classes[name]]
        columns.append(normalize(embedder.texts(sentences).mean(0), dim=0))
    _, reader = fitting(card, tmp_path)
    crops = [
        example.content.crops(16, "center")[0]  # pyright: ignore[reportAttributeAccessIssue]
        for example in sources_of(card, tmp_path, reader)["test"].examples(range(result.samples))
    ]
    predicted = (embedder.crops(crops) @ torch.stack(columns, 1)).argmax(1)
    counts = np.sum(result.confusion_matrices[0].counts, axis=0)
    assert counts.tolist() == torch.bincount(predicted, minlength=11).tolist()


def test_the_command_evaluates_copies_and_refuses_other_folders(finished_run: Config, tmp_path: Path) -> None:
    raf_db(tmp_path / "raf", 2)
    words = ("evaluate", finished_run.url, "--device", "cpu", "--benchmark")
    done = called(*words, f"raf_db={tmp_path / 'raf'}", "--task", "zero_shot", "--json")
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)["results"]
    assert result["domain"]["kind"] == "unknown"
    named = called(*words, f"raf_db={tmp_path / 'raf'}", "--task", "zero_shot", "--trained-on", "rendered")
    assert "zero-shot (captions of rendered alone)" in named.stdout
    assert (result["benchmark"], result["samples"], result["url"]) == ("raf_db", 14, "raf_db, test")
    for copy, message in {
        f"sfew={tmp_path / 'raf'}": "is not a copy of SFEW 2.0",
        "raf=/tmp": "there is no benchmark 'raf'",
        "raf_db": "give NAME=FOLDER",
    }.items():
        done = called(*words, copy)
        assert done.exit_code == 2
        assert message in done.stderr
    copy = f"raf_db={tmp_path / 'raf'}"
    done = called(*words, copy, "--data", "faces", "--label", "mood", "--faces-from", "sfew", "--thumbnails")
    assert "leave out --data, --label, --faces-from, --thumbnails." in done.stderr
    done = called(*words, copy, "--classes", "joy,fear")
    assert "the given classes are joy, fear, and none of these benchmarks has them" in done.stderr
    done = called(*words, copy, "--by", "height")
    assert "none of these benchmarks has this attribute of the persons; they have gender, race, age" in done.stderr


def test_scores_on_a_benchmark_are_divided_by_attributes_of_the_persons(finished_run: Config, tmp_path: Path) -> None:
    copy = raf_db(tmp_path / "raf", 4)
    for number, path in enumerate(sorted(copy.root.rglob("test_*_aligned.jpg"))):
        if number:  # One image has no file of attributes.
            stem = path.name.removesuffix("_aligned.jpg")
            values = f"{number % 2}\n0\n{number % 3}\n"
            a_text(copy.root / f"Annotation/manual/{stem}_manu_attri.txt", "0\t0\n" * 5 + values)
    sets = ("--benchmark", f"raf_db={copy.root}", "--task", "zero_shot", "--by", "gender", "--least-group", "5")
    done = called("evaluate", finished_run.url, "--device", "cpu", *sets, "--save", tmp_path / "a.json", "--json")
    assert done.exit_code == 0, done.output
    ((groups,),) = json.loads(done.stdout)["groups"].values()
    assert (groups["label"], groups["unlabelled"]) == ("gender", 1)
    assert {each["value"]: each["samples"] for each in groups["groups"]} == {"female": 14, "male": 13}
    assert all(each["interval"] for each in groups["groups"])
    saved = load(str(tmp_path / "a.json"))
    assert sorted(map(str, saved.samples[0].labels["gender"])) == ["None", *["female"] * 14, *["male"] * 13]


def without_images(copy: BenchmarkCopy) -> BenchmarkCopy:
    """Damages all images of a copy."""
    for path in copy.root.rglob("*.jpg"):
        path.write_bytes(b"damaged")
    return copy


def test_a_benchmark_that_cannot_be_read_does_not_discard_the_results_of_the_others(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full, broken = raf_db(tmp_path / "full", 2), without_images(raf_db(tmp_path / "broken", 2))
    found = evaluate_all([full, broken, full], PROMPTS, embedder, ALONE)
    assert [result.benchmark for result in found.results] == ["raf_db", "raf_db"]
    (failure,) = found.failures
    assert failure.startswith("raf_db: raf_db, test has no example that can be read")
    assert failure in [record.getMessage() for record in caplog.records]
    with pytest.raises(DataError, match="has no example that can be read"):
        evaluate_all([broken], PROMPTS, embedder, ALONE)


def test_the_command_prints_and_saves_what_it_has_and_ends_with_exit_code_1(
    finished_run: Config, tmp_path: Path
) -> None:
    full, broken = raf_db(tmp_path / "full", 2), without_images(raf_db(tmp_path / "broken", 2))
    saved, page = tmp_path / "found.json", tmp_path / "page.html"
    units = catalogue.card("faba_au")
    build(units, units.layouts[0], tmp_path / "units")
    words = [word for copy in (full, broken) for word in ("--benchmark", f"raf_db={copy.root}")]
    words += ["--benchmark", f"faba_au={tmp_path / 'units'}", "--task", "zero_shot", "--save", saved, "--html", page]
    done = called("evaluate", finished_run.url, "--device", "cpu", *words, "--json")
    assert done.exit_code == 1
    tree = json.loads(done.stdout)
    assert [result["benchmark"] for result in tree["results"]] == ["raf_db"]
    assert "has no example that can be read" in tree["failures"][0]
    file = load(str(saved))
    assert [each.benchmark for each in file.results()] == ["raf_db"]
    assert list(file.missing) == [*tree["failures"], *tree["without_task"]]
    assert file.missing[1].startswith("benchmark faba_au: none of the tasks can be run")
    assert page.read_text(encoding="utf-8").count("<b>not evaluated</b>") == 2


def test_ranks_keep_the_other_results_if_a_benchmark_fails_and_refuse_copies_that_differ(
    tiny_config: Config, tmp_path: Path
) -> None:
    full, broken, other = (raf_db(tmp_path / name, 2) for name in ("full", "broken", "other"))
    without_images(broken)
    (labels,) = other.root.rglob("list_patition_label.txt")
    lines = labels.read_text().splitlines(keepends=True)
    told = on_gloo(2, evaluate_copies, tiny_config, [[full, broken]] * 2)
    assert [names for names, _ in told] == [["raf_db"]] * 2
    assert all("has no example that can be read" in why for _, (why,) in told)
    # Rank 1 has a copy without its last test image, one without any, and one whose first two images are exchanged.
    last = max(number for number, line in enumerate(lines) if line.startswith("test"))
    tests = [number for number, line in enumerate(lines) if line.startswith("test")]
    swapped = list(lines)
    swapped[tests[0]], swapped[tests[1]] = lines[tests[1]], lines[tests[0]]
    for changed_lines in (
        [line for number, line in enumerate(lines) if number != last],
        [line for line in lines if not line.startswith("test")],
        swapped,
    ):
        labels.write_text("".join(changed_lines))
        told = on_gloo(2, evaluate_copies, tiny_config, [[full], [other]])
        assert told[0] == told[1]
        names, (why,) = told[0]
        assert names == []
        assert why.startswith("ConfigError: benchmark raf_db: the copies of ranks 0 and 1 differ")
    absent = replace(full, root=tmp_path / "absent")
    told = on_gloo(2, evaluate_copies, tiny_config, [[full], [absent]])
    assert told[0] == told[1]
    layout, _ = fitting(full.card, full.root)
    assert f"differ: {layout.about}, and {absent.root} is not a folder; give" in told[0][1][0]
    assert f"(rank 1 runs on {socket.gethostname()})." in told[0][1][0]
    told = on_gloo(2, evaluate_copies, tiny_config, [[absent]] * 2)
    assert told == [([], [f"ConfigError: {absent.root} is not a folder."])] * 2


def test_a_benchmark_is_evaluated_with_the_classes_of_its_card(embedder: Embedder, tmp_path: Path) -> None:
    """The classes in a config describe the config's own dataset, and not the benchmark."""
    own = PROMPTS.model_copy(update={"label": "mood", "classes": {"glad": ("glad",)}})
    (result,) = evaluate(raf_db(tmp_path, 1), own, embedder, ALONE)
    assert result.class_values[0].classes == tuple(CODES)
    card: Card = catalogue.card("raf_db")
    assert replace(result, scores=()).benchmark == card.name
