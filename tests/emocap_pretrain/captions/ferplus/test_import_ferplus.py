"""Tests `emocap import` on small tables in the form of FER2013 and FER+. The images are noise."""

import io
import shutil
from collections import Counter

import numpy as np
import pytest
from cli_calls import called
from emocap_shards.annotation import load_annotation
from emocap_shards.library import Library
from landmark_cases import crowd
from pages import ROOT, shown_on
from PIL import Image

from emocap_pretrain.captions.ferplus.__main__ import main
from emocap_pretrain.captions.ferplus.dataset import labels
from emocap_pretrain.captions.ferplus.votes import EMOTIONS
from emocap_pretrain.faces.images import open_images

VOTE_NAMES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
USAGES = ("Training", "Training", "PublicTest", "PrivateTest")
ROWS = 100
NAMELESS = 7


@pytest.fixture
def tables(tmp_path):
    """Writes fer2013.csv and fer2013new.csv; returns their paths, the images and the votes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 48, 48), np.uint8)
    votes = np.stack([rng.multinomial(10, rng.dirichlet(np.full(10, 0.3))) for _ in range(ROWS)])
    ours, theirs = ["emotion,pixels,Usage"], ["Usage,Image name," + ",".join(VOTE_NAMES)]
    for number in range(ROWS):
        usage = USAGES[number % 4]
        ours.append(f"{number % 7},{' '.join(map(str, images[number].ravel()))},{usage}")
        # The numbers in the names of FER+ are not those of the rows.
        name = "" if number == NAMELESS else f"fer{number + 100:07d}.png"
        theirs.append(f"{usage},{name}," + ",".join(map(str, votes[number])))
    table, new = tmp_path / "fer2013.csv", tmp_path / "fer2013new.csv"
    table.write_text("\n".join(ours) + "\n")
    new.write_text("\n".join(theirs) + "\n")
    return table, new, images, votes


def read(url):
    """Returns (key, pixels, captions, labels) of each sample."""
    library = Library.open(str(url))
    found = library.fetch(np.arange(sum(library.samples)), direct=True)
    return [
        (each.key, np.asarray(Image.open(io.BytesIO(each.image))), *load_annotation(each.annotation)) for each in found
    ]


def landmarks_of(path, names):
    """Writes landmarks of a face that several passes agree on, for images with these names."""
    points = crowd(len(names), seed=3).astype(np.float32)
    spread = np.full(len(names), 0.01, np.float32)
    np.savez(path, name=np.array(names), landmarks=points, found=np.ones(len(names), bool), spread=spread)
    return path


def test_fer2013_is_packed_from_its_table_with_the_names_of_its_classes(tables, tmp_path):
    table, _, images, _ = tables
    done = called("import", "fer2013", table, tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "out" / "train")
    assert [key for key, *_ in found][:3] == ["fer2013-00000", "fer2013-00001", "fer2013-00004"]
    assert all((pixels == images[int(key[-5:])]).all() for key, pixels, *_ in found)
    assert not any(captions for _, _, captions, _ in found)
    names = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    assert [given for *_, given in found] == [{"emotion": names[int(key[-5:]) % 7]} for key, *_ in found]
    assert [len(read(tmp_path / "out" / split)) for split in ("train", "valid", "test")] == [50, 25, 25]


def test_ferplus_has_the_votes_as_labels_and_leaves_out_images_without_a_face(tables, tmp_path):
    table, new, images, votes = tables
    done = called("import", "ferplus", table, new, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "left out 1 row without a name in FER+" in " ".join(done.output.split())
    found = read(tmp_path / "out" / "test")
    expected = [number for number in range(3, ROWS, 4) if number != NAMELESS]
    assert [key for key, *_ in found] == [f"fer{number + 100:07d}" for number in expected]
    for number, (_, pixels, captions, given) in zip(expected, found, strict=True):
        assert (pixels == images[number]).all()
        assert not captions
        assert given == labels(dict(zip(VOTE_NAMES, votes[number].tolist(), strict=True)))
    assert Counter(EMOTIONS) == Counter(VOTE_NAMES[:8])


def test_the_guide_begins_with_labels_and_its_first_commands_can_be_followed(tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    commands = [each.words for each in shown_on(ROOT / "docs/guide.md")]
    first = next(number for number, words in enumerate(commands) if words[1] == "import")
    assert not any("landmarks" in " ".join(words) for words in commands[:first])
    imported, trained, *_ = commands[first:]
    done = called(*imported[1:])
    assert done.exit_code == 0, done.output
    done = called("pretrain", ROOT / trained[2], *trained[3:], "--dry-run")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert "emotion: cross-entropy of 8 classes" in done.stdout


@pytest.mark.parametrize("missing", [("PublicTest",), ("PublicTest", "PrivateTest")])
def test_a_table_without_a_split_is_refused_in_one_line_before_anything_is_written(tables, tmp_path, missing):
    table, new, *_ = tables
    for file in (table, new):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(line for line in lines if not any(usage in line for usage in missing)))
    for words in (("fer2013", table), ("ferplus", table, new)):
        done = called("import", *words, tmp_path / "out")
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert f"fer2013.csv has no image of the usage {' or '.join(missing)}" in line
        assert "35,887 rows" in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("by_row", [False, True], ids=["names of FER+", "rows of the table"])
def test_with_landmarks_the_captions_are_those_of_the_command_for_an_npz(tables, tmp_path, by_row):
    table, new, images, votes = tables
    kept = [number for number in range(ROWS) if number != NAMELESS]
    names = [f"fer{number + 100:07d}.png" for number in kept]
    usage = np.array([USAGES[number % 4] for number in kept])
    npz = tmp_path / "set.npz"
    np.savez(
        npz, images=images[kept], votes=votes[kept].astype(np.uint8), vote_names=VOTE_NAMES, usage=usage, name=names
    )
    landmarks = landmarks_of(tmp_path / "a.npz", names)
    main(["--npz", str(npz), "--landmarks", str(landmarks), "--out", str(tmp_path / "old")])
    if by_row:
        landmarks = landmarks_of(tmp_path / "b.npz", [f"fer2013-{number:05d}" for number in kept])
    done = called("import", "ferplus", table, new, tmp_path / "new", "--landmarks", landmarks)
    assert done.exit_code == 0, done.output
    for split in ("train", "valid", "test"):
        shards = [(tmp_path / place / split / "shard-000000.tar").read_bytes() for place in ("old", "new")]
        assert shards[0] == shards[1]
        assert all(captions for _, _, captions, _ in read(tmp_path / "new" / split))


def test_landmarks_that_cannot_be_used_are_refused_with_the_name_of_their_file(tables, tmp_path):
    table, new, *_ = tables
    few = landmarks_of(tmp_path / "few.npz", [f"fer{number + 100:07d}.png" for number in range(9)])
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros(3))
    cases = ((few, "no row for 91 of 99 images"), (other, "name"), (tmp_path / "none.npz", "No such file"))
    for landmarks, told in cases:
        done = called("import", "ferplus", table, new, tmp_path / "out", "--landmarks", landmarks)
        assert done.exit_code == 1
        output = " ".join(done.output.split())
        assert landmarks.name in output
        assert told in output


def test_landmarks_are_found_in_the_rows_of_the_table_under_the_same_names(tables):
    table, _, images, _ = tables
    found = open_images(str(table))
    pictures = list(found.slice(5, 9).pictures(None, None))
    assert [each.name for each in pictures] == [f"fer2013-{number:05d}" for number in range(5, 9)]
    assert (pictures[0].content == images[5][..., None]).all()
    assert pictures[0].content.shape == (48, 48, 3)
    assert sum(found.weights()) == ROWS


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (",Usage", ",Split", "fer2013.csv has no column 'usage'"),
        (",PublicTest", ",Other", "are of different usages"),
        ("3,", "9,", "fer2013.csv:5: the emotion '9' is not a number of 0 to 6"),
        (" 2", " 999", "the pixels are not 48 x 48 numbers of 0 to 255"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_a_short_line(tables, tmp_path, old, new, told):
    table, votes, *_ = tables
    lines = table.read_text().splitlines()
    lines = [line.replace(old, new, 1) if old != "3," or line.startswith("3,") else line for line in lines]
    table.write_text("\n".join(lines) + "\n")
    done = called("import", "ferplus", table, votes, tmp_path / "out")
    assert done.exit_code != 0
    output = " ".join(done.output.split())
    assert told in output
    assert len(output) < 400


def saved(folder, image, kind="PNG"):
    folder.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder, kind)


def test_ferplus_is_packed_from_the_folders_that_its_program_writes(tables, tmp_path):
    table, new, images, _ = tables
    folders = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    names = [f"{folders[USAGES[number % 4]]}/fer{number + 100:07d}.png" for number in range(ROWS) if number != NAMELESS]
    for name in names:
        saved(tmp_path / "data" / name, images[int(name[-11:-4]) - 100])
    landmarks = landmarks_of(tmp_path / "landmarks.npz", names)
    by_name = landmarks_of(tmp_path / "by_name.npz", [name.split("/")[1] for name in names])
    assert called("import", "ferplus", table, new, tmp_path / "a", "--landmarks", by_name).exit_code == 0
    done = called("import", "ferplus", tmp_path / "data", new, tmp_path / "b", "--landmarks", landmarks)
    assert done.exit_code == 0, done.output
    assert "left out 1 row without a name in FER+" in " ".join(done.output.split())
    for split in ("train", "valid", "test"):
        shards = [(tmp_path / place / split / "shard-000000.tar").read_bytes() for place in ("a", "b")]
        assert shards[0] == shards[1]
    saved(tmp_path / "data/FER2013Train/fer0000100.png", images[0, :40])
    done = called("import", "ferplus", tmp_path / "data", new, tmp_path / "c")
    assert "fer0000100.png is not a grey image of 48 x 48 pixels" in " ".join(done.output.split())


def test_fer2013_is_packed_from_folders_of_its_classes(tables, tmp_path):
    *_, images, _ = tables
    names = ("train/angry/Training_7.png", "train/happy/Training_7.png", "test/sad/PublicTest_1.png")
    for number, name in enumerate((*names, "test/neutral/PrivateTest_2.png")):
        saved(tmp_path / "data" / name, images[number])
    (tmp_path / "data/README").touch()
    done = called("import", "fer2013", tmp_path / "data", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "left out 1 other file" in " ".join(done.output.split())
    found = {split: read(tmp_path / "out" / split) for split in ("train", "valid", "test")}
    labels = {key: given["emotion"] for split in found.values() for key, *_, given in split}
    assert labels == {
        "train_angry_Training_7": "anger",
        "train_happy_Training_7": "happiness",
        "test_sad_PublicTest_1": "sadness",
        "test_neutral_PrivateTest_2": "neutral",
    }
    assert (found["valid"][0][1] == images[2]).all()
    for name, told in (
        ("train/x/Training_1.png", "its folder is none of"),
        ("train/sad/1.png", "does not say the split"),
    ):
        saved(tmp_path / "data" / name, images[0])
        done = called("import", "fer2013", tmp_path / "data", tmp_path / "again")
        assert told in " ".join(done.output.split())
        (tmp_path / "data" / name).unlink()


def test_an_import_does_not_write_over_a_dataset_and_resumes_after_a_finished_one(tables, tmp_path):
    table, *_ = tables
    assert called("import", "fer2013", table, tmp_path / "out").exit_code == 0
    done = called("import", "fer2013", table, tmp_path / "out")
    assert done.exit_code != 0
    assert "holds these datasets already" in " ".join(done.output.split())
    before = (tmp_path / "out/test/shard-000000.tar").read_bytes()
    # An import that was killed after the first dataset leaves this.
    shutil.rmtree(tmp_path / "out/valid")
    shutil.rmtree(tmp_path / "out/test")
    assert called("import", "fer2013", table, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/test/shard-000000.tar").read_bytes() == before
    shutil.rmtree(tmp_path / "out/test")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "6" + lines[1][1:], *lines[2:]]))
    done = called("import", "fer2013", table, tmp_path / "out")
    assert "train holds another dataset" in " ".join(done.output.split())
