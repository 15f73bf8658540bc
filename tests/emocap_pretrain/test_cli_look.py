"""Tests `emocap look` (attention maps), `emocap regions`, and the task that scores attention maps by these regions.

The model is a finished run of tiny towers.
"""

import shutil
from functools import partial
from pathlib import Path

import cli_calls
import numpy as np
import pytest
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from PIL import Image

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.tracking import pictures

look, regions = partial(cli_calls.called, "look"), partial(cli_calls.called, "regions")


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_run_logs_a_picture_of_maps_of_its_evaluation_dataset(finished_run: Config):
    report = RunFolder(open_store(finished_run.url)).report(2)
    assert report is not None
    names = [each.path for each in MlflowClient(finished_run.tracking.uri).list_artifacts(report.run_id, "pictures")]
    assert "pictures/maps.png" in names


def test_samples_are_drawn_with_their_own_sentences_or_with_given_ones(
    finished_run: Config, faces: str, tmp_path: Path
):
    own, given = tmp_path / "own.png", tmp_path / "given.png"
    done = look(finished_run.url, faces, "--picture", own, "--count", 3)
    assert done.exit_code == 0, done.stderr
    assert "attention maps of 3 faces" in done.stdout
    one = ("--sentence", "The eyes are closed.")
    assert look(finished_run.url, faces, "--picture", given, "--count", 2, *one).exit_code == 0
    # Every face has at least three sentences of its own, and each cell has the same width.
    assert drawn(own).shape[1] >= 4 * pictures.MAP_PX
    assert drawn(own).shape[0] > drawn(given).shape[0] > 2 * pictures.MAP_PX


def test_images_need_sentences(finished_run: Config, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(photos / name)
    out, two = tmp_path / "m.png", ("--sentence", "The eyes are closed.", "--sentence", "The mouth is open.")
    done = look(finished_run.url, photos, "--picture", out)
    assert (done.exit_code, out.exists()) == (2, False)
    assert "has no captions: give the sentences with --sentence." in " ".join(done.stderr.split())
    assert look(finished_run.url, photos, "--picture", out, *two).exit_code == 0
    assert drawn(out).std() > 0
    assert look(finished_run.url, photos, "--picture", out, "--sentence", " ").exit_code == 2
    (photos / "c.png").write_bytes(b"no image")
    done = look(finished_run.url, photos, "--picture", out, *two)
    assert done.exit_code != 0
    assert "c.png" in done.stderr


def test_a_picture_shows_where_the_weights_are(finished_run: Config, tmp_path: Path):
    model = emocap.load(finished_run.url, device="cpu")
    found = model.attention_map(np.zeros((32, 32, 3), np.uint8), "The eyes are closed.")

    def brightest(row: int, column: int) -> tuple[int, int]:
        found.weights[:] = 0.0
        found.weights[row, column] = 1.0
        pictures.attention_maps([("a face", [("a $sentence{$", found)])], tmp_path / "m.png", of=r"run $\odd{$")
        cell = drawn(tmp_path / "m.png")[:, pictures.MAP_PX + 2 * pictures.FONT_PX :].astype(int)
        warm = cell[..., 0] - cell[..., 2]  # The colours of large weights are yellow.
        at = np.unravel_index(warm.argmax(), warm.shape)
        return int(at[0]), int(at[1])

    (top, left), (bottom, right) = brightest(0, 0), brightest(1, 1)
    assert bottom > top + 40
    assert right > left + 40


def test_regions_are_written_and_the_task_scores_with_them(finished_run: Config, faces: str, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(faces, data, ignore=shutil.ignore_patterns("regions.jsonl"))
    call = ("evaluate", finished_run.url, "--data", data, "--task", "region_grounding")
    done = cli_calls.called(*call)
    assert done.exit_code == 2
    assert f"emocap regions {data}" in "".join(done.stderr.split("\n"))
    done = regions(data)
    assert done.exit_code == 0, done.stderr
    assert "regions of 24 faces" in " ".join(done.stdout.split())
    (result,) = cli_calls.printed(*call)["results"]
    assert {"attention", "pointing_shuffled", "average_precision/eyes"} <= {score["name"] for score in result["scores"]}
    done = regions(data, "--landmarks", tmp_path / "missing.npz")
    assert done.exit_code != 0
    assert "missing.npz cannot be read" in " ".join(done.stderr.split())


@pytest.mark.parametrize("words", [("--count", "0"), ("--count", "11"), ()])
def test_wrong_options_are_refused(finished_run: Config, faces: str, tmp_path: Path, words: tuple[str, ...]):
    out = ("--picture", str(tmp_path / "m.png")) if words else ()
    assert look(finished_run.url, faces, *out, *words).exit_code == 2
