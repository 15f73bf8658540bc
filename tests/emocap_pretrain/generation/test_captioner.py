"""Tests the loss of a captioner, the captions that it writes, and how patches are averaged."""

import json
import shutil

import pytest
import torch

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.generation.captioner import IMAGE, Captioner
from emocap_pretrain.generation.language_model import load_language_model
from emocap_pretrain.generation.projector import Projector, pooled_to
from emocap_pretrain.generation.training import CaptionBatch, CaptionObjective, ImageTokens

CAPTIONS = ["The face shows joy.", "There is distinct sadness in this expression.", "The mood is calm."]


@pytest.fixture
def captioner(language) -> Captioner:
    return Captioner(Projector(8, language.width), language, most_tokens=12)


def loss_of(captioner: Captioner, given: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Returns the loss with which a captioner is trained on one rank."""
    batch = CaptionBatch(given, captions)
    return CaptionObjective(captioner)(ImageTokens(captioner)(batch), batch, 0).loss


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(1)) * 3


def test_an_image_gets_the_same_caption_in_a_batch_as_alone(captioner):
    given = images(5)
    together = captioner.written(given)
    assert together == [captioner.written(each[None])[0] for each in given]
    assert len(set(together)) > 1
    assert captioner.written(given[:0]) == []


def test_captions_are_decoded_greedily_whatever_the_model_asks_for(llama, captioner, tmp_path):
    """A setting that is not given to transformers' `generate` comes from generation_config.json of the model."""
    folder = tmp_path / "asking"
    shutil.copytree(llama, folder)
    file = folder / "generation_config.json"
    asked = {"repetition_penalty": 1.7, "suppress_tokens": [3], "no_repeat_ngram_size": 2, "do_sample": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **asked}))
    asking = Captioner(captioner.projector, load_language_model(str(folder)), most_tokens=12)
    assert asking.written(images(5)) == captioner.written(images(5)) == [_greedy(captioner, each) for each in images(5)]


def _greedy(captioner: Captioner, image: torch.Tensor) -> str:
    """Returns the caption of an image, computed token by token without the `generate` of transformers."""
    language, ids = captioner.language, []
    first, last = (
        language.embedded(torch.tensor([language.ids(text)]).long()) for text in captioner.prompt.split(IMAGE)
    )
    with torch.inference_mode():
        read = torch.cat([first, captioner.projector(image[None]), last], dim=1)
        while len(ids) < captioner.most_tokens and language.end_id not in ids:
            ids.append(int(language.model(inputs_embeds=read).logits[0, -1].argmax()))
            read = torch.cat([read, language.embedded(torch.tensor([ids[-1:]]))], dim=1)
    return language.text(ids)


def test_the_loss_of_a_batch_is_the_mean_over_the_tokens_of_its_captions(captioner):
    given = images(3)
    lengths = [min(12, len(captioner.language.ids(text)) + 1) for text in CAPTIONS]
    alone = [loss_of(captioner, image[None], [text]).item() for image, text in zip(given, CAPTIONS, strict=True)]
    expected = sum(loss * length for loss, length in zip(alone, lengths, strict=True)) / sum(lengths)
    assert loss_of(captioner, given, CAPTIONS).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_that_of_transformers_for_the_tokens_of_the_caption(captioner):
    language, image = captioner.language, images(1)
    before, after = (torch.tensor([language.ids(text)]) for text in captioner.prompt.split(IMAGE))
    caption = torch.tensor([[*language.ids(CAPTIONS[0]), language.end_id]])
    read = [language.embedded(before.long()), captioner.projector(image), language.embedded(after)]
    read.append(language.embedded(caption))
    ignored = sum(each.shape[1] for each in read[:-1])
    labels = torch.cat([torch.full((1, ignored), -100), caption], dim=1)
    expected = language.model(inputs_embeds=torch.cat(read, dim=1), labels=labels).loss
    assert loss_of(captioner, image, CAPTIONS[:1]).item() == pytest.approx(expected.detach().item(), rel=1e-5)


def test_bf16_rounds_the_products_and_keeps_the_weights(language):
    projector = Projector(8, language.width)
    exact, rounded = (
        loss_of(Captioner(projector, language, precision=precision), images(3), CAPTIONS).item()
        for precision in ("fp32", "bf16")
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.05)
    assert {each.dtype for each in language.model.parameters()} == {torch.float32}
    assert len(Captioner(projector, language, precision="bf16").written(images(2))) == 2


def test_only_the_projector_gets_gradients(captioner):
    loss_of(captioner, images(2), CAPTIONS[:2]).backward()
    assert all(parameter.grad is not None for parameter in captioner.projector.parameters())
    assert all(parameter.grad is None for parameter in captioner.language.model.parameters())


def test_a_long_caption_is_cut_counted_and_gets_no_end_token(captioner):
    encoded = captioner.encoded(["joy", "joy " * 30])
    assert encoded.cut == 1
    assert encoded.ids.shape == (2, 12)
    assert captioner.language.end_id not in encoded.labels[1]
    assert encoded.labels[0].tolist().count(-100) == 12 - len(captioner.language.ids("joy")) - 1


@pytest.mark.parametrize("prompt", ["no image", f"{IMAGE}{IMAGE}"])
def test_a_prompt_has_the_image_once(language, prompt):
    with pytest.raises(ConfigError, match="once"):
        Captioner(Projector(8, language.width), language, prompt)


def test_patches_are_averaged_over_cells_of_their_grid():
    grid = torch.arange(16.0).view(1, 16, 1)
    assert pooled_to(grid, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled_to(grid, 16) is grid
    with pytest.raises(ConfigError, match="not a square grid"):
        pooled_to(grid[:, :15], 4)
