"""Tests `model.from` as a user sees it: through the config, the table of loaded tensors, and `emocap_pretrain.load`."""

import json
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.store import open_store
from families import FAMILIES, HF_TEXT, clip_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

import emocap_pretrain as emocap
import emocap_torchvision
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop import starting_point
from emocap_pretrain.interop.load import load_source
from emocap_pretrain.interop.report import COLUMNS
from emocap_pretrain.interop.settings import completed
from emocap_pretrain.interop.source import clip_tokenizer, is_foreign, open_source, source_of
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training.build import build_model

emocap_torchvision.install()
import open_clip.tokenizer  # noqa: E402 - after emocap_torchvision
from transformers import CLIPTokenizer  # noqa: E402

WORDS = ["<pad>", "</s>", "a", "face", "happy", "sad", "END"]


def with_tokenizer(folder: Path, **config: Any) -> Path:
    """Adds a tokenizer with a few words to the folder of a model."""
    fast = FastTokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return with_tokenizer(FAMILIES["clip"](tmp_path_factory.mktemp("clip")).path)


def config_from(tmp_path: Path, source: Path, *more: str) -> Config:
    data = tmp_path / "data"
    (tmp_path / "run.yaml").write_text("{steps: 2, global_batch: 4}")
    named = (f"url={tmp_path / 'run'}", f"data.url={data}", "name=test", f"model.from={source}")
    return load(tmp_path / "run.yaml", [*named, *more])


# The config


def test_the_weights_give_every_setting_that_the_user_leaves_out(clip, tmp_path):
    model = completed(config_from(tmp_path, clip, "model.image.pixels=40")).model
    assert (model.embedding, model.image.pixels, model.text.tokenizer) == (20, 40, "from")
    assert model.text.architecture.tokens == HF_TEXT["vocab_size"]
    assert model.text.lengths.by_part == {"global": 16, "local": 16, "summary": 16}
    table = StartingPoint(model).check(completed(config_from(tmp_path, clip)).objective).table()
    assert "missing      0" in table


def test_a_run_continues_after_its_source_was_deleted_also_by_a_relative_path(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip, "model")
    first = completed(config_from(tmp_path, Path("model"), "model.image.pixels=40"))
    RunFolder(open_store(first.url)).write_run(first, "run-id")
    shutil.rmtree("model")
    again = completed(config_from(tmp_path, Path("model"), "model.image.pixels=40"))
    assert again.stored() == first.stored()
    assert RunFolder(open_store(first.url)).run_id(again) == "run-id"
    with pytest.raises(ConfigError, match=r"model\.from=other: there is no such file"):
        completed(config_from(tmp_path, Path("other")))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.embedding=24", "visual_projection.weight has [20, 64], the tower [24, 64]"),
        ("model.text.architecture.layers=1", "text_model.encoder.layers.1"),
        ("model.text.architecture.layers=3", "encoder.layers.2"),
        ("model.image.options={depth: 1}", "vision_model.encoder.layers.1"),
        ("model.image.pixels=36", "not a multiple of the patch size 8"),
        ("model.image.pretrained=hub", "leave model.image.pretrained out"),
        ("model.text.architecture.positions=10", "model.text.lengths: 16 tokens"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(clip, tmp_path, setting, expected):
    def start() -> None:
        config = completed(config_from(tmp_path, clip, setting))
        StartingPoint(config.model).check(config.objective)

    with pytest.raises(ConfigError) as refused:
        start()
    assert expected in str(refused.value)


def test_more_positions_are_made_in_the_way_that_the_user_chooses(clip, tmp_path):
    more = ("model.text.architecture.positions=60", "model.text.lengths.summary=50")
    tables = {}
    for how in ("interpolate", "stretch"):
        config = completed(config_from(tmp_path, clip, *more, f"model.text.extend_positions={how}"))
        tables[how] = StartingPoint(config.model).check(config.objective)
        assert "position_embedding.weight [16, 48] to [60, 48]" in " ".join(tables[how].resized)


def test_a_starting_point_opens_its_source_once(clip, tmp_path, monkeypatch):
    config = completed(config_from(tmp_path, clip))
    opened = []
    monkeypatch.setattr(starting_point, "source_of", lambda model: opened.append(model) or source_of(model))
    start = StartingPoint(config.model)
    model = build_model(config, start.tokenizer(train=list).vocabulary, text_architecture=start.text_architecture)
    assert start.load_into(model) == start.check(config.objective)
    assert start.parent is None
    assert opened == [config.model]


# The table


def test_the_table_says_what_became_of_every_tensor_in_80_columns(clip):
    lines = load_source(str(clip), key="model.from").report.table().splitlines()
    assert lines[0] == f"Weights: model.from={clip}"
    assert [re.split(r"\s{2,}", line.strip())[0] for line in lines if not line.startswith(" " * 10)][1:] == [
        "CLIPModel of transformers",
        "loaded",
        "resized",
        "copied",
        "new",
        "left out",
        "missing",
    ]
    assert "image 31, text 36, to_image 1, to_text 1" in lines[2]
    assert all(len(line) <= COLUMNS for line in lines[1:])


def test_a_scale_above_the_bound_is_said_with_both_numbers(tmp_path):
    model = clip_model()
    with torch.no_grad():
        model.logit_scale.fill_(4.7632)  # That of a published SigLIP.
    model.save_pretrained(tmp_path)
    found = load_source(str(with_tokenizer(tmp_path)), key="model.from")
    (remark,) = found.report.remarks
    assert remark.startswith("the learned scale of these weights is 117.1. The model uses its upper bound 100 until")
    assert found.model.scale == pytest.approx(100.0)


# From Python


def test_a_model_of_another_library_is_used_from_python(clip):
    model = emocap.load(clip)
    pictures = [np.full((30, 40, 3), shade, np.uint8) for shade in (0, 120)]
    assert model.embed_images(pictures).shape == (2, 20)
    assert model.embed_texts(["a happy face", "sad"]).shape == (2, 20)
    assert model.classify(pictures, ["happy", "sad"]).probabilities.shape == (2, 2)
    assert model.attention_map(pictures[1], "a face").weights.shape == (3, 3)
    assert model.step is None


def test_a_name_is_that_of_a_run_unless_another_library_has_written_there(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert all(map(is_foreign, [str(clip), "hf-hub:someone/model", "openai/clip-vit-base-patch32"]))
    assert not any(map(is_foreign, ["s3://bucket/run", f"run:{clip}", str(tmp_path), str(tmp_path / "absent")]))
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        emocap.load(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 4"):
        emocap.load(f"run:{tmp_path}@4")
    with pytest.raises(ConfigError, match="source=runs/absent: there is no such file or folder"):
        emocap.load("runs/absent")
    with pytest.raises(ConfigError, match="leave it out"):
        emocap.load(clip, step=3)


def test_a_file_needs_the_activation_in_python_too(tmp_path):
    made = FAMILIES["open_clip-gelu-file"](tmp_path)
    with pytest.raises(ConfigError, match="in Python the argument activation"):
        emocap.load(made.path)
    with pytest.raises(ConfigError, match="knows 49408 tokens"):  # The file is of a model with 100.
        emocap.load(made.path, activation="gelu")


# Tokenizers


@pytest.fixture(scope="module")
def byte_pairs() -> tuple[Any, Any]:
    return clip_tokenizer(), open_clip.tokenizer.SimpleTokenizer()


CAPTIONS = [
    "A face with a high degree of happiness: raised cheeks, pulled lip corners, and bared teeth.",
    "The inner brows are raised (AU 1, band C); the upper lids aren't.",
    "12.5 % of the people's faces\twere   sad\n",
    "d'Artagnan's smile — « très joyeux », 笑顔 😀 and ÆØÅ",
    "",
    "I'LL they'Re Ünïcödé İstanbul ẞ",
]


def theirs(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]


@pytest.mark.parametrize("text", CAPTIONS)
def test_the_tokens_of_clip_are_those_of_open_clip(byte_pairs, text):
    ours, other = byte_pairs
    ids = ours.encode([text], 200)
    assert ids.ids[0][ids.mask[0]].tolist() == theirs(other, text)
    assert ours.vocabulary.size == 49408


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), max_size=30))
def test_any_plain_text_has_the_tokens_of_open_clip(byte_pairs, text):
    ours, other = byte_pairs
    if "&" in text or "<" in text:  # open_clip also replaces entities of HTML, and its end token has another name.
        return
    ids = ours.encode([text], 200)
    assert ids.ids[0][ids.mask[0]].tolist() == theirs(other, text)


