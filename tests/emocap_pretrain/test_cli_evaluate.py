"""Tests `emocap evaluate` on one checkpoint: options, JSON, what it logs, and what it never contacts."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cli_calls
import pytest
import yaml
from cli_calls import torchrun
from emocap_cluster.placement import Node, place
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from mlflow.tracking import MlflowClient
from PIL import Image
from pretrain_fakes import changed

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.cli.evaluated_model import with_settings
from emocap_pretrain.cli.evaluated_on_ray import _resources
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import BatchFeatures, Extraction
from emocap_pretrain.evaluation.result_file import load
from emocap_pretrain.evaluation.tasks import TASKS
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report

CLASSES = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


@pytest.fixture
def run(finished_run: Config) -> Config:
    return finished_run


@pytest.fixture
def report(run: Config) -> Report:
    found = RunFolder(open_store(run.url)).report(2)
    assert found is not None
    return found


evaluate, printed = partial(cli_calls.called, "evaluate"), partial(cli_calls.printed, "evaluate")


def refused(*words: str | Path) -> str:
    done = evaluate(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr


def test_the_tasks_are_listed_with_what_they_do(run: Config) -> None:
    done = evaluate("--list")
    assert re.search(r"zero_shot +default +names the class", done.stdout)
    assert re.search(r"retrieval +finds the caption of each face", done.stdout)
    listed = json.loads(evaluate("--list", "--json").stdout)
    assert [each["name"] for each in listed] == [task.name for task in TASKS]
    assert [each["name"] for each in listed if each["default"]] == ["zero_shot"]


def test_samples_without_the_label_are_counted_in_each_split(run: Config, tmp_path: Path) -> None:
    def packed(name: str, *without: int) -> str:
        faces = list(records(12, pixels=32))
        for number in without:
            faces[number] = replace(faces[number], labels={"other": "x"})
        write_shards(faces, str(tmp_path / name), samples_per_shard=12)
        return str(tmp_path / name)

    train, valid, test = packed("train", 3, 5), packed("valid"), packed("test", 4)
    tasks = ("--task", "zero_shot", "--task", "nearest_neighbours")
    found = printed(run.url, "--data", test, "--train", train, "--valid", valid, *tasks)
    prompted, neighbours = ({**each, "left_out": dict(each["left_out"])} for each in found["results"])
    assert (prompted["samples"], prompted["left_out"]) == (11, {"without the label": 1})
    assert (neighbours["samples"], neighbours["left_out"]) == (
        11,
        {"without the label": 1, "without the label, in train": 2},
    )


def test_the_results_are_those_of_the_run_s_own_end(run: Config, report: Report, faces: str) -> None:
    found = printed(run.url, "--data", faces)
    assert (found["run"], found["step"]) == (run.url, 2)
    assert [each["task"] for each in found["results"]] == ["zero_shot", "retrieval"]
    for result, wanted in zip(found["results"], report.results, strict=True):
        assert {each["name"]: each["value"] for each in result["scores"]} == {s.name: s.value for s in wanted.scores}
        assert (result["url"], result["samples"]) == (faces, 24)


def test_the_table_shows_scores_and_the_recall_of_each_class(run: Config, report: Report, faces: str) -> None:
    shown = evaluate(run.url, "--data", faces).stdout
    for result in report.results:
        for score in result.scores:
            assert score.title in shown
    (values,) = (each for result in report.results for each in result.class_values)
    assert "prompted recall by class" in shown
    for name, recall, samples in zip(values.classes, values.values, values.samples, strict=True):
        assert recall is not None
        assert re.search(rf"^{name} +{samples} +{recall:.1%}", shown, re.MULTILINE)


def test_the_command_line_names_tasks_label_classes_and_prompts(run: Config, faces: str, tmp_path: Path) -> None:
    (result,) = printed(run.url, "--data", faces, "--task", "zero_shot", "--classes", ",".join(CLASSES[::-1]))[
        "results"
    ]
    assert tuple(result["confusion_matrices"][0]["classes"]) == CLASSES[::-1]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {} face\n\n  {}!  \n", encoding="utf-8")
    words = yaml.safe_dump({name: [name, f"{name} itself"] for name in CLASSES}, default_flow_style=True, width=10_000)
    options = ("--classes", words, "--prompts", prompts, "--label", "emotion", "--task", "zero_shot")
    (result,) = printed(run.url, "--data", faces, *options)["results"]
    assert tuple(result["confusion_matrices"][0]["classes"]) == CLASSES


def test_the_command_line_combines_prompts_and_says_what_the_result_is(run: Config, faces: str) -> None:
    options = ("--data", faces, "--task", "zero_shot")
    (plain,) = printed(run.url, *options)["results"]
    assert plain["domain"] == {"kind": "in domain", "why": f"trained on {faces}", "unseen": []}
    (result,) = printed(run.url, *options, "--ensemble", "embeddings", "--every-prompt-set")["results"]
    values = {each["name"]: each["value"] for each in result["scores"]}
    assert {"uar_of_set/descriptions", "uar_lowest_set", "uar_highest_set", "ece"} <= values.keys()
    sets = [value for name, value in values.items() if name.startswith("uar_of_set/")]
    assert (min(sets), max(sets)) == (values["uar_lowest_set"], values["uar_highest_set"])
    shown = evaluate(run.url, *options, "--prompts", "descriptions", "--trained-on", f"{faces}/").stdout
    assert "prompted, in domain" in shown
    # The captions of rendered faces name their seven emotions.
    assert "zero-shot classes" not in shown
    assert "--ensemble" in refused(run.url, *options, "--ensemble", "mean")
    missing = evaluate(run.url, *options, "--trained-on", "no/dataset")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no/dataset has no manifest.json" in missing.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "mood"], r"evaluation\.label=mood: no sample of"),
        (["--classes", "joy"], r"evaluation\.classes lacks anger"),
        (["--classes", "{joy: ["], r"--classes .*not valid YAML"),
        (["--classes", ","], r"evaluation\.classes=\{\}: it must not be empty"),
        (["--classes", "{no: x}"], r"YAML reads a class as False"),
        (["--prompts", "missing.txt"], r"--prompts missing\.txt: there is no such file"),
        (["--prompts", "{empty}"], r"--prompts .*empty\.txt: the file has no prompt: write one on each line"),
        (["--prompts", "{latin}"], r"--prompts .*latin\.txt: the file is not UTF-8 text .*: save it as UTF-8\."),
        (["--prompts", "{wrong}"], r"command line: evaluation\.templates\.0: 'no place' has no \{\}"),
        (["--picture", "x.foo"], r"--picture x\.foo: the picture is a PNG; give a name that ends in \.png"),
        (["--trained-on", ""], r"--trained-on: give the name of a set"),
        (["--task", "retrievel"], r"there is no task 'retrievel'; did you mean retrieval\?"),
    ],
)
def test_a_wrong_option_is_one_line_and_no_result(
    run: Config, faces: str, tmp_path: Path, options: list[str], message: str
) -> None:
    for name, content in {"wrong": b"no place\n", "empty": b" \n", "latin": b"caf\xe9 {}\n"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
        options = [option.replace(f"{{{name}}}", str(tmp_path / f"{name}.txt")) for option in options]
    told = refused(run.url, "--data", faces, *options)
    assert re.search(message, told)
    assert len(told.strip().splitlines()) == 1


def test_classes_that_do_not_fit_the_data_are_refused_before_a_model_reads_an_image(
    run: Config, faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(*_: object) -> None:
        pytest.fail("the model reads images")

    monkeypatch.setattr(Extraction, "collect", collect)
    assert "evaluation.classes" in refused(run.url, "--data", faces, "--task", "zero_shot", "--classes", "joy,fear")


def test_a_missing_gpu_is_an_error(run: Config, faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda: there is no GPU" in refused(run.url, "--data", faces, "--device", "cuda")


def test_a_run_must_be_named() -> None:
    assert "give the folder or URL of a run" in refused()


def test_the_dataset_of_a_stored_config_is_read_only_where_the_user_allows_it(run: Config) -> None:
    assert "allow it with --stored-data" in refused(run.url, "--label", "emotion")
    assert printed(run.url, "--stored-data", "--task", "retrieval")["results"][0]["url"] == run.evaluation.url


def test_a_picture_needs_a_task_that_gives_a_confusion_matrix(run: Config, faces: str, tmp_path: Path) -> None:
    picture = tmp_path / "confusion.png"
    assert evaluate(run.url, "--data", faces, "--picture", picture).exit_code == 0
    with Image.open(picture) as image:
        assert image.size[0] > 100
    done = evaluate(run.url, "--data", faces, "--task", "retrieval", "--picture", picture)
    assert done.exit_code == 2
    assert "retrieval gives no confusion matrix" in done.stderr


def test_results_are_logged_below_the_run_and_replace_none_of_its_own(
    run: Config, faces: str, new_mlflow: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 120.0)  # A busy machine is slow.
    monkeypatch.chdir(tmp_path)
    run_id = RunFolder(open_store(run.url)).run_id(run)
    assert run_id is not None
    before = MlflowClient(run.tracking.uri).get_run(run_id).to_dictionary()
    stored = {path: path.stat().st_mtime_ns for path in Path(run.url).parent.rglob("*") if path.is_file()}
    tracking = new_mlflow(tmp_path / "own.db")
    found = printed(run.url, "--data", faces, "--tracking", tracking)
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("emocap")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "tiny-step-2"
    assert logged.data.tags["mlflow.parentRunId"] == run_id
    values = {
        f"{each['task']}/{score['name']}": score["value"] for each in found["results"] for score in each["scores"]
    }
    assert {"zero_shot/uar", "zero_shot/war", "retrieval/recall_at_5_text_to_image"} <= values.keys()
    assert logged.data.metrics == values
    assert logged.data.tags["zero_shot/domain"] == "in domain"
    assert json.loads(Path(client.download_artifacts(logged.info.run_id, "results.json")).read_text()) == found
    page = Path(client.download_artifacts(logged.info.run_id, "report.html")).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "zero_shot" in page
    pictures = client.list_artifacts(logged.info.run_id, "pictures/zero_shot")
    assert [each.path for each in pictures] == ["pictures/zero_shot/confusion.png"]
    assert logged.data.params["evaluation.url"] == faces
    assert logged.inputs is not None
    (used,) = logged.inputs.dataset_inputs
    assert json.loads(used.dataset.source) == {"uri": faces}
    assert {tag.key: tag.value for tag in used.tags}["mlflow.data.context"] == "evaluation"
    assert MlflowClient(run.tracking.uri).get_run(run_id).to_dictionary() == before
    after = {path: path.stat().st_mtime_ns for path in Path(run.url).parent.rglob("*") if path.is_file()}
    assert after == stored, "neither the tracker nor the artifacts that the stored config names are touched"


def test_the_user_s_config_gives_the_experiment_and_its_secrets_are_not_logged(
    run: Config, faces: str, new_mlflow: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.tracking.mlflow_tracker.FINISH_S", 120.0)
    monkeypatch.setenv("EMOCAP_TEST_FACES", "/secret/place")
    tree = run.stored()
    tree["tracking"] |= {"experiment": "others", "artifacts": str(tmp_path / "artifacts")}
    tree["evaluation"] |= {"url": "${oc.env:EMOCAP_TEST_FACES}", "templates": ["{}", "${oc.env:EMOCAP_TEST_FACES} {}"]}
    file, prompts = tmp_path / "own.yaml", tmp_path / "prompts.txt"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    prompts.write_text("{}\n", encoding="utf-8")
    uri = new_mlflow(tmp_path / "own.db")
    options = ("--config", file, "--data", faces, "--prompts", prompts, "--tracking", uri)
    assert printed(run.url, *options)["results"][0]["url"] == faces
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("others")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.data.params["evaluation.url"], logged.data.params["evaluation.templates"]) == (faces, "['{}']")


def test_only_the_user_names_other_stores_than_that_of_the_data(run: Config, faces: str) -> None:
    """A stranger's checkpoint may name a cache or a training split; neither is read or written without permission."""
    hostile = changed(run, evaluation__cache="s3://stranger/cache", evaluation__train_url="s3://stranger/faces")
    settings = with_settings(hostile, {"url": faces}, may_read=False).evaluation
    assert (settings.url, settings.cache, settings.train_url) == (faces, None, None)
    named = with_settings(hostile, {"url": faces, "cache": "own"}, may_read=False).evaluation
    assert (named.cache, named.train_url) == ("own", None)
    allowed = with_settings(hostile, {"url": faces}, may_read=True).evaluation
    assert (allowed.cache, allowed.train_url) == ("s3://stranger/cache", "s3://stranger/faces")


