import html
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from cli_calls import called
from emocap_shards.annotation import load_annotation
from emocap_shards.filter_file import read_filter
from emocap_shards.library import Library
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
    parts = {"check", "part", "caption", "sentence", "region", "score", "reason"}
    assert set(findings[0]) == {"key", "captions", *parts}


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


def test_thresholds_make_a_filter_that_pack_honours(data: str, tmp_path: Path) -> None:
    file, out = tmp_path / "filter.jsonl", tmp_path / "out"
    options = ("--only", "agreement", "--out", out, "--filter", file)
    code, output = check(data, "--landmarks", tmp_path / "faces.npz", *options, "--below", "agreement=0.3")
    assert code == 0, output
    _, *findings = [json.loads(line) for line in (out / "checks.jsonl").read_text().splitlines()]
    low = [each for each in findings if each["score"] is not None and each["score"] < 0.3]
    wanted = {(each["key"], each["part"], each["sentence"]) for each in low}
    found = read_filter(str(file))
    assert {(each.key, each.part, each.sentence) for each in found.exclusions} == wanted
    assert len(found.exclusions) == len(wanted) < len(low)  # Some sentences have several wrong claims.
    worst = min(low, key=lambda each: each["score"])
    assert worst["reason"] in {each.reason for each in found.exclusions}
    assert found.origins[0].below == 0.3

    packed = called("pack", data, tmp_path / "packed", "--filter", file)
    assert packed.exit_code == 0, packed.output
    before, after = (sentences(where) for where in (data, str(tmp_path / "packed")))
    left_out = {(key, sentence) for key, part, sentence in wanted if part == "local"}
    kept = {key: [text for n, text in enumerate(texts) if (key, n) not in left_out] for key, texts in before.items()}
    assert after == kept


def test_inspect_shows_findings_by_region_and_beside_the_faces(data: str, tmp_path: Path) -> None:
    assert check(data, "--landmarks", tmp_path / "faces.npz", "--only", "agreement", "--out", tmp_path)[0] == 0
    _, *findings = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    done = called("inspect", data, "--checks", tmp_path / "checks.jsonl", "--html", tmp_path / "page.html", "--json")
    assert done.exit_code == 0, done.output
    page = html.unescape((tmp_path / "page.html").read_text())
    low = [each for each in findings if each["score"] is not None and each["score"] < 0.5]
    shown = [each for each in low if f"agreement {each['score']:.2f}: {each['reason']}" in page]
    assert len(low) > 10
    assert len(shown) >= 0.9 * len(low)  # A face shows six of its findings.
    tallies = json.loads(done.stdout)["checks"]
    eyebrows = next(each for each in tallies if each["region"] == "eyebrows")
    scores = [each["score"] for each in findings if each["region"] == "eyebrows"]
    assert eyebrows["disagree"] == sum(score is not None and score < 0.5 for score in scores)
    assert eyebrows["abstain"] == scores.count(None)

    write_shards(records(3, pixels=32), str(tmp_path / "other"))
    refused = called("inspect", tmp_path / "other", "--checks", tmp_path / "checks.jsonl")
    assert refused.exit_code == 2
    assert "about another dataset" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--below", "parts=0.5"), "belong together"),
        (("--below", "agreement=0.5", "--filter", "f"), "the check is not made"),
        (("--below", "parts", "--filter", "f"), "parts=0.2"),
        (("--below", "parts=1.5", "--filter", "f"), "above 0 and up to 1"),
    ],
)
def test_wrong_thresholds_are_refused_in_one_line(data: str, options: tuple[str, ...], told: str) -> None:
    code, output = check(data, *options)
    assert code == 2
    assert told in " ".join(output.split())


def sentences(url: str) -> dict[str, list[str]]:
    """Returns the local sentences of each sample."""
    samples = Library.open(url).fetch(np.arange(FACES), direct=True)
    return {sample.key: list(load_annotation(sample.annotation)[0][0].local) for sample in samples}
