"""Tests `emocap import benchmark`: a copy of a benchmark becomes packed datasets with the names of its card."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmark_trees import CODES, build, raf_db, text
from cli_calls import called
from emocap_shards.annotation import load_annotation
from emocap_shards.library import Library
from video_trees import a_frame_folder

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.frames import middles


def read(url: Path) -> list[tuple[str, bytes, list[str], dict[str, str | float]]]:
    """Returns the key, the image, the global captions and the labels of each sample."""
    library = Library.open(str(url))
    found = library.fetch(np.arange(sum(library.samples)), direct=True)
    annotations = [(each, *load_annotation(each.annotation)) for each in found]
    return [
        (each.key, bytes(each.image), [one.global_ for one in texts], labels) for each, texts, labels in annotations
    ]


def test_images_keep_their_bytes_and_classes_have_the_names_of_the_card(tmp_path: Path) -> None:
    copy = raf_db(tmp_path / "raf", 20, missing=3)
    broken = tmp_path / "raf/Image/aligned/test_00005_aligned.jpg"
    broken.write_bytes(b"no image")
    text(tmp_path / "raf/Annotation/manual/test_00006_manu_attri.txt", "0\n" * 5 + "1\n2\n3\n")
    done = called("import", "benchmark", "raf_db", copy.root, tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = " ".join(done.stdout.split())
    assert "left out: 3 x missing image. left out: 1 x cannot be decoded." in lines
    assert "data.captions_from: [raf_db]" in lines
    train, valid, test = (read(tmp_path / "out" / split) for split in ("train", "valid", "test"))
    assert len(train) + len(valid) == 140
    assert 0 < len(valid) < 40
    classes = Counter(labels["emotion"] for _, _, _, labels in test)
    assert classes == Counter(dict.fromkeys(CODES, 20)) - Counter(surprise=4)
    key, image, captions, labels = test[2]
    assert key == "000006_Image_aligned_test_00006_aligned"
    assert image == (tmp_path / "raf/Image/aligned/test_00006_aligned.jpg").read_bytes()
    assert (captions, labels["gender"], labels["race"], labels["age"]) == ([], "female", "Asian", "40-69")
    again = called("import", "benchmark", "raf_db", copy.root, tmp_path / "out")
    assert again.exit_code != 0
    assert "holds these datasets already" in again.stderr


def test_a_video_gives_some_of_its_frames_in_the_fold_that_is_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "dfew"
    for fold, label in ((1, 1), (2, 7)):
        for split in ("train", "test"):
            text(root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv", f"video_name,label\n1,{label}\n")
    a_frame_folder(root / "Clip/jpg_256/00001", [f"{frame:03d}.jpg" for frame in range(80)])
    words = ("import", "benchmark", "dfew", root, tmp_path / "out", "--frames", "2")
    refused = called(*words)
    assert refused.exit_code == 2
    assert "DFEW has 5 folds: give --fold, from 1 to 5." in refused.stderr
    assert called("import", "benchmark", "raf_db", root, tmp_path / "out", "--fold", "1").exit_code == 2
    failed = called(*words[:4], tmp_path / "none", "--fold", "3")  # The copy has no list of this fold.
    assert failed.exit_code != 0
    done = called(*words, "--fold", "2")
    assert done.exit_code == 0, done.output
    assert "has no item and is not written" in done.stdout  # One clip is either trained on or held out.
    written = next(split for split in ("train", "valid") if (tmp_path / "out" / split / "manifest.json").exists())
    samples = read(tmp_path / "out" / written)
    assert [labels["emotion"] for _, _, _, labels in samples] == ["fear", "fear"]
    assert [middles(80)[place] for place in (4, 12)] == [22, 62]
    assert len({image for _, image, _, _ in samples}) == 2


@pytest.mark.parametrize(("name", "label"), [("faba_au", "AU12"), ("affectnet_va", "valence"), ("ck_plus", "person")])
def test_numbers_units_and_persons_are_labels(name: str, label: str, tmp_path: Path) -> None:
    card = catalogue.card(name)
    build(card, card.layouts[0], tmp_path / "copy")
    assert called("import", "benchmark", name, tmp_path / "copy", tmp_path / "out").exit_code == 0
    samples = read(tmp_path / "out/test")
    assert all(label in labels for _, _, _, labels in samples)