def test_only_the_batch_size_of_a_stored_config_is_bounded(
    run: Config, faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, sizes = Extraction.collect, list[int]()

    def noted(extraction: Extraction, source: ExampleSource, world: RankGroup) -> list[BatchFeatures] | None:
        sizes.append(extraction.batch)
        return collect(extraction, source, world)

    monkeypatch.setattr(Extraction, "collect", noted)
    monkeypatch.setattr("emocap_pretrain.cli.evaluated_model.LARGEST_BATCH", 5)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(run.stored()), encoding="utf-8")
    printed(run.url, "--data", faces, "--task", "retrieval")
    printed(run.url, "--data", faces, "--task", "retrieval", "--config", file)
    assert sizes == [5, run.evaluation.batch]


def test_ray_starts_as_many_ranks_as_are_given_or_one_for_each_gpu(
    run: Config, faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "add --ray" in refused(run.url, "--data", faces, "--ranks", "2")
    monkeypatch.setenv("RANK", "0")
    assert "--ray starts the ranks itself" in refused(run.url, "--data", faces, "--ray")
    nodes = [Node("a", "10.0.0.1", cpus=8, gpus=2), Node("b", "10.0.0.2", cpus=8, gpus=1)]
    with_gpus = partial(_resources, nodes, spread=False)
    assert place(nodes, with_gpus("auto", None)).held == {"GPU": 1.0}
    assert [place(nodes, with_gpus("auto", ranks)).ranks for ranks in (None, 2)] == [3, 2]
    on_cpus = with_gpus("cpu", 5)
    assert (place(nodes, on_cpus).ranks, on_cpus.on_gpu) == (5, False)
    # A node that is lost later does not end the job.
    assert place(nodes[1:], with_gpus("cuda", 3)).ranks == with_gpus("cuda", 3).least == 1
    with pytest.raises(ConfigError, match="--ranks 4: the cluster has 3 GPUs"):
        with_gpus("auto", 4)
    with pytest.raises(ConfigError, match="--device cuda: the cluster has no GPU"):
        _resources([Node("a", "10.0.0.1", cpus=8, gpus=0)], "cuda", None, spread=False)


@pytest.mark.slow
def test_two_ranks_train_and_evaluate_and_the_command_on_two_ranks_and_on_one_finds_the_same(
    run: Config, faces: str, tmp_path: Path
) -> None:
    config = changed(run, url=str(tmp_path / "two"), evaluation__batch=7, cluster__ranks=2)
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    torchrun("-m", "emocap_pretrain.run", file)
    found = RunFolder(open_store(config.url)).report(2)
    assert found is not None
    assert found.ranks == 2
    words = ("evaluate", config.url, "--config", file, "--json")
    together = json.loads(torchrun("-m", "emocap_pretrain.cli", *words))
    assert together == printed(*words[1:-1])
    scores = [(each.task, score.name, score.value) for each in found.results for score in each.scores]
    told = [(each["task"], score["name"], score["value"]) for each in together["results"] for score in each["scores"]]
    assert told == scores


@pytest.mark.slow
def test_a_rank_that_is_killed_in_the_middle_costs_a_restart_and_no_result(
    run: Config, faces: str, tmp_path: Path
) -> None:
    """Four batches: rank 1 has one of its two when it is killed, and torchrun starts both ranks again."""
    config = changed(run, evaluation__batch=7)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    words = ("evaluate", config.url, "--config", file, "--data", faces)
    cached = ("--cache", tmp_path / "cache", "--json")
    program = Path(__file__).parent / "evaluation" / "killed_rank.py"
    found = json.loads(torchrun("--max-restarts=1", program, *words, *cached))
    assert found == printed(*words[1:])
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 4


def test_results_are_saved_for_comparisons_and_shown_by_group(run: Config, faces: str, tmp_path: Path) -> None:
    file, page = tmp_path / "a.json", tmp_path / "a.html"
    words = ("--by", "emotion", "--least-group", "3", "--save", file, "--html", page, "--thumbnails")
    done = evaluate(run.url, "--data", faces, *words)
    assert done.exit_code == 0, done.stderr
    assert "zero_shot by emotion" in done.stdout
    saved = load(str(file))
    assert (saved.model.name, saved.model.step, saved.model.run_id) != ("", None, "")
    assert len(saved.model.digest) == 64
    assert [len(each) for each in saved.samples] == [24]
    kinds = [outcomes.kind for task in saved.tasks for outcomes in task.outcomes]
    # Classes and their probabilities, then two directions of each of three caption parts and of the whole caption.
    assert kinds == ["class", "probabilities", *["rank"] * 8]
    assert saved.thumbnails
    text = page.read_text(encoding="utf-8")
    assert "data:image/jpeg;base64,/9j/" in text
    # The run was trained with local sentences, so the page shows where it looks.
    assert len(saved.faces) == 6
    assert {each.key for each in saved.faces} <= set(saved.thumbnails)
    assert all(sum(map(sum, of.weights)) == pytest.approx(1, abs=1e-3) for face in saved.faces for of in face.maps)
    assert "Where the model looks" in text
    # The scores follow from what was saved, and a model does not differ from itself.
    found = cli_calls.printed("compare", file, file)
    changes = [row["differences"][1] for task in found["tasks"] for row in task["rows"] if row["differences"][1]]
    assert len(changes) == 4 + 8 * 4
    assert all((each["value"], each["p"]) == (0.0, 1.0) for each in changes)
    assert "evaluation.by=mood: no sample of" in refused(run.url, "--data", faces, "--by", "mood")
    assert "leave out --group" in refused(run.url, "--benchmark", f"raf_db={tmp_path}", "--group", "emotion")
