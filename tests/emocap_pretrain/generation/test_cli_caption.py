"""Tests the commands `emocap caption train`, `score` and `write`, also with wrong models and unfinished trainings."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from caption_jobs import files_of
from cli_calls import called, printed, torchrun
from emocap_shards.writer import write_shards
from generation_fakes import write_llama

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.generation.folder import DOCUMENT, CaptionerFolder
from emocap_pretrain.generation.scoring import FLOORS, score

TRAINING = ("--steps", 3, "--batch", 4, "--warmup-steps", 1, "--most-tokens", 12, "--image-tokens", 1)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a packed dataset of eight faces, none of which is in the training data."""
    folder = tmp_path_factory.mktemp("unseen")
    write_shards(records(8, pixels=32, start=24), str(folder), samples_per_shard=8)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def captioner(run_url, faces, llama, server, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner") / "tiny"
    words = ("caption", "train", run_url, faces, "--lm", llama, "--out", folder, "--tracking", server)
    done = called(*words, *TRAINING)
    assert done.exit_code == 0, done.stderr
    assert "24 images of 24 persons, 1 tokens each." in done.stdout
    assert "captions are cut to 12 tokens" in done.stdout
    assert "without image: step 3 of 3" in done.stdout
    return folder


def test_score_shows_the_captioner_beside_its_floors(captioner, run_url, unseen, llama, tmp_path):
    words = ("caption", "score", run_url, unseen, "--lm", llama, "--captioner", captioner)
    saved = tmp_path / "captions.json"
    tree = printed(*words, "--captions", tmp_path / "captions.jsonl", "--save", saved)
    assert (tree["images"], tree["persons"], tree["known"]) == (8, 8, 0)
    assert [metric["name"] for metric in tree["metrics"]] == ["bleu", "meteor", "rouge_l", "cider"]
    assert all(metric["floors"].keys() == FLOORS.keys() for metric in tree["metrics"])
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[0].keys() == {"key", "references", "captioner", *FLOORS}
    # The file is shown as the result of another task, with each difference to a floor.
    (task,) = printed("compare", saved)["tasks"]
    assert (task["task"], len(task["rows"])) == ("generation", 4 * (1 + len(FLOORS)))
    bleu, above = task["rows"][0]["scores"][0], task["rows"][1]["scores"][0]
    assert (bleu["value"], bleu["baseline"]["value"]) == (
        tree["metrics"][0]["value"],
        tree["metrics"][0]["floors"]["nearest_image"],
    )
    assert above["value"] == tree["metrics"][0]["differences"]["random_image"]
    # Two captioners of one model on the same images are compared, and those of other references are not.
    (pair,) = printed("compare", saved, saved)["tasks"]
    tested = {row["score"]: row["differences"][1] for row in pair["rows"] if row["differences"][1]}
    assert {name: (each["value"], each["p"]) for name, each in tested.items()} == dict.fromkeys(
        ("bleu", "meteor", "rouge_l", "cider"), (0.0, 1.0)
    )
    body = json.loads(saved.read_text())
    body["tasks"][0]["outcomes"][0]["references"] = "others"
    (tmp_path / "others.json").write_text(json.dumps(body))
    done = called("compare", saved, tmp_path / "others.json")
    assert done.exit_code == 1
    assert "B is not compared with A, because the samples differ: the references of the images differ" in " ".join(
        done.stdout.split()
    )
    said = called(*words).stdout
    assert "over nearest image" in said
    assert "8 images of 8 persons." in said


def test_captions_that_cannot_be_written_are_named_before_anything_is_scored(
    captioner, run_url, unseen, llama, tmp_path
):
    place = tmp_path / "absent" / "captions.jsonl"
    words = ("caption", "score", tmp_path / "no_run", unseen, "--lm", llama, "--captioner", captioner)
    done = called(*words, "--captions", place)
    assert done.exit_code == 2
    assert f"--captions {place}: it cannot be written" in " ".join(done.stderr.split())


def test_the_scores_are_shown_although_the_captions_cannot_be_written_at_the_end(
    captioner, run_url, unseen, llama, tmp_path, monkeypatch
):
    def scored(*of, **options):
        found = score(*of, **options)
        (tmp_path / "captions").rmdir()
        return found

    (tmp_path / "captions").mkdir()
    monkeypatch.setattr("emocap_pretrain.generation.scoring.score", scored)
    words = ("caption", "score", run_url, unseen, "--lm", llama, "--captioner", captioner)
    done = called(*words, "--captions", tmp_path / "captions" / "all.jsonl")
    assert done.exit_code == 2
    assert "8 images of 8 persons." in done.stdout
    assert "cannot be written" in done.stderr


def test_write_gives_the_captions_of_the_score_and_names_unreadable_images(captioner, run_url, unseen, llama, tmp_path):
    score = ("caption", "score", run_url, unseen, "--lm", llama, "--captioner", captioner)
    called(*score, "--captions", tmp_path / "captions.jsonl")
    expected = [json.loads(line)["captioner"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    folder = tmp_path / "images"
    folder.mkdir()
    for number, record in enumerate(records(8, pixels=32, start=24)):
        (folder / f"{number}.jpg").write_bytes(record.image)
    (folder / "broken.jpg").write_bytes(b"broken")
    out = tmp_path / "captions.csv"
    write = ("caption", "write", run_url, folder, "--lm", llama, "--captioner", captioner, "--out", out)
    done = called(*write)
    assert done.exit_code == 0, done.stderr
    assert "9 rows, 1 with an error" in done.stdout
    table = pd.read_csv(out, keep_default_na=False).set_index("name")
    assert [table.caption[f"{number}.jpg"] for number in range(8)] == expected
    assert table.error["broken.jpg"]
    assert called(*write).exit_code == 2  # The output exists.


def test_another_model_another_language_model_and_other_settings_are_refused(
    captioner, run_url, faces, unseen, llama, tmp_path, tiny
):
    other = tmp_path / "llama"
    write_llama(other)
    score = ("caption", "score", run_url, unseen, "--captioner", captioner)
    from generation_fakes import model, tokens

    changed = model(tokens().get_vocab_size())
    changed.lm_head.weight.data[0, 0] += 1
    changed.save_pretrained(other)
    done = called(*score, "--lm", other)
    assert done.exit_code == 2
    assert "trained with another language model" in done.stderr
    train = ("caption", "train", run_url, faces, "--lm", llama, "--out", captioner, *TRAINING)
    again = called(*train)
    assert again.exit_code == 0
    assert "step" not in again.stdout
    for words, changed in ((("--lr", 0.5), "optimizer.lr"), (("--optimizer", "name=lion"), "optimizer.name")):
        done = called(*train, *words)
        assert done.exit_code == 2
        assert f"holds a captioner with another {changed}" in done.stderr
    config = tiny(tmp_path)
    from pretrain_fakes import forged

    from emocap_pretrain.data.tokenizer import Tokenizer

    forged(config, Tokenizer.trained_on(["another vocabulary"], 310))
    done = called("caption", "score", config.url, unseen, "--captioner", captioner, "--lm", llama)
    assert done.exit_code == 2
    assert "trained with another model" in done.stderr


def test_an_unfinished_and_an_absent_captioner_are_named(captioner, run_url, unseen, llama, tmp_path):
    score = ("caption", "score", run_url, unseen, "--lm", llama, "--captioner")
    done = called(*score, tmp_path)
    assert done.exit_code == 2
    assert "has no captioner.json: train a captioner" in done.stderr
    (tmp_path / DOCUMENT).write_bytes((captioner / DOCUMENT).read_bytes())
    done = called(*score, tmp_path)
    assert done.exit_code == 1
    assert "captioner has 0 of 3 steps: finish the training" in " ".join(done.stderr.split())


def test_a_folder_of_an_older_version_is_refused_in_one_line(captioner, run_url, faces, unseen, llama, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(captioner / "patches", old / "patches")
    document = json.loads((captioner / DOCUMENT).read_text())
    training = {"steps": 3, "batch": 4, "lr": 0.001, "warmup_steps": 1, "weight_decay": 0.0, "seed": 0}
    (old / DOCUMENT).write_text(json.dumps({**document, "schema": 1, "training": training}))
    models = ("--lm", llama, *TRAINING)
    for words in (("train", run_url, faces, *models, "--out", old), ("score", run_url, unseen, "--captioner", old)):
        done = called("caption", *words, *(() if words[0] == "train" else ("--lm", llama)))
        assert done.exit_code == 2
        assert "cannot be read (an older version wrote it, which trained in another way)" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_wrong_settings_of_the_optimizer_are_named(run_url, faces, llama, tmp_path):
    train = ("caption", "train", run_url, faces, "--lm", llama, "--out", tmp_path / "new")
    for words, message in (
        (("--lr", -1), "command line: optimizer.lr=-1.0: it should be greater than 0"),
        (("--optimizer", "nmae=lion"), "unknown key optimizer.nmae; known here: name, lr"),
        (("--lr", 1, "--optimizer", "lr=2"), "lr is given twice"),
    ):
        done = called(*train, *words)
        assert done.exit_code == 2
        assert message in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_server_that_does_not_answer_is_reported_before_the_patches_are_computed(run_url, faces, llama, tmp_path):
    train = ("caption", "train", run_url, faces, "--lm", llama, "--out", tmp_path / "new", *TRAINING)
    done = called(*train, "--tracking", "http://127.0.0.1:9")
    assert done.exit_code != 0
    assert "127.0.0.1:9" in done.stderr
    assert not (tmp_path / "new" / "patches").exists()


def test_the_losses_of_each_step_and_the_scores_are_in_one_run_of_mlflow(captioner, run_url, unseen, llama, server):
    from mlflow.tracking import MlflowClient

    words = ("caption", "score", run_url, unseen, "--lm", llama, "--captioner", captioner, "--tracking", server)
    metrics = printed(*words)["metrics"]
    client = MlflowClient(server)
    (experiment,) = (each for each in client.search_experiments() if each.name == "emocap")
    (run,) = client.search_runs([experiment.experiment_id])
    for kind in ("captioner", "without_image"):
        history = client.get_metric_history(run.info.run_id, f"{kind}/loss")
        assert [point.step for point in history] == [1, 2, 3]
        assert len({point.value for point in history}) == 3
    assert run.data.metrics["generation/bleu"] == metrics[0]["value"]
    assert run.data.params["training.optimizer.warmup_steps"] == "1"
    assert {each.tags[0].value for each in run.inputs.dataset_inputs} == {"training", "evaluation"}
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_two_ranks_of_which_one_is_killed_end_with_the_files_of_two_that_were_not_interrupted(
    run_url, faces, llama, tmp_path
):
    """Rank 1 is killed after the checkpoint of step 2, and torchrun then starts both ranks again."""
    program = Path(__file__).parent / "killed_captioner.py"
    train = ("caption", "train", run_url, faces, "--lm", llama, *TRAINING[2:], "--steps", 4, "--save-every-steps", 2)
    torchrun("-m", "emocap_pretrain.cli", *train, "--out", tmp_path / "whole")
    said = torchrun("--max-restarts=1", program, *train, "--out", tmp_path / "killed")
    assert said.count("24 images of 24 persons") == 2  # Each attempt says it once.
    for kind in ("captioner", "without_image"):
        whole, killed = (CaptionerFolder(tmp_path / name).checkpoints(kind) for name in ("whole", "killed"))
        assert files_of(killed) == files_of(whole)


@pytest.mark.slow
def test_two_ranks_score_and_write_what_one_process_does(captioner, run_url, unseen, llama, tmp_path):
    models = (run_url, unseen, "--lm", llama, "--captioner", captioner)
    score = ("caption", "score", *models)
    assert json.loads(torchrun("-m", "emocap_pretrain.cli", *score, "--json")) == printed(*score)
    write = ("caption", "write", *models, "--part-images", 3, "--out")
    torchrun("-m", "emocap_pretrain.cli", *write, tmp_path / "two.csv")
    assert called(*write, tmp_path / "one.csv").exit_code == 0
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
