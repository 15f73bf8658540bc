"""Tests the use of a model from Python, with a real checkpoint of tiny towers."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.stream import Stream
from PIL import Image
from pretrain_fakes import changed, forged

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import center_crop
from emocap_pretrain.errors import CheckpointError, ConfigError, DataError
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.model import EmotionModel
from emocap_pretrain.interop.restore import restore

RANDOM = np.random.default_rng(0)


def a_picture(height: int = 20, width: int = 24) -> Any:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(picture: Any, path: Path) -> Path:
    Image.fromarray(picture).save(path)
    return path


def embedder_of(run: Config) -> Embedder:
    restored = restore(run.url)
    return Embedder(restored.model, restored.tokenizer)


def test_the_vectors_are_those_of_an_evaluation(run, model, faces):
    embedder = embedder_of(run)
    samples = list(Stream(url=faces, global_batch=1).read(range(5)))
    expected = embedder.images([embedder.cropped(sample) for sample in samples]).numpy()
    found = model.embed_images([sample.image for sample in samples])
    assert (found == expected).all()
    assert found.dtype == np.float32
    texts = [sample.caption.global_ for sample in samples]
    assert (model.embed_texts(texts) == embedder.texts(texts).numpy()).all()


def test_vectors_have_unit_length(model):
    for vectors in (model.embed_images([a_picture(), a_picture()]), model.embed_texts(["a face", "joy"])):
        assert vectors.shape == (2, model.embedding_size) == (2, 16)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-6)


def test_images_come_from_files_arrays_and_pillow(model, tmp_path):
    picture = a_picture()
    file = file_of(picture, tmp_path / "a.png")
    found = model.embed_images([file, str(file), picture, Image.fromarray(picture), Image.open(file)])
    assert (found == found[0]).all()


def test_an_array_may_be_a_mirrored_or_reversed_view(model):
    picture = a_picture()
    views = (picture[:, ::-1], picture[::-1], picture[:, :, ::-1])
    assert (model.embed_images(views) == model.embed_images([view.copy() for view in views])).all()


def test_an_iterable_may_write_one_image_after_another_into_the_same_array(model):
    pictures = [a_picture(16, 16) for _ in range(5)]
    frame = np.zeros((16, 16, 3), np.uint8)

    def frames():
        for picture in pictures:
            frame[:] = picture
            yield frame

    assert (model.embed_images(frames()) == model.embed_images(pictures)).all()


def test_an_array_of_images_is_several_images(model):
    pictures = np.stack([a_picture(), a_picture()])
    assert (model.embed_images(pictures) == model.embed_images(list(pictures))).all()


def test_grey_images_have_equal_colours(model):
    grey = a_picture()[:, :, 0]
    colours = np.stack([grey] * 3, axis=2)
    found = model.embed_images([grey, Image.fromarray(grey), colours])
    assert (found == found[0]).all()


def test_images_of_pillow_are_turned_upright_and_laid_on_white(model):
    picture = a_picture()
    turned = Image.fromarray(np.rot90(picture).copy())
    turned.getexif()[0x0112] = 6  # It must be turned by 90 degrees clockwise.
    clear = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    clear[:4, :, 3] = 0
    white = picture.copy()
    white[:4] = 255
    pairs = ((turned, picture), (Image.fromarray(clear), white))
    for given, expected in pairs:
        first, second = model.embed_images([given, expected])
        assert (first == second).all()


def test_nothing_gives_no_vectors(model):
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, 16)
    assert model.classify([], ["joy", "fear"]).probabilities.shape == (0, 2)


def test_an_iterable_is_consumed_batch_by_batch(model):
    taken: list[int] = []

    def pictures():
        for number in range(100):
            taken.append(number)
            yield a_picture()

    batches = model.embed_image_batches(pictures(), batch_size=4)
    assert next(batches).indices == [0, 1, 2, 3]
    assert len(taken) <= 3 * 4
    assert next(batches).indices == [4, 5, 6, 7]


def test_an_unreadable_image_ends_the_call_with_its_name(model, tmp_path):
    good, broken, missing = file_of(a_picture(), tmp_path / "a.png"), tmp_path / "b.jpg", tmp_path / "c.jpg"
    broken.write_bytes(good.read_bytes()[:60])
    (tmp_path / "folder").mkdir()
    wrong = {
        broken: "cannot be decoded",
        missing: "No such file",
        tmp_path / "folder": "directory",
        "a\0b": "null byte",
    }
    for path, reason in wrong.items():
        with pytest.raises(DataError, match=reason) as caught:
            model.embed_images([good, path])
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        torch.zeros(4, 4, 3),
        None,
        Image.new("F", (4, 4)),
    ],
)
def test_a_wrong_image_is_refused_by_its_number(model, wrong):
    with pytest.raises(DataError, match=r"^image 1: ") as caught:
        model.embed_images([a_picture(), wrong])
    assert "\n" not in str(caught.value)


def test_unreadable_images_can_be_skipped_and_recorded(model, tmp_path):
    pictures = [a_picture() for _ in range(5)]
    missing = tmp_path / "x.jpg"
    skipped: list[tuple[int, str]] = []
    batches = model.embed_image_batches(
        [missing, *pictures[:3], missing, *pictures[3:]],
        batch_size=2,
        skip=lambda number, error: skipped.append((number, str(error))),
    )
    numbers, vectors = zip(*batches, strict=True)
    assert numbers == ([1, 2], [3, 5], [6])
    assert np.abs(np.concatenate(vectors) - model.embed_images(pictures)).max() < 1e-6
    assert skipped == [(0, f"{missing}: No such file or directory."), (4, f"{missing}: No such file or directory.")]


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), a_picture(), a_picture()[:, :, 0], Image.new("L", (4, 4))])
def test_a_single_image_or_text_in_place_of_a_list_is_refused(model, single):
    with pytest.raises(DataError, match=r"write \[image\]"):
        model.embed_images(single)
    with pytest.raises(DataError, match=r"write \[text\]"):
        model.embed_texts("a face")
    with pytest.raises(DataError, match="text 1 has the type NoneType instead of str"):
        model.embed_texts(["a face", None])
    with pytest.raises(DataError, match="text 0 has the type list instead of str"):
        model.attention_map(a_picture(), ["a face"])
    with pytest.raises(ConfigError, match="must be at least 1"):
        model.embed_images([], batch_size=0)


def test_classes_are_scored_with_the_templates_of_an_evaluation(run, model):
    pictures = [a_picture() for _ in range(3)]
    found = model.classify(pictures, ["joy", "fear"])
    templates = EvaluationConfig().templates
    images = model.embed_images(pictures)
    cosines = np.stack(
        [
            np.mean([images @ model.embed_texts([text.replace("{}", word)])[0] for text in templates], 0)
            for word in ("joy", "fear")
        ],
        axis=1,
    )
    assert found.classes == ("joy", "fear")
    assert found.cosines == pytest.approx(cosines, abs=1e-6)
    scale = float(restore(run.url).model.logit_scale.detach().exp())
    scores = np.exp(scale * cosines)
    assert found.probabilities == pytest.approx(scores / scores.sum(1, keepdims=True), abs=1e-5)
    assert found.best == [found.classes[number] for number in cosines.argmax(1)]
    (first, second), *_ = found.top(2)
    assert first[0] == found.best[0]
    assert first[1] + second[1] == pytest.approx(1)
    assert first[1] >= second[1]
    assert [len(row) for row in found.top(1)] == [1, 1, 1]


def test_a_class_may_have_several_words_and_whole_sentences(model):
    picture = [a_picture()]
    words = {"joy": ["joy", "delight"], "fear": "a face full of fear"}
    found = model.classify(picture, words, templates=["{}"])
    image = model.embed_images(picture)[0]
    joy, delight, fear = model.embed_texts(["joy", "delight", "a face full of fear"]) @ image
    assert found.classes == ("joy", "fear")
    assert found.cosines[0] == pytest.approx([(joy + delight) / 2, fear], abs=1e-6)


def test_the_vectors_of_prompts_are_averaged_in_place_of_their_cosines_if_wanted(model):
    picture = [a_picture()]
    words = {"joy": ["joy", "delight"], "fear": "a face full of fear"}
    found = model.classify(picture, words, templates=["{}"], ensemble="embeddings")
    image = model.embed_images(picture)[0]
    joy, delight, fear = model.embed_texts(["joy", "delight", "a face full of fear"])
    mean = (joy + delight) / np.linalg.norm(joy + delight)
    assert found.cosines[0] == pytest.approx([mean @ image, fear @ image], abs=1e-6)
    with pytest.raises(ConfigError, match="ensemble='mean': give logits or embeddings"):
        model.classify(picture, words, ensemble="mean")


@pytest.mark.parametrize(
    ("prompts", "templates", "message"),
    [
        ("joy", None, "single text 'joy'"),
        ([], None, "no class is given"),
        ([1], None, "the classes"),
        (["joy", "fear", "joy"], None, "'joy' is given twice"),
        ({"joy": []}, None, r"the classes \(joy\)"),
        ({"joy": 3}, None, r"the classes \(joy\)"),
        (["joy"], ["a face"], r"has no \{\}"),
        (["joy"], [], "at least one text"),
        (["joy"], "{}", "at least one text"),
    ],
)
def test_wrong_classes_and_templates_are_refused_in_one_line(model, prompts, templates, message):
    with pytest.raises(ConfigError, match=message) as caught:
        model.classify([a_picture()], prompts, templates=templates)
    assert "\n" not in str(caught.value)


def test_the_map_is_the_softmax_of_sharp_cosines_on_the_grid_of_patches(run, model):
    picture, sentence = a_picture(), "the brows are drawn together"
    found = model.attention_map(picture, sentence)
    restored = restore(run.url)
    crop = center_crop(picture, 16)
    with torch.inference_mode():
        images = torch.from_numpy(crop.transpose(2, 0, 1).copy())[None]
        patches = restored.model.to_patch(restored.model.image.encode_image(images)[1])[0]
        text = restored.model.to_sentence(restored.model.text.encode_text(restored.tokenizer.encode([sentence], 16)))[0]
        cosines = torch.nn.functional.cosine_similarity(patches, text[None]).view(2, 2)
    assert (found.image == crop).all()
    assert found.cosines == pytest.approx(cosines.numpy(), abs=1e-6)
    sharp = np.exp(run.objective.sharpness * found.cosines)
    assert found.weights == pytest.approx(sharp / sharp.sum(), abs=1e-6)
    large = found.resized()
    assert large.shape == (16, 16)
    assert large.max() == 1
    corners = large[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.argmax() == found.weights.ravel().argmax()


def test_patches_of_one_colour_have_no_weight_if_the_run_left_them_out(tiny_config):
    config = changed(tiny_config, objective__patch_mask={"contrast": 8})
    forged(config, Tokenizer.trained_on(["a face"], 300))
    picture = a_picture(16, 16)
    picture[:8] = 127
    model = emocap.load(config.url, device="cpu")
    weights = model.attention_map(picture, "a face").weights
    assert (weights[0] == 0).all()
    assert weights.sum() == pytest.approx(1)
    empty = model.attention_map(np.zeros((16, 16, 3), np.uint8), "a face")
    assert (empty.resized() == 0).all()


def test_there_is_no_map_of_a_model_that_was_trained_without_patches(tiny_config):
    config = changed(tiny_config, objective__local=0)
    forged(config, Tokenizer.trained_on(["a face"], 300))
    with pytest.raises(ConfigError, match=r"objective\.local=0"):
        emocap.load(config.url, device="cpu").attention_map(a_picture(), "a face")


def test_there_is_no_map_of_patches_that_are_not_a_square(run, model, monkeypatch):
    whole = type(model._embedder.model.image).encode_image

    def three(self: Any, images: Any) -> Any:
        pooled, patches = whole(self, images)
        return pooled, patches[:, :3]

    monkeypatch.setattr(type(model._embedder.model.image), "encode_image", three)
    with pytest.raises(ConfigError, match="3 patches, which are not a square grid"):
        model.attention_map(a_picture(), "a face")


def test_a_run_is_loaded_by_path_and_step(run, monkeypatch):
    assert emocap.load(Path(run.url), step=1, device="cpu").step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; steps: 1\."):
        emocap.load(run.url, step=7)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        emocap.load(Path(run.url) / "absent")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        emocap.load(run.url, device="cuda")
    with pytest.raises(CheckpointError, match="keeps no moving average"):
        emocap.load(run.url, weights="ema")
    with pytest.raises(ConfigError, match="give auto, cpu or cuda"):
        emocap.load(run.url, device="gpu")  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("HOME", str(Path(run.url).parent))
    assert isinstance(emocap.load("~/run"), EmotionModel)


def test_jpeg_files_are_decoded_as_training_decodes_them(model, tmp_path):
    file = io.BytesIO()
    Image.fromarray(a_picture(40, 40)).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    from emocap_shards.decode import decode_image

    found = model.embed_images([tmp_path / "a.jpg", decode_image(file.getvalue())])
    assert (found[0] == found[1]).all()


def test_several_threads_may_use_one_model(model):
    texts = [["joy"], ["a clearly happy face and a neutral face"], ["anger, fear, joy", "a face"]]
    sentences = ["the brows are drawn together " * 3, "joy", "a neutral face"]
    picture = a_picture()

    def work(number: int) -> tuple[Any, Any]:
        kind = number % 3
        return model.embed_texts(texts[kind]), model.attention_map(picture, sentences[kind]).weights

    alone = [work(number) for number in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(work, range(60))):
            for one, other in zip(found, alone[number % 3], strict=True):
                assert (one == other).all()
