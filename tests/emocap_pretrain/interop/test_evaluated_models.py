"""Tests `emocap evaluate` on models of other libraries.

The vectors of a CLIP or SigLIP are compared with those that its library computes. Image towers alone cannot read texts.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cli_calls
import numpy as np
import pytest
import torch
import yaml
from benchmark_trees import raf_db
from cli_calls import torchrun
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from families import END, FAMILIES, POSITIONS, Foreign
from PIL import Image
from pretrain_fakes import changed
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch.nn.functional import normalize

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.errors import ConfigError, EmocapError
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Features, joined
from emocap_pretrain.evaluation.run_tasks import extraction
from emocap_pretrain.inference.classes import class_cosines, class_embeddings
from emocap_pretrain.inference.opened import open_model
from emocap_pretrain.interop.export import portable
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.model.timm_image import timm
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

# After the towers, which let torchvision import beside a CPU build of torch.
from open_clip.transform import PreprocessCfg, image_transform_v2  # isort: skip
from transformers import CLIPImageProcessor, SiglipImageProcessor  # isort: skip

ALONE = RankGroup(Rank(), "cpu", None)
WORDS = ["<pad>", "a", "face", "with", "an", "expression", "of", "happy", "sad", ".", "photo", "showing", "this"]
CLASSES = ("happy", "sad")
evaluate, printed = partial(cli_calls.called, "evaluate"), partial(cli_calls.printed, "evaluate")


def with_tokenizer(folder: Path) -> FastTokenizer:
    """Writes a tokenizer of a few words into the folder of a model, and returns the tokenizer.

    The tokenizer ends each text with the end token of the models (`END`).
    """
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"<end>": END}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="a"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", END)])
    fast.save(str(folder / "tokenizer.json"))
    return fast


def pictures(width: int, height: int) -> list[Image.Image]:
    random = np.random.default_rng(5)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(10)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], str]:
    """Returns a function that packs ten random pictures of a given width and height, and returns their folder.

    The pictures have captions and two classes in turn.
    """

    def pack(width: int, height: int) -> str:
        folder = str(tmp_path_factory.mktemp("pictures"))
        records: list[Record] = []
        for number, picture in enumerate(pictures(width, height)):
            file = io.BytesIO()
            picture.save(file, "PNG")
            name = CLASSES[number % 2]
            caption = Caption(
                f"a {name} face", ("a face", f"{name} expression"), f"this face showing a {name} expression"
            )
            records.append(Record(f"{number}", file.getvalue(), "png", caption, {"emotion": name}))
        write_shards(records, folder, samples_per_shard=5)
        return folder

    return pack


@pytest.fixture(scope="module")
def squares(packed: Callable[[int, int], str]) -> str:
    return packed(24, 24)


def of_transformers(foreign: Foreign, fast: FastTokenizer, kind: str) -> Callable[[Sequence[Image.Image]], Any]:
    """Writes the settings of an image processor of transformers into the folder of a model.

    Returns:
        A function that turns pictures into the input of the model with this processor.
    """
    mean, std = (list(each) for each in foreign.statistics)
    if kind == "clip":
        processor: Any = CLIPImageProcessor(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=mean, image_std=std
        )
    else:
        processor = SiglipImageProcessor(size={"height": 24, "width": 24}, resample=3, image_mean=mean, image_std=std)
    processor.save_pretrained(foreign.path)
    return lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"]


def of_open_clip(foreign: Foreign) -> Callable[[Sequence[Image.Image]], Any]:
    file = foreign.path / "open_clip_config.json"
    settings = json.loads(file.read_text())["preprocess_cfg"]
    # The tiny models of the tests do not tell open_clip their size.
    transform: Any = image_transform_v2(PreprocessCfg(**{**settings, "size": 24}), is_train=False)
    return lambda images: torch.stack([transform(each) for each in images])


MODELS = {
    "clip-gelu-own-statistics": "center",
    "siglip": "whole",
    "open_clip-folder": "center",
    "open_clip-siglip": "center",
}


def opened(name: str, folder: Path) -> tuple[Foreign, FastTokenizer, Callable[[Sequence[Image.Image]], Any]]:
    foreign = FAMILIES[name](folder)
    fast = with_tokenizer(folder)
    if "open_clip" in name:
        return foreign, fast, of_open_clip(foreign)
    return foreign, fast, of_transformers(foreign, fast, name.partition("-")[0])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_of_another_library_has_the_cosines_that_this_library_computes(
    name: str, tmp_path: Path, squares: str, packed: Callable[[int, int], str]
) -> None:
    """The library preprocesses the images and computes the vectors from which the expected cosines follow."""
    foreign, fast, preprocess = opened(name, tmp_path)
    embedder = open_model(str(tmp_path)).embedder
    assert embedder.crop == MODELS[name]
    settings = EvaluationConfig(url=squares, batch=4)
    templates = settings.templates

    def prompt_vectors(word: str) -> torch.Tensor:
        rows = [fast.encode(template.format(word)).ids for template in templates]
        padded = [row + [foreign.pad] * (POSITIONS - len(row)) for row in rows]
        return normalize(foreign.text(torch.tensor(padded)), dim=-1)

    images = normalize(foreign.image(preprocess(pictures(24, 24)))[0], dim=-1)
    theirs = torch.stack([(images @ prompt_vectors(word).T).mean(1) for word in CLASSES], dim=1)
    source = PackedSource(squares)
    features = joined(extraction(settings, embedder).collect(source, ALONE) or [], squares)
    columns = class_embeddings(embedder, templates, {name: (name,) for name in CLASSES})
    ours = class_cosines(features.images, columns)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    counts = np.zeros((2, 2), dtype=int)
    np.add.at(counts, (np.arange(10) % 2, theirs.argmax(1).numpy()), 1)
    (result,) = printed(tmp_path, "--data", squares, "--classes", "happy,sad")["results"]
    assert result["confusion_matrices"][0]["counts"] == counts.tolist()
    # Other proportions: the resize of the library is rounded differently, but the same part of the image is read.
    wide = features_of(embedder, packed(48, 24), "center"), features_of(embedder, packed(48, 24), "whole")
    expected = normalize(foreign.image(preprocess(pictures(48, 24)))[0], dim=-1)
    distances = [float((each.images - expected).norm(dim=1).mean()) for each in wide]
    assert distances[MODELS[name] == "whole"] < 0.3 * distances[MODELS[name] != "whole"]
    # From Python the same part is read, without a setting.
    from_python = torch.from_numpy(emocap.load(tmp_path, device="cpu").embed_images(pictures(48, 24)))
    torch.testing.assert_close(from_python, wide[MODELS[name] == "whole"].images, rtol=0, atol=1e-6)


def test_an_activation_for_a_model_that_has_its_own_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), "hog"):
        with pytest.raises(ConfigError, match="activation=gelu is for a CLIP of another library: leave it out"):
            open_model(name, activation="gelu")


def test_a_path_that_begins_with_a_dot_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmocapError, match=f"{tmp_path}/org/mistyped"):
        open_model("./org/mistyped")


def features_of(embedder: Any, url: str, crop: Any) -> Features:
    settings = EvaluationConfig(url=url, crop=crop)
    return joined(extraction(settings, embedder).collect(PackedSource(url), ALONE) or [], url)


def test_every_task_runs_on_a_clip_and_the_part_of_the_image_belongs_to_the_cached_vectors(
    tmp_path: Path, packed: Callable[[int, int], str], faces: str
) -> None:
    model, wide, cache = tmp_path / "clip", packed(40, 24), tmp_path / "cache"
    model.mkdir()
    opened("clip-gelu-own-statistics", model)
    splits = ("--data", wide, "--train", wide, "--valid", wide, "--cache", cache)
    tasks = [word for name in ("zero_shot", "retrieval", "linear_probe", "few_shot") for word in ("--task", name)]
    first = printed(model, *splits, *tasks)
    assert (first["run"], first["step"], first["weights"]) == (str(model), None, None)
    assert [each["task"] for each in first["results"]] == tasks[1::2]
    names = {score["name"] for score in first["results"][1]["scores"]}
    assert {"recall_at_1_image_to_text", "median_rank_local_text_to_image", "recall_at_5_whole_image_to_text"} <= names
    files = len(list(cache.rglob("*.safetensors")))
    assert printed(model, *splits, *tasks, "--crop", "center") == first
    assert len(list(cache.rglob("*.safetensors"))) == files
    whole = printed(model, *splits, *tasks, "--crop", "whole")
    assert len(list(cache.rglob("*.safetensors"))) == 2 * files
    assert whole["results"] != first["results"]
    plain = printed(model, *splits, *tasks, "--no-normalize")
    assert (plain["normalize"], plain["results"] != first["results"]) == (False, True)
    assert len(list(cache.rglob("*.safetensors"))) == 3 * files
    unit, own = (open_model(str(model)).embedder for _ in range(2))
    unit.read_colours_from_0_to_1()
    image = pictures(24, 24)[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    tower: Any = own.model.image
    features = tower.backbone.forward_features(pixels / 255)
    expected = tower.backbone.forward_head(features, pre_logits=True)
    torch.testing.assert_close(unit.model.image.encode_image(pixels)[0], expected)
    (result,) = printed(model, "--benchmark", f"raf_db={raf_db(tmp_path / 'raf', 2).root}", "--task", "zero_shot")[
        "results"
    ]
    assert (result["benchmark"], result["samples"]) == ("raf_db", 14)
    for option, value in (("--step", 2), ("--weights", "raw"), ("--interpolate", 0.5), ("--curve", "0,1")):
        done = evaluate(model, "--data", wide, option, value)
        assert done.exit_code == 2
        assert " a run" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    shown = evaluate(model, "--data", wide, "--classes", "happy,sad").stdout
    assert "prompted UAR" in shown


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder into which timm has written a small image tower that reads the whole image (`squash`)."""
    folder = tmp_path_factory.mktemp("tower")
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=24, **sizes)
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "input_size": [3, 24, 24], "crop_mode": "squash"}
    config = {"pretrained_cfg": model.pretrained_cfg | statistics, "model_args": sizes}
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def test_an_image_tower_alone_is_probed_and_says_at_once_that_it_reads_no_texts(
    tower: Path, squares: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = ("--data", squares, "--train", squares, "--valid", squares)
    found = printed(tower, *splits, "--task", "linear_probe", "--task", "nearest_neighbours")
    assert [each["task"] for each in found["results"]] == ["linear_probe", "nearest_neighbours"]
    for words in ((), ("--task", "linear_probe", "--task", "retrieval")):
        done = evaluate(tower, *splits, *words)
        assert done.exit_code == 2
        assert "needs a text tower" in done.stderr
        assert "it can do linear_probe, few_shot, nearest_neighbours, ridge_regression" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    copy = raf_db(tmp_path, 3)
    done = evaluate(tower, "--benchmark", f"raf_db={copy.root}", "--json")
    assert done.exit_code == 0, done.stderr
    assert "tasks that need texts are left out: zero_shot, temperature_scaling." in caplog.text
    names = [each["task"] for each in json.loads(done.stdout)["results"]]
    assert names == ["linear_probe", "few_shot", "nearest_neighbours"]
    done = evaluate(tower, "--benchmark", f"raf_db={copy.root}", "--task", "zero_shot")
    assert (done.exit_code, "zero_shot needs a text tower" in done.stderr) == (2, True)
    model = emocap.load(tower)
    theirs = timm.create_model(f"local-dir:{tower}", pretrained=True, num_classes=0).eval()
    images = torch.from_numpy(np.stack(pictures(24, 24))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        wanted = normalize(theirs((images - mean) / std), dim=-1)
    vectors = model.embed_images([np.asarray(each) for each in pictures(24, 24)])
    assert np.abs(vectors - wanted.numpy()).max() < 1e-5
    assert model.embedder.crop == "whole"
    with pytest.raises(ConfigError, match="an image tower alone"):
        model.embed_texts(["a face"])
    assert open_model(str(tower)).embedder.digest() == open_model(str(tower)).embedder.digest()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"depth": 10**9}, "asks for a model with the number 1000000000"),
        ({"depth": 10**5}, "asks for a tower of depth"),
        ({"embed_dim": 1 << 22, "num_heads": 1}, "describes a model of more than"),
        ({"depth": 3}, "these weights do not fill"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_allocates_nothing(
    tower: Path, tmp_path: Path, changes: dict[str, int], told: str
) -> None:
    tree = json.loads((tower / "config.json").read_text())
    tree["model_args"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(tree))
    (tmp_path / "model.safetensors").write_bytes((tower / "model.safetensors").read_bytes())
    done = evaluate(tmp_path, "--data", "faces", "--task", "linear_probe")
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_of_an_unknown_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"stranger.weight": torch.zeros(3)}, file)
    done = evaluate(file, "--data", "faces")
    assert done.exit_code == 2
    assert "give the folder with the weights and their config" in done.stderr


