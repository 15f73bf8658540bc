"""Damages models of other libraries in many ways, and tests that a message of one line refuses each of them."""

import json
import pickle
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Foreign
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop import source as source_module
from emocap_pretrain.interop.load import load_source, load_weights
from emocap_pretrain.interop.source import Source, open_source
from emocap_pretrain.interop.tensors import Tensors, open_tensors
from emocap_pretrain.interop.torchscript import read_torchscript
from emocap_pretrain.model.pair import TowerPair

OPTIONAL = {"logit_bias", "positional_embedding_res"}  # Without them the file is that of another model.


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Foreign:
    return FAMILIES[request.param](tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return FAMILIES["clip"](tmp_path_factory.mktemp("clip")).path


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    return FAMILIES["open_clip-siglip"](tmp_path_factory.mktemp("open_clip")).path


def compared(source: Source) -> None:
    """Compares the weights with the model that they describe, as the dry run does."""
    model = ModelConfig.model_validate({**source.layout.settings, "from": source.name})
    load_weights(without_memory(model.model_dump_json()), source, values=False)


@cache
def without_memory(settings: str) -> TowerPair:
    model = ModelConfig.model_validate_json(settings)
    with torch.device("meta"):
        return TowerPair.of(model, ObjectiveConfig.model_validate({}), Vocabulary(100, 0), weights=False)


def refusal(path: Path, activation: str | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        compared(open_source(str(path), activation=activation))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("model.from=")
    return message


@pytest.mark.parametrize("fault", ["missing", "renamed", "transposed", "extra"])
def test_one_wrong_tensor_is_refused_by_its_name(family, monkeypatch, fault):
    shapes = open_tensors(family.path, "").shapes
    fixed = open_source(str(family.path), activation=family.activation).layout.ignored
    names = sorted(shapes.keys() - OPTIONAL - fixed)
    for name in names[:: 1 + len(names) // 8]:
        changed = dict(shapes)
        if fault == "extra":
            changed[name := f"{name}.more"] = (3,)
        elif fault == "transposed":
            changed[name] = tuple(reversed(shapes[name]))
            if changed == shapes:
                continue
        else:
            changed |= {f"{name}.old": changed.pop(name)} if fault == "renamed" else {}
            changed.pop(name, None)
        found = Tensors(changed, lambda names: {each: torch.zeros(()) for each in names})
        monkeypatch.setattr(source_module, "open_tensors", lambda *_, found=found, **__: found)
        assert name.removeprefix("visual.trunk.") in refusal(family.path, family.activation)


def rewritten(folder: Path, to: Path, changes: dict[str, Any]) -> Path:
    """Copies a folder and changes values in its config. A key `a.b` is the key `b` in the section `a`."""
    to.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (config,) = (each for each in to.glob("*config.json") if "preproc" not in each.name)
    tree = json.loads(config.read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        place = tree
        for part in section.split(".") if section else ():
            place = place[part]
        place[name] = value
    config.write_text(json.dumps(tree))
    return to


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"vision_config.num_attention_heads": 0}, "num_attention_heads"),
    ({"vision_config.num_attention_heads": -2}, "num_attention_heads"),
    ({"vision_config.num_attention_heads": 5}, "num_attention_heads|num_heads|heads"),
    ({"text_config.num_attention_heads": "many"}, "num_attention_heads"),
    ({"text_config.num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vision_config.num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vision_config.hidden_size": 10**12}, "hidden_size"),
    ({"vision_config.hidden_size": 128}, r"vision_model\."),
    ({"vision_config.image_size": 32}, "position_embedding.weight has 10 rows"),
    ({"text_config.max_position_embeddings": 20}, "position_embedding.weight has 16 rows"),
    ({"text_config.hidden_act": "swish"}, "'swish'"),
    ({"vision_config.layer_norm_eps": 1e-3}, "layer_norm_eps"),
    ({"vision_config.num_channels": 1}, "channels"),
    ({"projection_dim": 7}, "visual_projection.weight"),
    ({"model_type": "bert"}, "'bert'"),
    ({"model_type": "siglip2"}, "no fixed size"),
    ({"model_type": ["clip"]}, "kind"),
    ({"vision_config": [1, 2]}, "config.json is wrong"),
    ({"text_config.vocab_size": 120}, "token_embedding.weight"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_value_in_the_config_of_transformers_is_refused(clip, tmp_path, changes, expected):
    assert re.search(expected, refusal(rewritten(clip, tmp_path, changes)))


WRONG_OPEN_CLIP: list[tuple[dict[str, Any], str]] = [
    ({"model_cfg.vision_cfg.timm_model_name": "hf-hub:someone/model"}, "not the name of a model in timm"),
    ({"model_cfg.vision_cfg.timm_model_name": "vit_of_nobody"}, "vit_of_nobody"),
    ({"model_cfg.vision_cfg.timm_pool": ["map"]}, "timm_pool"),
    ({"model_cfg.vision_cfg.timm_proj": "mlp"}, "timm_proj='mlp'"),
    ({"model_cfg.vision_cfg.image_size": "large"}, "image_size"),
    ({"model_cfg.text_cfg.heads": 0}, "heads"),
    ({"model_cfg.text_cfg.pool_type": {"a": 1}}, "pool_type"),
    ({"model_cfg.text_cfg.norm_kwargs": 3}, "norm_kwargs"),
    ({"model_cfg.text_cfg.act_kwargs": {"approximate": "other"}}, "act_kwargs"),
    ({"model_cfg.text_cfg.qk_norm": True}, "qk_norm"),
    ({"model_cfg.text_cfg.hf_model_name": "roberta-base"}, "'roberta-base' of transformers"),
    ({"model_cfg": 3}, "open_clip_config.json"),
    ({"model_cfg.text_cfg": None}, "open_clip_config.json"),
    ({"preprocess_cfg": {"mean": 3, "std": [1, 1, 1]}}, "mean"),
    ({"preprocess_cfg": {"mean": [0, 0], "std": [1, 1, 1]}}, "mean"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_OPEN_CLIP, ids=lambda each: str(each)[:60])
def test_a_wrong_value_in_the_config_of_open_clip_is_refused(hub_folder, tmp_path, changes, expected):
    message = refusal_of_any(rewritten(hub_folder, tmp_path, changes))
    assert expected in message


def refusal_of_any(path: Path) -> str:
    """Returns the message that refuses a model. Unlike in `refusal`, the message need not begin with the source."""
    with pytest.raises(ConfigError) as refused:
        compared(open_source(str(path)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Files


def test_a_truncated_file_is_refused(clip, tmp_path):
    folder = rewritten(clip, tmp_path, {})
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) - 10):
        (folder / "model.safetensors").write_bytes(whole[:size])
        assert "model.safetensors" in refusal(folder)


def test_a_pickle_with_more_than_tensors_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    for name, write in (("a.pt", torch.save), ("b.bin", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write({"visual.conv1.weight": Evil()}, tmp_path / name)
        assert "could execute code" in refusal(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_tensor_with_fewer_numbers_than_its_shape_is_refused(tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    assert "fewer numbers" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "absent.safetensors", "..", ""])
def test_an_index_that_names_a_file_elsewhere_is_refused(clip, tmp_path, name):
    folder = rewritten(clip, tmp_path / "model", {})
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"logit_scale": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which does not exist beside it" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}", "[" * 100_000, '{"weight_map": {"a": [1]}}'])
def test_a_broken_index_or_config_is_refused(clip, tmp_path, content):
    folder = rewritten(clip, tmp_path, {})
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(folder)


def test_a_huge_config_is_refused_before_it_is_read(clip, tmp_path):
    folder = rewritten(clip, tmp_path, {})
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 30)  # A sparse file needs no room.
    assert "more than 4 MiB" in refusal(folder)


def test_what_is_no_model_is_refused(clip, tmp_path):
    assert "no weights in this folder" in refusal(tmp_path)
    save_file(load_file(clip / "model.safetensors"), tmp_path / "model.safetensors")
    assert "neither config.json nor open_clip_config.json" in refusal(tmp_path)
    assert "give the folder" in refusal(clip / "model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a file of weights" in refusal(tmp_path / "notes.txt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "no state dict" in refusal(tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "no state dict" in refusal(tmp_path / "list.pt")


def test_a_clip_with_a_resnet_is_refused(tmp_path):
    torch.save(
        {"visual.conv1.weight": torch.zeros(2), "visual.layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "r.pt"
    )
    assert "ResNet" in refusal(tmp_path / "r.pt")


def test_a_bare_file_needs_an_activation_and_openais_own_does_not(tmp_path):
    made = FAMILIES["open_clip-gelu-file"](tmp_path)
    assert "model.text.architecture.activation" in refusal(made.path)


# TorchScript


class Archive:
    """Writes TorchScript archives by hand: a pickle, and the numbers of each tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, description: bytes, files: dict[str, bytes], *, how: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(self.path, "w", how) as archive:
            archive.writestr("m/data.pkl", description)
            archive.writestr("m/code/__torch__/m.py", "")
            for name, data in files.items():
                archive.writestr(f"m/data/{name}", data)
        return self.path


def described(*, key: str = "0", count: int = 4, size: str = "(4,)", stride: str = "(1,)", offset: int = 0) -> bytes:
    """Returns the pickle of a module with one tensor, in the text protocol of pickle."""

    def numbers(text: str) -> bytes:
        return b"(" + b"".join(b"I%d\n" % each for each in eval(text)) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV" + key.encode() + b"\nVcpu\nI%d\nt" % count + b"Q"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + numbers(size) + numbers(stride)
    tensor += b"I00\nccollections\nOrderedDict\n)RtR"
    return b"c__torch__\nM\n)R(Vweight\n" + tensor + b"db."


def test_an_archive_written_by_hand_is_read(tmp_path):
    data = torch.arange(4.0).numpy().tobytes()
    path = Archive(tmp_path / "a.pt").write(described(), {"0": data})
    assert torch.equal(read_torchscript(path)["weight"], torch.arange(4.0))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"count": 5}, "too short"),
        ({"count": -1}, "too short"),
        ({"size": "(5,)"}, "exceeds its file"),
        ({"size": "(1000000000000,)", "stride": "(0,)"}, "exceeds its file"),
        ({"size": "(2, 3)", "stride": "(2,)"}, ""),
        ({"offset": -1}, "exceeds its file"),
        ({"offset": 1}, "exceeds its file"),
        ({"key": "../../x"}, "unknown way|could execute code"),
        ({"key": "1"}, "m/data/1"),
    ],
    ids=str,
)
def test_an_archive_with_a_wrong_tensor_is_refused(tmp_path, changes, expected):
    path = Archive(tmp_path / "a.pt").write(described(**changes), {"0": bytes(16)})
    assert re.search(expected, refusal(path))


def test_an_archive_that_would_execute_grow_or_loop_is_refused(tmp_path):
    archive = Archive(tmp_path / "a.pt")
    evil = b"cbuiltins\nexec\n(Vopen('executed', 'w')\ntR."
    assert "could execute code" in refusal(archive.write(evil, {}))
    assert "is compressed" in refusal(archive.write(described(), {"0": bytes(16)}, how=zipfile.ZIP_DEFLATED))
    huge = b"(" + b"0" * (65 << 20)
    assert "too large" in refusal(archive.write(huge, {}, how=zipfile.ZIP_DEFLATED))
    loop = b"c__torch__\nM\n)Rp0\n(Vself\ng0\ndb."
    assert "no state dict" in refusal(archive.write(loop, {}))
    # Each module has the next one twice, so the tree of 60 modules has 2 ** 60 leaves.
    level = b"c__torch__\nM\n)R"
    doubled = b"".join(level + b"p%d\n0" % number for number in range(60))
    links = b"".join(b"g%d\n(Va\ng%d\nVb\ng%d\ndb0" % (n, n + 1, n + 1) for n in range(59))
    assert "no state dict" in refusal(archive.write(doubled + links + b"g0\n.", {}))
    whole = archive.write(described(), {"0": bytes(16)}).read_bytes()
    for cut in range(0, len(whole), 37):
        (tmp_path / "b.pt").write_bytes(whole[:cut])
        refusal(tmp_path / "b.pt")


# Any file


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def read_or_refused(path: Path) -> None:
    message = ""
    try:
        compared(open_source(str(path)))
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_in_a_config_is_refused_in_one_line_or_read(clip, hub_folder, tmp_path_factory, data):
    folder = data.draw(st.sampled_from([clip, hub_folder]))
    section = "" if folder == clip else "model_cfg."
    vision, text = ("vision_config", "text_config") if folder == clip else ("vision_cfg", "text_cfg")
    (config,) = folder.glob("*config.json")
    tree = json.loads(config.read_text())
    tree = tree["model_cfg"] if section else tree
    keys = [*tree, *(f"{part}.{key}" for part in (vision, text) for key in tree[part])]
    changes = data.draw(st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=3))
    parents = {vision, text} & changes.keys()
    changes = {
        f"{section}{key}": value for key, value in changes.items() if key.split(".")[0] not in parents or key in parents
    }
    read_or_refused(rewritten(folder, tmp_path_factory.mktemp("any"), changes))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_bytes_in_a_file_are_refused_in_one_line_or_read(clip, tmp_path_factory, data):
    folder = rewritten(clip, tmp_path_factory.mktemp("any"), {})
    weights = folder / "model.safetensors"
    form = data.draw(st.sampled_from(["safetensors", "pickle", "archive"]))
    path: Path = folder
    if form == "pickle":
        path = folder / "a.pt"
        torch.save({"visual.conv1.weight": torch.zeros(4)}, path)
    elif form == "archive":
        path = Archive(folder / "a.pt").write(described(), {"0": bytes(16)})
    file = weights if form == "safetensors" else path
    whole = bytearray(file.read_bytes())
    reach = min(len(whole), 4000) - 1
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, reach), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        whole[place] = value
    file.write_bytes(whole)
    read_or_refused(path)


# Tokenizers


def test_a_folder_without_a_tokenizer_is_refused_when_the_tokenizer_is_read(clip, hub_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"the folder has no tokenizer\.json and no other tokenizer"):
        load_source(str(clip), key="source")
    folder = rewritten(hub_folder, tmp_path, {"model_cfg.text_cfg.hf_tokenizer_name": "someone/tokenizer"})
    with pytest.raises(ConfigError, match=r"set model\.text\.tokenizer to this name, if you trust it"):
        load_source(str(folder), key="source")


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(hub_folder):
    with pytest.raises(ConfigError, match="knows 49408 tokens, but the encoder has embeddings for 100"):
        load_source(str(hub_folder), key="source")


def test_longer_texts_than_positions_are_refused_with_the_setting_that_adds_positions(clip):
    settings = {**open_source(str(clip)).layout.settings, "from": str(clip)}
    settings["text"] = {**settings["text"], "lengths": {"summary": 90}}
    with pytest.raises(ConfigError, match=r"model\.text\.architecture\.positions=90"):
        TowerPair.of(ModelConfig.model_validate(settings), ObjectiveConfig(), Vocabulary(100, 0), weights=False)


def test_a_hub_name_without_network_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("openai/clip-vit-base-patch32", "no such file", "absent.pt", "../absent", "a/b/c/d"):
        with pytest.raises(ConfigError) as refused:
            open_source(name)
        assert f"model.from={name}: there is no such file" in str(refused.value)
        assert "\n" not in str(refused.value)
