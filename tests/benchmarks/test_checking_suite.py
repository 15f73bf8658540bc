"""Tests that the suite `checking` records how the check judges sentences whose truth is known."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.writer import write_shards

from benchmarks.__main__ import main
from benchmarks.checking import falsified, voted
from benchmarks.checking.falsifier import WrittenClaim
from benchmarks.checking.judged import judged_sentences
from benchmarks.harness import record
from emocap_pretrain.captions.ferplus.votes import EMOTIONS, UNSURE
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checking.agreement import AgreementCheck

sys.path.insert(0, str(Path(__file__).parents[1] / "emocap_pretrain/checking"))
from mesh_fixture import people, rendered

FIRST = 10  # The index of the first face of the fixture.


def _landmarks(path: Path, names: list[str], points: np.ndarray) -> Path:
    np.savez(path, name=np.array(names), landmarks=points.astype(np.float32), spread=np.full(len(names), 0.01))
    return path


def _claim(text: str) -> WrittenClaim:
    return WrittenClaim(key="", kind="true", is_true=True, region="mouth", units=(12,), sentence=None, text=text)


def test_sentences_about_odd_rendered_faces_are_recorded_by_kind_and_region(tmp_path: Path) -> None:
    points, _ = rendered()
    names = [f"0005-{FIRST + number:08d}.jpg" for number in range(len(points))]
    _landmarks(tmp_path / "faces.npz", names, points * (32 / 224))
    write_shards(records(16, seed=5, pixels=32, start=FIRST), str(tmp_path / "data"), samples_per_shard=8)
    words = [str(tmp_path / "data"), "--landmarks", str(tmp_path / "faces.npz"), "--out", str(tmp_path)]
    assert main(["checking", "falsified", *words]) == 0
    lines = record.read(tmp_path / "checking.jsonl")
    found = {line.setting["region"]: line for line in lines if line.what == falsified.FOUND}
    whole = found["all"].more
    assert whole is not None
    assert whole["faces"] == 8
    assert whole["sentences"] == sum((line.more or {})["sentences"] for name, line in found.items() if name != "all")
    low, high = whole["precision_interval"]
    assert low <= found["all"].median <= high
    assert whole["auc"] > 0.6
    below = [line for line in lines if line.what == falsified.BELOW and line.setting["region"] == "all"]
    shares = {line.setting["kind"]: line for line in below}
    assert shares["true"].median + 0.2 < shares["wrong_unit"].median


def test_a_sentence_is_as_false_as_the_worst_of_its_claims() -> None:
    points, units = rendered()
    smiling = points[int(np.argmax(units[12] - units[43]))]
    texts = ("The lip corners are raised.", "The lip corners are raised, and the eyes are closed.", "The sky is blue.")
    texts += ("The nose is wrinkled.",)
    check = AgreementCheck(population=people())
    right, mixed, other, unmeasured = judged_sentences([_claim(text) for text in texts], smiling, check)
    assert right.score is not None
    assert mixed.score is not None
    assert mixed.score < 0.5 < right.score
    assert (other.score, other.has_claim) == (None, False)
    assert (unmeasured.score, unmeasured.has_claim) == (None, True)
    assert [each.score for each in judged_sentences([_claim(texts[0])], None, check)] == [None]


def test_votes_give_units_and_the_faces_of_the_training_split_are_the_population(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, units = rendered()
    emotions = ["happiness" if smile >= 0.5 else "neutral" if smile == 0 else "sadness" for smile in units[12]]
    names = (*EMOTIONS, *UNSURE)
    usage = ["Training" if number < 450 else "PublicTest" if number < 475 else "PrivateTest" for number in range(500)]
    with (tmp_path / "t.csv").open("w") as ours, (tmp_path / "v.csv").open("w") as theirs:
        table, votes = csv.writer(ours), csv.writer(theirs)
        table.writerow(["emotion", "pixels", "Usage"])
        votes.writerow(["Usage", "Image name", *names])
        for number, emotion in enumerate(emotions):
            # Seven votes for sadness are too few for a unit.
            many = 7 if emotion == "sadness" else 8
            given = {emotion: many, "fear": 10 - many}
            table.writerow([0, " ".join(["0"] * 48 * 48), usage[number]])
            votes.writerow([usage[number], f"fer{number:07d}.png", *(given.get(name, 0) for name in names)])
    rows = [f"fer2013-{number:05d}" for number in range(len(points))]
    _landmarks(tmp_path / "faces.npz", rows, points * (48 / 224))
    words = [str(tmp_path / "t.csv"), str(tmp_path / "v.csv"), "--landmarks", str(tmp_path / "faces.npz")]
    assert main(["checking", "voted", *words, "--out", str(tmp_path)]) == 0
    lines = record.read(tmp_path / "checking-votes.jsonl")
    shown = {(line.setting["unit"], line.setting["votes"]) for line in lines if line.what == voted.BELOW}
    assert shown == {("AU12", "happiness"), *((unit, "neutral") for unit in ("AU4", "AU12", "AU26"))}
    smile = next(line for line in lines if line.what == voted.FOUND and line.setting["unit"] == "AU12")
    assert smile.more is not None
    held_out = [emotion for emotion in emotions[450:] if emotion != "sadness"]
    assert (smile.more["faces"], smile.more["false"]) == (len(held_out), 0.5)
    assert smile.more["auc"] > 0.7
    assert "AU12, lip corners raised" in capsys.readouterr().out
