"""Tests which language models are opened, and that no code or other model that the files name is loaded."""

import json
import shutil

import pytest
import torch
from generation_fakes import write_gguf, write_llama

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.generation.language_model import load_language_model


def test_a_folder_gives_a_frozen_model_whose_text_ends_at_the_end_token(language):
    assert not any(parameter.requires_grad for parameter in language.model.parameters())
    assert language.width == 32
    ids = language.ids("The face shows joy.")
    assert language.text([*ids, language.end_id, *ids]) == "The face shows joy."


def test_a_gguf_file_gives_the_same_model_as_the_folder(language, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    found = load_language_model(str(tmp_path / "tiny.gguf"))
    ids = language.ids("The face shows joy.")
    assert found.ids("The face shows joy.") == ids
    assert found.end_id == language.end_id
    with torch.inference_mode():
        given = torch.tensor([ids])
        assert torch.allclose(found.model(given).logits, language.model(given).logits, atol=1e-4)


def test_an_adapter_beside_a_gguf_file_is_not_read(language, tmp_path, monkeypatch):
    """transformers would look for an adapter in the folder of the file, and load the model that the adapter names."""
    asked = []
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"transformers.utils.hub.{name}", lambda *of, **_: asked.append(of))
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
    found = load_language_model(str(tmp_path / "tiny.gguf"))
    assert found.end_id == language.end_id
    assert found.ids("The face shows joy.") == language.ids("The face shows joy.")
    assert not asked


def test_weights_in_a_pickle_are_not_read(llama, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no causal language model of transformers with safetensors"):
        load_language_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "evil/model"}, "holds an adapter"),
        ("config.json", {"model_type": "llama", "quantization_config": {}}, "quantized for another library"),
        ("config.json", {"model_type": "llama", "_attn_implementation": "evil/kernel"}, "attention 'evil/kernel'"),
        ("config.json", {"model_type": "llama", "num_hidden_layers": 3}, "weights are missing"),
    ],
)
def test_a_folder_that_names_other_files_or_lacks_weights_is_refused(llama, tmp_path, file, content, message):
    folder = tmp_path / "folder"
    shutil.copytree(llama, folder)
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**before, **content}))
    with pytest.raises(ConfigError, match=message):
        load_language_model(str(folder))


@pytest.mark.parametrize(("name", "message"), [("x.gguf", "no such file"), ("x.bin", "not a .gguf file")])
def test_a_wrong_file_is_named(tmp_path, name, message):
    if name == "x.bin":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        load_language_model(str(tmp_path / name))


def test_the_digest_follows_the_weights(language, tmp_path):
    write_llama(tmp_path)
    assert load_language_model(str(tmp_path)).digest == language.digest
    language_model = load_language_model(str(tmp_path)).model
    with torch.no_grad():
        language_model.lm_head.weight[0, 0] += 1
    language_model.save_pretrained(tmp_path)
    assert load_language_model(str(tmp_path)).digest != language.digest