def test_a_run_has_the_same_results_by_its_step_and_as_an_export(
    finished_run: Config, faces: str, tmp_path: Path
) -> None:
    found = printed(finished_run.url, "--data", faces)
    by_step = printed(f"run:{finished_run.url}@2", "--data", faces)
    assert by_step == {**found, "run": f"run:{finished_run.url}@2"}
    portable.write(restore(finished_run.url), tmp_path)
    exported = printed(tmp_path, "--data", faces)
    # An export does not say on which data the run was trained, so it cannot say whether its scores are zero-shot.
    assert [each["scores"] for each in exported["results"]] == [each["scores"] for each in found["results"]]
    assert (exported["run"], exported["step"]) == (str(tmp_path), 2)
    done = evaluate(tmp_path, "--data", faces, "--step", 2)
    assert (done.exit_code, "is an export" in done.stderr) == (2, True)
    assert all(math.isfinite(score["value"]) for each in exported["results"] for score in each["scores"])


@pytest.mark.slow
def test_two_ranks_find_of_a_clip_what_one_finds(finished_run: Config, squares: str, tmp_path: Path) -> None:
    """The config that `--config` names gives only the evaluation settings, here batches of three images.

    The results of two ranks are equal to those of one process.
    """
    model, file = tmp_path / "clip", tmp_path / "own.yaml"
    model.mkdir()
    opened("clip-gelu-own-statistics", model)
    own = changed(finished_run, evaluation__batch=3, evaluation__classes={name: name for name in CLASSES})
    file.write_text(yaml.safe_dump(own.model_dump(mode="json")), encoding="utf-8")
    words = ("evaluate", model, "--config", file, "--data", squares, "--json")
    assert json.loads(torchrun("-m", "emocap_pretrain.cli", *words)) == printed(*words[1:-1])


def test_histograms_of_gradients_are_probed_like_a_tower(squares: str) -> None:
    found = printed("hog", "--data", squares, "--train", squares, "--valid", squares, "--task", "linear_probe")
    assert (found["run"], [each["task"] for each in found["results"]]) == ("hog", ["linear_probe"])
    assert "needs a text tower" in evaluate("hog", "--data", squares).stderr
