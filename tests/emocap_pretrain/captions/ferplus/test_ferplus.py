import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.sample import Record
from landmark_cases import crowd
from PIL import Image

from emocap_pretrain.captions.ferplus.__main__ import main
from emocap_pretrain.captions.ferplus.captioner import GLOBAL_WITHOUT_VOTES
from emocap_pretrain.captions.ferplus.dataset import Split, load, records
from emocap_pretrain.captions.ferplus.votes import EMOTIONS, majority

VOTE_NAMES = (*EMOTIONS, "unknown", "NF")
USAGES = ("Training", "PublicTest", "PrivateTest")
FACES = 180


def write_set(folder: Path, votes: np.ndarray) -> tuple[Path, Path]:
    """Writes a synthetic set: noise for images, drawn landmarks, and the given votes; returns both paths."""
    rng = np.random.default_rng(1)
    names = np.array([f"fer{number:07d}.png" for number in range(FACES)])
    npz, landmarks = folder / "set.npz", folder / "landmarks.npz"
    np.savez(
        npz,
        images=rng.integers(0, 256, (FACES, 48, 48), np.uint8),
        votes=votes.astype(np.uint8),
        vote_names=np.array(VOTE_NAMES),
        usage=np.array([USAGES[number % 3] for number in range(FACES)]),
        name=names,
    )
    points = crowd(FACES, seed=3)
    spread = np.full(FACES, 0.01)
    spread[5] = 0.3
    points[6] = np.nan
    spread[6] = np.nan
    backwards = slice(None, None, -1)
    np.savez(
        landmarks,
        name=names[backwards],
        landmarks=points[backwards].astype(np.float32),
        found=np.isfinite(points[backwards, 0, 0]),
        spread=spread[backwards],
    )
    return npz, landmarks


def random_votes(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(10, rng.dirichlet(np.full(10, 0.3))) for _ in range(FACES)])


def records_of(files: tuple[Path, Path], split: Split) -> list[Record]:
    return list(records(load(*files), split))


def by_key(found: list[Record]) -> dict[str, Record]:
    return {record.key: record for record in found}


def test_a_record_is_a_gray_png_with_caption_and_labels(tmp_path: Path) -> None:
    votes = np.zeros((FACES, 10), int)
    votes[:, 1] = 10
    npz, landmarks = write_set(tmp_path, votes)
    train = records_of((npz, landmarks), "train")
    assert [record.key for record in train] == [f"fer{number:07d}" for number in range(0, FACES, 3)]
    with np.load(npz) as stored, Image.open(io.BytesIO(train[1].image)) as image:
        assert np.array_equal(np.asarray(image), stored["images"][3])
    assert train[0].labels["emotion"] == "happiness"
    assert train[0].labels["share_happiness"] == 1.0
    assert "happiness" in train[0].caption.summary


def test_a_face_without_trusted_landmarks_has_no_local_sentence(tmp_path: Path) -> None:
    npz, landmarks = write_set(tmp_path, random_votes(0))
    assert by_key(records_of((npz, landmarks), "test"))["fer0000005"].caption.local == ()
    votes = np.zeros((FACES, 10), int)
    votes[:, 0] = 10
    npz, landmarks = write_set(tmp_path, votes)
    assert by_key(records_of((npz, landmarks), "train"))["fer0000006"].caption.local == ()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_votes_change_only_the_labels_of_the_test_split(tmp_path: Path, seed: int) -> None:
    first = records_of(write_set(tmp_path, random_votes(0)), "test")
    second = records_of(write_set(tmp_path, random_votes(seed)), "test")
    assert [(a.key, a.image, a.caption) for a in first] == [(b.key, b.image, b.caption) for b in second]
    assert [a.labels for a in first] != [b.labels for b in second]


def test_votes_change_captions_of_the_train_split_but_no_local_sentence(tmp_path: Path) -> None:
    first = by_key(records_of(write_set(tmp_path, random_votes(0)), "train"))
    second = by_key(records_of(write_set(tmp_path, random_votes(1)), "train"))
    both = first.keys() & second.keys()
    assert any(first[key].caption.global_ != second[key].caption.global_ for key in both)
    assert all(first[key].caption.local == second[key].caption.local for key in both)


def test_a_test_caption_names_no_emotion(tmp_path: Path) -> None:
    for record in records_of(write_set(tmp_path, random_votes(0)), "test"):
        assert record.caption.global_ == GLOBAL_WITHOUT_VOTES
        text = " ".join((record.caption.summary, *record.caption.local)).lower()
        assert not any(emotion in text for emotion in EMOTIONS)


def test_the_command_packs_the_three_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, landmarks = write_set(tmp_path, random_votes(0))
    main(["--npz", str(npz), "--landmarks", str(landmarks), "--out", str(tmp_path / "out")])
    assert {path.parent.name for path in tmp_path.glob("out/*/manifest.json")} == {"train", "valid", "test"}
    assert "test: 60 samples" in capsys.readouterr().err


def test_landmarks_of_another_set_are_refused(tmp_path: Path) -> None:
    npz, landmarks = write_set(tmp_path, random_votes(0))
    with np.load(landmarks) as stored:
        np.savez(landmarks, **{name: stored[name][:10] for name in stored.files})
    with pytest.raises(ValueError, match=r"no row for 170 of 180 images.*`emocap landmarks`"):
        load(npz, landmarks)


@pytest.mark.shared_data
def test_the_real_set_has_the_published_class_counts() -> None:
    if "EMOCAP_DATA" not in os.environ:
        pytest.skip("set EMOCAP_DATA to the folder of ferplus_48.npz to run this test")
    with np.load(Path(os.environ["EMOCAP_DATA"]) / "ferplus_48.npz") as stored:
        names = [str(name) for name in stored["vote_names"]]
        test = stored["votes"][stored["usage"] == "PrivateTest"].tolist()
    counts = Counter(majority(dict(zip(names, row, strict=True))) for row in test)
    assert [counts[name] for name in EMOTIONS] == [1090, 893, 396, 384, 273, 18, 83, 16]
