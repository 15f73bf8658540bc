"""Tests models of transformers that are opened for evaluation only: image models, and pairs other than CLIP and SigLIP.

The expected vectors are those that the library computes from images that its own image processor has prepared.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cli_calls
import numpy as np
import pytest
import torch
from families import FAMILIES
from test_evaluated_models import packed, squares, with_tokenizer  # noqa: F401 - two fixtures
from torch.nn.functional import normalize
from transformers_models import IMAGE_MODELS, PAIRS, PIXELS, VIT, image_model, pair_model, spread

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.run_tasks import extraction
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.opened import open_model
from emocap_pretrain.interop.transformers_models import IMAGE_KINDS, PAIR_KINDS

# After the towers, which let torchvision import beside a CPU build of torch.
from transformers import (  # isort: skip
    BitImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    SiglipImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

STATISTICS: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
evaluate, printed = partial(cli_calls.called, "evaluate"), partial(cli_calls.printed, "evaluate")


def squared(pixels: int) -> Any:
    """Stretches the whole image, with the bilinear filter."""
    return ViTImageProcessor(size={"height": pixels, "width": pixels}, resample=2, **STATISTICS)


def cut(pixels: int) -> Any:
    """Resizes the central square to more pixels, and cuts off its margin. The margin is odd."""
    size = {"height": pixels, "width": pixels}
    return BitImageProcessor(size={"shortest_edge": pixels + 5}, crop_size=size, resample=1, **STATISTICS)


def convnext(pixels: int) -> Any:
    return ConvNextImageProcessor(size={"shortest_edge": pixels}, crop_pct=0.8, resample=3, **STATISTICS)


def efficientnet(pixels: int) -> Any:
    size = {"height": pixels + 8, "width": pixels + 8}
    more: dict[str, Any] = {"do_center_crop": True, "rescale_offset": True, "rescale_factor": 1 / 127.5, "resample": 0}
    return EfficientNetImageProcessor(size=size, crop_size={"height": pixels, "width": pixels}, **more, **STATISTICS)


PROCESSORS: dict[str, Callable[[int], Any]] = {
    "dinov2": cut,
    "dinov2_with_registers": cut,
    "convnext": convnext,
    "resnet": convnext,
    "efficientnet": efficientnet,
    "align": efficientnet,
    "flava": cut,
}


def images() -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, (41, 41, 3), dtype=np.uint8) for _ in range(3)]


def saved(model: Any, processor: Any, folder: Path) -> Callable[[], torch.Tensor]:
    """Writes a model and its image processor, and returns a function that prepares `images` with the processor."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return lambda: processor(images=images(), return_tensors="pt")["pixel_values"]


def pooled(embedder: Embedder) -> torch.Tensor:
    return embedder.crops_and_pooled([embedder.square(each) for each in images()])[1]


def theirs(kind: str, output: Any) -> torch.Tensor:
    """Returns the vectors by the rule in docs/evaluation.md."""
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    if kind in ("data2vec-vision", "pvt", "vit_mae", "vit_msn"):  # They have a class token.
        return hidden[:, 0]
    return hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@torch.no_grad()
