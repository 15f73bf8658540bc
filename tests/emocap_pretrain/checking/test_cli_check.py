import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from cli_calls import called
from emocap_shards.writer import write_shards
from landmark_cases import crowd

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checking import findings_file

FACES = 12


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Returns a dataset of rendered faces; `tmp_path / "faces.npz"` has the landmarks of 320 schematic ones."""
    write_shards(records(FACES, pixels=32), str(tmp_path / "data"), samples_per_shard=5)
    points = crowd(320).astype(np.float32) / 2  # The schematic faces fill 48 pixels, and these images have 32.
    points[3] = np.nan
    spread = np.full(len(points), 0.01, np.float32)
    spread[4] = 0.2
    names = [f"0000-{number:08d}.jpg" for number in range(len(points))]
    np.savez(tmp_path / "faces.npz", name=np.array(names), landmarks=points, spread=spread)
    return str(tmp_path / "data")


def check(*arguments: object) -> tuple[int, str]:
    result = called("check", *arguments)
    return result.exit_code, result.output


def test_check_writes_all_findings_and_prints_a_table(data: str, tmp_path: Path) -> None:
    code, output = check(data, "--landmarks", tmp_path / "faces.npz", "--out", tmp_path / "out")
    assert code == 0, output
    assert "agreement" in output
    assert "Faces are compared with 318 faces" in output
    about, *findings = [json.loads(line) for line in (tmp_path / "out/checks.jsonl").read_text().splitlines()]
    assert about["version"] == 1
    assert about["checks"][:2] == ["agreement", "parts"]
    agreement = [each for each in findings if each["check"] == "agreement"]
    assert {each["key"] for each in agreement} == {f"0000-{number:08d}" for number in range(FACES)}
    judged = {each["key"] for each in agreement if each["score"] is not None}
    assert {"0000-00000003", "0000-00000004"}.isdisjoint(judged)  # No face was found, or its detections differ.
    assert len(judged) == FACES - 2
    assert set(findings[0]) == {"key", "check", "part", "caption", "sentence", "region", "score", "reason"}


def test_an_interrupted_check_resumes_to_the_same_file(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.checking.faces.TOGETHER", 5)
    options = (data, "--landmarks", tmp_path / "faces.npz", "--only", "agreement")
    assert check(*options, "--out", tmp_path / "whole")[0] == 0
    made: list[str] = []
    original = findings_file.lines_of

    def interrupted(faces, checks):
        made.extend(face.key for face in faces)
        if len(made) > 5:
            yield from islice(original(faces, checks), 3)  # A part of the second lot is already written.
            raise KeyboardInterrupt
        yield from original(faces, checks)

    with monkeypatch.context() as patched:
        patched.setattr(findings_file, "lines_of", interrupted)
        assert check(*options, "--out", tmp_path / "out")[0] == 130
    assert not (tmp_path / "out/checks.jsonl").exists()
    code, output = check(*options, "--out", tmp_path / "out")
    assert code == 0, output
    assert (tmp_path / "out/checks.jsonl").read_text() == (tmp_path / "whole/checks.jsonl").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checks.jsonl"]


def test_a_population_can_be_saved_and_given(data: str, tmp_path: Path) -> None:
    landmarks, file = tmp_path / "faces.npz", tmp_path / "people.json"
    assert check(data, "--landmarks", landmarks, "--only", "agreement", "--save-population", file)[0] == 0
    code, output = check(data, "--landmarks", landmarks, "--population", file, "--only", "agreement")
    assert (code, "Faces are compared with 318 faces" in output) == (0, True)


def test_too_few_faces_are_compared_with_the_rendered_ones(data: str, tmp_path: Path) -> None:
    with np.load(tmp_path / "faces.npz") as stored:
        np.savez(tmp_path / "few.npz", **{name: stored[name][:20] for name in stored.files})
    code, output = check(data, "--landmarks", tmp_path / "few.npz", "--only", "agreement")
    assert code == 0
    assert "few.npz has fewer than 300 faces" in output
    assert "2,400 faces" in output


def test_wrong_values_are_refused_in_one_line(data: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text("{}")
    landmarks = tmp_path / "faces.npz"
    for arguments, words, expected in (
        ((tmp_path / "nothing",), "manifest.json", 2),
        ((data, "--landmarks", tmp_path / "nothing.npz"), "cannot be read as a file of `emocap landmarks`", 1),
        ((data, "--only", "agreement"), "there is no such check; it needs --landmarks", 2),
        ((data, "--only", "spelling", "--landmarks", landmarks), "There are agreement, parts", 2),
        ((data, "--population", tmp_path / "wrong.json"), "give their --landmarks too", 2),
        ((data, "--landmarks", landmarks, "--population", tmp_path / "wrong.json"), "cannot be read", 1),
        ((data, "--out", tmp_path / "wrong.json"), "--out", 2),
    ):
        code, output = check(*arguments)
        assert (code, words in output) == (expected, True), output
