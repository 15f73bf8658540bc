from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.sample import Caption, Sample
from emocap_shards.stream import Stream
from PIL import Image

from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.run_folder.results import Baseline, ConfusionMatrix, Curve, Score
from emocap_pretrain.tracking import pictures


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def sample(text: str, colour: tuple[int, int, int] = (255, 0, 0)) -> Sample:
    image = np.broadcast_to(np.array(colour, dtype=np.uint8), (16, 16, 3))
    return Sample(0, "key_$1$", image, Caption(text, (text,), ""), {})


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 2), (8, 4)])
def test_a_preview_has_two_samples_in_a_row_and_is_as_high_as_its_captions(faces, tmp_path, count, rows):
    samples = Stream(url=faces, global_batch=1).read(range(count))
    pictures.preview(samples, tmp_path / "p.png", of="run tiny")
    height, width, _ = decoded(tmp_path / "p.png").shape
    assert width == 2 * pictures.CELL_PX
    assert rows * pictures.FACE_PX < height < rows * 2 * pictures.FACE_PX


def test_a_long_caption_is_shown_whole(tmp_path):
    def height(text: str) -> int:
        pictures.preview([sample(text)], tmp_path / "p.png", of="run tiny")
        return len(decoded(tmp_path / "p.png"))

    assert height("many words " * 200) > height("few words") + 300


def test_a_preview_shows_the_images_of_its_samples(tmp_path):
    pictures.preview([sample("a", (255, 0, 0)), sample("b", (0, 0, 255))], tmp_path / "p.png", of="run tiny")
    pixels = decoded(tmp_path / "p.png").reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == colour).all(1).sum() > 10_000


def test_a_preview_shows_four_forms_of_each_sample_beside_the_stored_one(tmp_path):
    stored = [sample("a", (255, 0, 0)), sample("b", (0, 0, 255))]
    greens = [[sample("a", (0, level, row)) for level in (60, 120, 180, 240)] for row in (0, 9)]
    mirrored = [[replace(each, image=each.image[:, ::-1]) for each in forms] for forms in greens]
    pictures.preview(stored, tmp_path / "p.png", of="run tiny", forms=mirrored)
    page = decoded(tmp_path / "p.png")
    assert page.shape[1] > 2 * pictures.CELL_PX
    for forms in greens:
        for form in forms:
            assert (page == form.image[0, 0]).all(2).sum() == (pictures.FORM_PX - 2) ** 2
    assert (page == (255, 0, 0)).all(2).sum() == pictures.FACE_PX**2


@pytest.mark.parametrize("text", [r"$\nothing{$ like a formula", "$5 and $6", "a_b^c", "% # & \\", "x" * 300, ""])
def test_a_preview_shows_any_text(tmp_path, text):
    pictures.preview([sample(text)], tmp_path / "p.png", of="run tiny")
    assert decoded(tmp_path / "p.png").std() > 0


def test_a_confusion_matrix_is_dark_where_all_samples_of_a_class_are(tmp_path):
    def dark(*counts: tuple[int, int]) -> int:
        matrix = ConfusionMatrix("c", r"$\odd{$: UAR 50 %", ("joy", r"$\odd{$"), counts)
        pictures.confusion(matrix, tmp_path / "c.png", of="run tiny")
        return int((decoded(tmp_path / "c.png") == (8, 48, 107)).all(2).sum())

    half, whole = dark((5, 5), (5, 5)), dark((10, 0), (0, 10))
    assert whole - half > 20_000


def test_a_class_that_does_not_occur_has_an_empty_row(tmp_path):
    pictures.confusion(ConfusionMatrix("c", "Counts", ("a", "b"), ((3, 1), (0, 0))), tmp_path / "c.png", of="run tiny")
    assert decoded(tmp_path / "c.png").std() > 0


def test_the_line_of_a_picture_names_run_step_datasets_and_digests():
    data = [DatasetUse(f"s3://bucket/{name}/train", "0123456789abcdef" * 4, 8, "training") for name in ("a", "b")]
    line = pictures.subject("tiny", data, step=600)
    assert line == "run tiny, step 600 · a/train (0123456789abcdef) + b/train (0123456789abcdef)"
    assert pictures.subject("tiny", data[:1]) == "run tiny · a/train (0123456789abcdef)"


def test_a_picture_shows_its_line(tmp_path):
    def drawn(of: str) -> np.ndarray:
        pictures.preview([sample("a")], tmp_path / "p.png", of=of)
        return decoded(tmp_path / "p.png")

    assert (drawn("run tiny") != drawn("run $large{")).any()


def test_each_task_has_a_plot_of_its_scores_by_share(tmp_path):
    chance = Baseline("chance", 0.1)

    def curve(*values: float) -> Curve:
        points = enumerate(values)
        return Curve(tuple((number / 4, Score("s", r"$\odd{$ score", value, chance)) for number, value in points))

    def drawn(*curves: Curve) -> np.ndarray:
        pictures.interpolation(curves, tmp_path / "i.png", of=r"run $\odd{$ tiny")
        return decoded(tmp_path / "i.png")

    one, two = drawn(curve(0.1, 0.4, 0.3)), drawn(curve(0.1, 0.4, 0.3), curve(0.5, 0.2, 0.9))
    assert len(two) > len(one) + 200
    assert (drawn(curve(0.1, 0.3, 0.4)) != one).any()
