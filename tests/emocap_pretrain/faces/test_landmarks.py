"""Tests how landmarks are found with processes, without MediaPipe: the processes run a small program of the test."""

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_calls import called
from PIL import Image

from emocap_pretrain.data.landmarks import read_landmarks
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.faces import mediapipe_program, processes
from emocap_pretrain.faces.environment import IsolatedEnvironment
from emocap_pretrain.faces.landmarks import LandmarkScorer

# Finds a "face" whose points lie at the grey value of the image; in a black image none, and in a white one it fails.
PROGRAM = """
import os, sys
sys.path.insert(0, {folder!r})
import mediapipe_program, numpy as np

def find(image):
    middle = image[image.shape[0] // 2, image.shape[1] // 2, 0]
    if middle == 255:
        sys.exit("out of memory")
    return np.full((478, 3), middle / 255) if middle else None

def answer(image):
    return mediapipe_program.found_in(image, find).tobytes()

mediapipe_program.answer_all(sys.stdin.buffer, sys.stdout.buffer, answer)
"""


@pytest.fixture
def command(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(Path(mediapipe_program.__file__).parent)))
    return [sys.executable, str(program)]


def grey(value):
    return np.full((10, 12, 3), value, np.uint8)


def test_the_median_of_the_passes_is_in_pixels_of_the_image():
    image = grey(90)
    shares = iter([0.25, 0.5, 0.5])

    answer = mediapipe_program.found_in(image, lambda _square: np.full((478, 3), next(shares)))

    # A pass with the margin m sees a square of side 12 (1 + 2 m) whose corner lies above and left of the image.
    expected = []
    for margin, share in zip(mediapipe_program.MARGINS, (0.25, 0.5, 0.5), strict=True):
        side = round(12 * (1 + 2 * margin))
        corner = np.array([(side - 12) // 2, (side - 10) // 2, 0])
        expected.append(share * side - corner)
    np.testing.assert_allclose(answer[2:].reshape(478, 3), np.tile(np.median(expected, 0), (478, 1)), rtol=1e-6)
    assert answer[0] == 3


def test_a_single_pass_has_no_spread_and_no_face_has_no_landmarks():
    shares = iter([None, np.full((478, 3), 0.5), None])
    one = mediapipe_program.found_in(grey(90), lambda _square: next(shares))
    none = mediapipe_program.found_in(grey(90), lambda _square: None)
    assert one[0] == 1
    assert np.isnan(one[1])
    assert np.isfinite(one[2:]).all()
    assert none[0] == 0
    assert np.isnan(none[1:]).all()


@pytest.mark.parametrize("count", [1, 3])
def test_answers_have_the_order_of_the_images_with_any_number_of_processes(command, count):
    values = [30, 0, 200, 100, 50, 7, 0, 90]
    with LandmarkScorer(command, count) as scorer:
        found = scorer.columns([grey(value) for value in values])
    alone = [
        mediapipe_program.found_in(grey(v), lambda _square, v=v: np.full((478, 3), v / 255) if v else None)
        for v in values
    ]
    np.testing.assert_array_equal(found["landmarks"], np.stack(alone)[:, 2:])
    assert list(found["passes"]) == [3, 0, 3, 3, 3, 3, 0, 3]


def test_a_process_that_ends_is_an_error_with_its_last_words(command):
    with (
        LandmarkScorer(command, 2) as scorer,
        pytest.raises(DataError, match=r"status 1: out of memory.*start the same command again"),
    ):
        scorer.columns([grey(9), grey(255), grey(8)])


def test_a_process_that_cannot_start_is_an_error():
    with pytest.raises(DataError, match="No module named nothing"):
        LandmarkScorer([sys.executable, "-m", "nothing"], 2)


@pytest.fixture
def mesh(command, monkeypatch):
    """Lets the command use the program of the test."""
    monkeypatch.setattr(IsolatedEnvironment, "python", lambda _self, _say: Path(command[0]))
    monkeypatch.setattr(processes, "_PROGRAM", command[1])


def images_in(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(grey(number)).save(folder / f"{number:04d}.png")
    return folder


@pytest.mark.usefixtures("mesh")
def test_the_command_writes_names_and_landmarks_and_resumes(tmp_path):
    faces = images_in(tmp_path / "faces", 5)  # The first one is black.
    (faces / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.npz"

    done = called("landmarks", faces, "--out", out, "--workers", "2", "--part-images", "2")

    assert done.exit_code == 0, done.output
    assert "A face was found in 4 images." in done.output
    stored = read_landmarks(out)
    assert list(stored.names) == ["0000.png", "0001.png", "0002.png", "0003.png", "0004.png", "broken.png"]
    assert list(np.isfinite(stored.points[:, 0, 0])) == [False, True, True, True, True, False]

    (faces / "0003.png").write_bytes((faces.parent / "faces" / "0004.png").read_bytes())
    whites = images_in(tmp_path / "more", 256)  # The last one ends the process.
    failed = called("landmarks", whites, "--out", tmp_path / "more.npz", "--part-images", "100")
    assert failed.exit_code == 1
    assert "has ended" in failed.output
    assert len(list((tmp_path / "more.npz.parts").glob("part-*"))) == 2
    refused = called("landmarks", faces, "--out", tmp_path / "more.npz", "--part-images", "100")
    assert refused.exit_code == 2
    assert "begun with another input" in " ".join(refused.output.split())


def test_an_environment_is_made_once_and_a_failed_one_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packages = tmp_path / "packages.txt"
    packages.write_text("emocap-no-such-package==1\n")
    environment = IsolatedEnvironment("test", packages, newest_python=99)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"pip.*emocap-no-such-package.*must be reachable"):
        environment.python(lambda _: None)
    assert not environment.folder().exists()

    packages.write_text("# no package\n")
    said: list[str] = []
    first = environment.python(said.append)
    assert first.exists()
    assert environment.python(said.append) == first
    assert len(said) == 1
    assert not list(first.parents[2].glob("*.unfinished"))


def test_a_python_without_packages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packages = tmp_path / "packages.txt"
    packages.write_text("")
    with pytest.raises(ConfigError, match=r"use Python 3\.9"):
        IsolatedEnvironment("test", packages, newest_python=9).python(lambda _: None)