def test_an_image_model_has_the_vectors_that_its_library_computes(kind: str, tmp_path: Path) -> None:
    model, pixels = image_model(kind), 2 * PIXELS if kind.startswith("pvt") else PIXELS
    pixel_values = saved(model, PROCESSORS.get(kind, squared)(pixels), tmp_path)()
    embedder = open_model(str(tmp_path)).embedder
    more: dict[str, Any] = {}
    if kind == "vit_mae":  # It hides patches, in an order of random numbers.
        model.config.mask_ratio, more = 0.0, {"noise": torch.arange(16).expand(3, -1)}
    expected = theirs(kind, model(pixel_values=pixel_values, **more))
    ours = pooled(embedder)
    scale = expected.norm(dim=1).mean()
    torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=1e-5)
    assert (ours[0] - ours[1]).norm() / scale > 1e-4  # Vectors that are all alike would prove nothing.
    with pytest.raises(ConfigError, match="an image tower alone"):
        embedder.texts(["a face"])


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_a_model_with_two_towers_has_the_cosines_that_its_library_computes(name: str, tmp_path: Path) -> None:
    model = pair_model(name)
    pixel_values = saved(model, PROCESSORS.get(name, squared)(PIXELS), tmp_path)()
    fast, texts = with_tokenizer(tmp_path), ["a happy face", "sad", "photo of a face showing this expression"]
    embedder = open_model(str(tmp_path)).embedder
    padded = fast.encode_batch(texts)
    longest, pad = max(len(each.ids) for each in padded), embedder.model.text.pad_id  # pyright: ignore[reportAttributeAccessIssue]
    ids = torch.tensor([each.ids + [pad] * (longest - len(each.ids)) for each in padded])
    mask = torch.tensor([[1] * len(each.ids) + [0] * (longest - len(each.ids)) for each in padded])
    if name == "blip-retrieval":
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
        expected = model(**inputs, use_itm_head=False).itm_score
    else:
        image = model.get_image_features(pixel_values=pixel_values).pooler_output
        text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        # FLAVA projects all tokens, and compares those of the first places.
        image, text = (normalize(each[:, 0] if each.ndim == 3 else each, dim=-1) for each in (image, text))
        expected = image @ text.T
    ours = embedder.crops([embedder.square(each) for each in images()]) @ embedder.texts(texts).T
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours.std() > 1e-3
    # The texts of a batch, and so the padding, do not change a vector.
    torch.testing.assert_close(embedder.texts(texts[:1]), embedder.texts(texts)[:1], rtol=0, atol=1e-6)
    if name not in ("align", "blip-retrieval"):
        assert embedder.model.scale == pytest.approx(float(model.logit_scale.exp()), abs=1e-5)


def test_every_kind_is_tested() -> None:
    assert set(IMAGE_KINDS) == set(IMAGE_MODELS)
    assert set(PAIR_KINDS) == {name.partition("-")[0] for name in PAIRS}


