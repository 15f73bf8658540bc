"""One line replaces the losses inside the CLIP and SigLIP models of transformers."""

import tiny_models
import torch
from emocap_kernels import contrastive_loss


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def require_equal(mine: torch.Tensor, theirs: torch.Tensor, model: torch.nn.Module, *names: str) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    by_mine, by_theirs = gradients(mine, model), gradients(theirs, model)
    assert by_mine.keys() >= set(names)
    torch.testing.assert_close(by_mine, by_theirs, rtol=1e-9, atol=1e-12)


def test_infonce_is_the_loss_of_a_clip_model():
    model, _ = tiny_models.models()
    outputs = model(**tiny_models.batch(), return_loss=True)
    mine = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp()).loss
    require_equal(mine, outputs.loss, model, "logit_scale", "visual_projection.weight")


def test_sigmoid_is_the_loss_of_a_siglip_model():
    _, model = tiny_models.models()
    outputs = model(**tiny_models.batch(), return_loss=True)
    scale, bias = model.logit_scale.exp(), model.logit_bias
    mine = contrastive_loss(outputs.image_embeds, outputs.text_embeds, scale, objective="sigmoid", bias=bias).loss
    require_equal(
        mine, outputs.loss, model, "logit_scale", "logit_bias", "vision_model.embeddings.patch_embedding.weight"
    )