def test_a_tokenizer_that_transformers_has_saved_gives_its_tokens(tmp_path):
    lines = "\n".join(CAPTIONS).lower().split()
    pieces = sorted({letter for line in lines for letter in line})
    letters = ["!", *pieces]
    vocabulary = dict.fromkeys([*letters, *(f"{each}</w>" for each in letters), "ha", "hap"])
    numbered = {each: number for number, each in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    saved = CLIPTokenizer(vocab=numbered, merges=[("h", "a"), ("ha", "p")])
    model = clip_model(text={"vocab_size": len(numbered), "eos_token_id": len(numbered) - 1})
    model.save_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    tokenizer = open_source(str(tmp_path)).read_tokenizer()
    for text in CAPTIONS[:3]:
        ids = tokenizer.encode([text], 500)
        assert ids.ids[0][ids.mask[0]].tolist() == saved(text)["input_ids"]


def test_the_default_tokens_of_transformers_are_no_remark_on_a_siglip(tmp_path, monkeypatch):
    folder = FAMILIES["siglip-cut-pixels"](tmp_path).path
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    for name in ("bos_token_id", "eos_token_id"):  # The published config.json of SigLIP has neither.
        config["text_config"].pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    remarks: list[str] = []
    # The logger of transformers passes no records on, so `caplog` would see none.
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", lambda record: remarks.append(record.getMessage()))
    with suppress(ConfigError):  # The weights have another number of tokens.
        open_source(str(folder))
    assert remarks == []


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "lstrip": False}])
def test_siglip_pads_with_the_token_of_its_tokenizer(tmp_path, token):
    folder = FAMILIES["siglip-cut-pixels"](tmp_path).path  # Its config gives the id 7.
    assert open_source(str(folder)).layout.settings["text"]["pad_id"] == 7
    with_tokenizer(folder, pad_token=token)
    assert open_source(str(folder)).layout.settings["text"]["pad_id"] == 1


def test_a_folder_that_also_holds_the_model_of_another_library_is_read_as_open_clip(tmp_path: Path) -> None:
    # Repositories such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K hold a model for open_clip and for transformers.
    folder = FAMILIES["open_clip-folder"](tmp_path).path
    alone = open_source(str(folder)).layout
    theirs = FAMILIES["clip"](tmp_path / "other").path
    for name in ("model.safetensors", "config.json"):
        shutil.copy(theirs / name, folder / name)
    both = open_source(str(folder))
    assert both.layout.settings == alone.settings
    assert both.open_tensors().shapes.keys() >= {"visual.conv1.weight"}
