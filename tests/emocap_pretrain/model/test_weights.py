import json
from pathlib import Path

import pytest
import torch

from emocap_pretrain.config.model import TextTowerConfig
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.transformers_text import TransformersTextTower, check_text_weights
from emocap_pretrain.model.weights import Fit

# After the towers, which let torchvision import beside a CPU build of torch.
from transformers import BertConfig, BertForMaskedLM, BertModel, CLIPConfig, CLIPModel  # isort: skip

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(vocab_size=50, max_position_embeddings=128, **TEXT)


def test_the_fit_names_missing_unexpected_and_reshaped_weights():
    fit = Fit.of(
        {"a": (1,), "b": (2, 3), "c": (4,)},
        {"a": (1,), "b": (3, 2), "d": (5,), "head.x": (6,)},
        ignore=lambda name: name.startswith("head."),
    )
    assert fit == Fit(missing=("c",), unexpected=("d",), reshaped=(("b", (3, 2), (2, 3)),))
    with pytest.raises(ConfigError) as caught:
        fit.require("key=file", "the tower T", "Mend it.")
    assert str(caught.value) == (
        "key=file: these weights do not fill the tower T: 1 missing (c); 1 unexpected (d); "
        "1 of another shape (b has [3, 2], the tower [2, 3]). Mend it."
    )


def test_a_message_names_a_few_of_many_and_counts_the_others():
    fit = Fit(missing=tuple(f"block.{number}" for number in range(9)))
    with pytest.raises(ConfigError, match=r"9 missing \(block\.0, block\.1, block\.2, block\.3 and 5 more\)"):
        fit.require("key", "T", "")


def test_weights_from_the_hub_are_compared_when_the_run_starts():
    (note,) = check_text_weights(text_settings("somebody/encoder"))
    assert note.endswith("compared with the tower when the run starts")


def text_settings(folder: str | Path) -> TextTowerConfig:
    return TextTowerConfig.model_validate({"pretrained": str(folder), "pooling": "mean"})


def text_refusal(folder: Path) -> str:
    messages = []
    for build in (
        lambda: TransformersTextTower(text_settings(folder), Vocabulary(50, 0)),
        lambda: load_nothing(folder),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def load_nothing(folder: Path) -> tuple[str, ...]:
    return check_text_weights(text_settings(folder))


def described(folder: Path, **changes) -> Path:
    """Changes config.json in the folder, so that it no longer fits the weights, and returns the folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_text_tower_with_more_layers_than_its_weights_is_refused_with_their_names(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, num_hidden_layers=3))
    assert message.startswith(f"model.text.pretrained={tmp_path}: these weights do not fill")
    assert "16 missing (encoder.layer.2.attention.output.LayerNorm.bias, " in message


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_text_tower_with_fewer_layers_than_its_weights_is_refused_with_their_names(tmp_path, kind):
    kind(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, num_hidden_layers=1))
    assert "16 unexpected (" in message
    assert "encoder.layer.1.attention.output.LayerNorm.bias, " in message


def test_text_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, vocab_size=60))
    assert "1 of another shape (embeddings.word_embeddings.weight has [50, 16], the tower [60, 16])" in message


def test_a_head_in_the_text_weights_is_ignored_with_a_note(tmp_path, capfd):
    model = BertForMaskedLM(BERT)
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = TransformersTextTower(text_settings(tmp_path), Vocabulary(50, 0))
    assert tower.notes == load_nothing(tmp_path)
    assert tower.notes == (
        f"model.text.pretrained: cls in {tmp_path} are left out: they are not a part of the text tower",
    )
    assert torch.equal(tower.backbone.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
    assert capfd.readouterr() == ("", "")


def test_a_clip_folder_gives_its_text_tower_and_one_line(tmp_path, capfd):
    vision = TEXT | {"image_size": 32, "patch_size": 16}
    text = TEXT | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = TransformersTextTower(text_settings(tmp_path), Vocabulary(50, 0))
    (note,) = tower.notes
    assert note.startswith("model.text.pretrained: logit_scale, text_projection, vision_model, visual_projection in ")
    assert load_nothing(tmp_path) == (note,)
    assert torch.equal(
        tower.backbone.embeddings.token_embedding.weight, model.text_model.embeddings.token_embedding.weight
    )
    assert capfd.readouterr() == ("", "")


def test_weights_in_several_files_are_compared_by_their_index(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert load_nothing(tmp_path) == ()
    assert "16 missing (" in text_refusal(described(tmp_path, num_hidden_layers=3))


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "absent.safetensors", 7])
def test_an_index_of_text_weights_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "text"
    BertModel(BERT).save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embeddings": name}}))
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json names .*, which does not exist beside it"):
        load_nothing(folder)


def test_a_broken_index_of_text_weights_is_refused(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json has no list of files"):
        load_nothing(tmp_path)