@torch.no_grad()
def test_a_classifier_is_read_without_its_head_and_gives_the_class_token(tmp_path: Path) -> None:
    """A classifier has no pooler. Its weights lie in several files, and its image processor asks for larger images."""
    model = spread(ViTForImageClassification(ViTConfig(**VIT, num_labels=5)))
    processor = squared(PIXELS + 16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    embedder = open_model(str(tmp_path)).embedder
    inputs = processor(images=images(), return_tensors="pt")["pixel_values"]
    expected = model.vit(pixel_values=inputs, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(pooled(embedder), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_siglip_is_resized_with_its_own_filter_also_if_a_processor_holds_the_settings(tmp_path: Path) -> None:
    """A processor of transformers 5 stores the settings of its image processor in its own file."""
    foreign = FAMILIES["siglip"](tmp_path)
    with_tokenizer(tmp_path)
    processor = SiglipImageProcessor(size={"height": 24, "width": 24}, resample=2, **STATISTICS)
    nested = {"processor_class": "SiglipProcessor", "image_processor": processor.to_dict()}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    inputs = processor(images=images(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pooled(open_model(str(tmp_path)).embedder), foreign.image(inputs)[0], rtol=0, atol=1e-5)


def test_a_part_that_the_user_chooses_keeps_its_margin(tmp_path: Path, squares: str) -> None:  # noqa: F811
    saved(image_model("dinov2"), cut(PIXELS), tmp_path)
    embedder = open_model(str(tmp_path)).embedder
    published, chosen = (extraction(EvaluationConfig(url=squares, crop=crop), embedder) for crop in (None, "center"))
    assert (published.resize.side, chosen.resize.side) == (PIXELS + 5, None)
    assert (published.crop, published.resize.filter, chosen.resize.filter) == ("center", "lanczos", "lanczos")


def test_the_command_probes_an_image_model_and_prompts_a_pair(tmp_path: Path, squares: str) -> None:  # noqa: F811
    alone, pair, cache = tmp_path / "vit", tmp_path / "blip", tmp_path / "cache"
    saved(image_model("dinov2"), cut(PIXELS), alone)
    saved(pair_model("blip-retrieval"), squared(PIXELS), pair)
    with_tokenizer(pair)
    splits = ("--data", squares, "--train", squares, "--valid", squares, "--cache", cache)
    tasks = [word for name in ("linear_probe", "few_shot", "nearest_neighbours") for word in ("--task", name)]
    first = printed(alone, *splits, *tasks)
    assert [each["task"] for each in first["results"]] == tasks[1::2]
    files = len(list(cache.rglob("*.safetensors")))
    assert printed(alone, *splits, *tasks) == first
    assert len(list(cache.rglob("*.safetensors"))) == files
    printed(alone, *splits, *tasks, "--crop", "center")  # Other pixels, so other files.
    assert len(list(cache.rglob("*.safetensors"))) == 2 * files
    done = evaluate(alone, "--data", squares, "--task", "zero_shot")
    assert (done.exit_code, "needs a text tower" in done.stderr) == (2, True)
    found = printed(pair, "--data", squares, "--classes", "happy,sad", "--task", "zero_shot", "--task", "retrieval")
    assert [each["task"] for each in found["results"]] == ["zero_shot", "retrieval"]


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def changed_file(name: str, **changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**tree, **changes}))

    return change


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_patches_of_one(folder: Path) -> None:
    """Writes a model that has no weight for a patch's place, so that any number of patches fits its weights."""
    saved(image_model("dinov3_vit", patch_size=1), squared(256), folder)


CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without(PROCESSOR), "has no preprocessor_config.json"),
        (as_pickle, "has no model.safetensors"),
        (changed_file(CONFIG, model_type="timesformer"), "of the kind 'timesformer'"),
        (changed_file(CONFIG, num_hidden_layers=10**9), "the number 1000000000"),
        (changed_file(CONFIG, num_hidden_layers=10**6), "num_hidden_layers=1000000"),
        (changed_file(CONFIG, num_hidden_layers=3), "do not fill"),
        (changed_file(CONFIG, num_hidden_layers=1), "do not fill"),
        (changed_file(CONFIG, image_size=10**5), "images of 100000 pixels"),
        (changed_file(CONFIG, hidden_size=1 << 23), "describes a model of more than"),
        (changed_file(CONFIG, hidden_size=64), "do not fill"),
        (changed_file(CONFIG, num_attention_heads=0), "source="),
        (changed_file(CONFIG, hidden_act="https://example.org/act"), "not a short name"),
        (changed_file(CONFIG, hidden_act="no_such_thing"), "no_such_thing"),
        (changed_file(PROCESSOR, image_processor_type="PoolFormerImageProcessor"), "'PoolFormerImageProcessor' cannot"),
        (changed_file(PROCESSOR, do_resize=False), "keep their own size"),
        (changed_file(PROCESSOR, size={"height": 24, "width": 32}), "24 x 32 pixels are no squares"),
        (changed_file(PROCESSOR, size={"shortest_edge": 32}), "keep their proportions"),
        (changed_file(PROCESSOR, size={"height": 10**6, "width": 10**6}), "(1000000, 1000000) pixels"),
        (with_patches_of_one, "makes more than 16,384 patches"),
        (changed_file(PROCESSOR, resample=4), "cannot be followed"),
        (changed_file(PROCESSOR, image_std=[0.0, 1.0, 1.0]), "cannot normalize"),
        (changed_file(PROCESSOR, image_mean=["a"]), "cannot be followed"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_in_one_line(
    vit: Path, tmp_path: Path, change: Callable[[Path], Any], told: str
) -> None:
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    done = evaluate(tmp_path, "--data", "faces", "--task", "linear_probe")
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    saved(image_model("vit"), squared(PIXELS), folder)
    return folder


def test_a_config_can_choose_neither_code_nor_another_source(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries of a config about classes, kernels and adapters are not read."""
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed_file(
        CONFIG,
        auto_map={"AutoModel": "stranger/code--model.Model"},
        _attn_implementation="stranger/kernel",
        attn_implementation="stranger/kernel",
        _name_or_path="stranger/model",
        quantization_config={"quant_method": "stranger"},
    )(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger/base"}))
    opened: list[Sequence[Any]] = []
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *given, **_: opened.append(given))
    torch.testing.assert_close(
        pooled(open_model(str(tmp_path)).embedder), pooled(open_model(str(vit)).embedder), rtol=0, atol=0
    )
    assert opened == []
