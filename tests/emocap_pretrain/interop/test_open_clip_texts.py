"""Tests models of open_clip whose text tower is an encoder of transformers, against open_clip itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_calls
import numpy as np
import pytest
import torch
from families import POSITIONS, TOKENS, VISION, spread
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from test_evaluated_models import with_tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, MT5Config, XLMRobertaConfig

from emocap_pretrain.inference.opened import open_model

_SIZES: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}
_STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # The projection with two matrices is the default of open_clip.
    "xlm-roberta": (XLMRobertaConfig(**_SIZES, max_position_embeddings=40, pad_token_id=0), {}, {}),
    "bert": (
        BertConfig(**_SIZES, max_position_embeddings=40),
        {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
        {"quick_gelu": True},
    ),
    "mt5": (
        MT5Config(vocab_size=TOKENS, d_model=24, d_kv=12, d_ff=40, num_layers=2, num_heads=2),
        {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": None},
        {"embed_dim": 24},
    ),
    "timm-image-tower": (
        XLMRobertaConfig(**_SIZES, max_position_embeddings=40, pad_token_id=0),
        {},
        {"vision_cfg": {"timm_model_name": "vit_tiny_patch8_siglip_24", "timm_pool": "map", "image_size": 24}},
    ),
}


def written(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Writes a model with random weights into a folder, and returns it with its config.

    open_clip reads the encoder's config from a folder of its own. The config in the folder of the model names the hub.
    """
    encoder, text, more = CASES[name]
    config = {"embed_dim": 20, "vision_cfg": dict(VISION), **more}
    config["text_cfg"] = {"hf_model_pretrained": False, "context_length": POSITIONS, **text}
    encoder.save_pretrained(folder)
    model = spread(CustomTextCLIP(**{**config, "text_cfg": {**config["text_cfg"], "hf_model_name": str(folder)}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config["text_cfg"] |= {"hf_model_name": "stranger/encoder", "hf_tokenizer_name": "stranger/encoder"}
    preprocess = {**_STATISTICS, "interpolation": "bilinear", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model, config


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_cosines_are_those_of_open_clip(name: str, tmp_path: Path) -> None:
    model, _ = written(name, tmp_path)
    fast, texts = with_tokenizer(tmp_path), ["a happy face", "sad", "photo of a face showing this expression"]
    embedder = open_model(str(tmp_path)).embedder
    random = np.random.default_rng(5)
    # Pillow resizes for open_clip and rounds in another way, so these images have the size of the model.
    images = [random.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(3)]
    transform: Any = image_transform_v2(PreprocessCfg(size=24, **_STATISTICS), is_train=False)
    fast.enable_padding(pad_id=0, length=POSITIONS)
    ids = torch.tensor([each.ids for each in fast.encode_batch(texts)])
    image = model.encode_image(torch.stack([transform(Image.fromarray(each)) for each in images]))
    expected = normalize(image, dim=-1) @ normalize(model.encode_text(ids), dim=-1).T
    ours = embedder.crops([embedder.square(each) for each in images]) @ embedder.texts(texts).T
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours.std() > 1e-3
    assert (embedder.crop, embedder.resize.filter) == ("center", "bilinear")
    assert embedder.model.scale == pytest.approx(float(model.logit_scale.exp()), rel=1e-5)


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def with_entries(name: str, *path: str, **changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        section = tree
        for key in path:
            section = section[key]
        section |= changes
        (folder / name).write_text(json.dumps(tree))

    return change


CONFIG, TEXT = "config.json", ("open_clip_config.json", "model_cfg", "text_cfg")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without(CONFIG), "copy the config.json and the tokenizer of that model into the folder"),
        (without("tokenizer.json"), "the folder has no tokenizer.json"),
        (with_entries(CONFIG, model_type="gpt2"), "of the kind 'gpt2'"),
        (with_entries(CONFIG, num_hidden_layers=3), "do not fill"),
        (with_entries(CONFIG, hidden_size=1 << 23), "describes a model of more than"),
        (with_entries(*TEXT, hf_pooler_type="max_pooler"), "hf_pooler_type='max_pooler'"),
        (with_entries(*TEXT, context_length="long"), "context_length='long'"),
        (with_entries("open_clip_config.json", "model_cfg", "vision_cfg", attentional_pool=True), "attentional_pool"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[Path], Any], told: str
) -> None:
    written("xlm-roberta", tmp_path)
    with_tokenizer(tmp_path)
    change(tmp_path)
    done = cli_calls.called("evaluate", tmp_path, "--data", "faces", "--task", "zero_shot")
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
