"""The fused local loss is deterministic, reusable and small in memory, with equal positives in both passes."""

import pytest
import torch
from emocap_kernels import choose_region_backend, region_contrastive_loss
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.region.cases import RegionCase, draw
from emocap_kernels.region.positives import RegionPositives
from fused_cases import DEVICE
from region_fused_cases import RULES, answer
from torch import Tensor

CASE = RegionCase("small", 7, 20, 17, 16, 20.0, 10.0, "")


def leaves(rows: int = 7, sentences: int = 17) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = draw(RegionCase("", rows, 20, sentences, 16, 20.0, 10.0, ""), dtype=torch.float32)
    scale = torch.tensor(20.0, device=DEVICE, requires_grad=True)
    patches, lines = (each.to(DEVICE).requires_grad_() for each in (drawn.patches, drawn.sentences))
    return patches, lines, drawn.owner.to(DEVICE), scale


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_a_second_derivative_raises_an_error(scope):
    inputs = leaves()
    loss = region_contrastive_loss(*inputs, scope=scope, backend="fused").loss
    (gradient,) = torch.autograd.grad(loss, inputs[0], create_graph=True)
    with pytest.raises(NotSupportedError, match="no second derivative"):
        (gradient.square().sum() + inputs[0].sum()).backward()


@pytest.mark.parametrize("mining", RULES)
def test_two_runs_are_equal_to_the_bit(mining):
    runs = []
    for _ in range(2):
        found = answer(draw(CASE), CASE, "fused", torch.float32, mining=mining)
        runs.append([found.result.loss.detach(), *found.gradients.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("mining", RULES)
def test_the_masks_of_backward_are_those_of_forward(mining, monkeypatch):
    seen: list[Tensor] = []
    targets = RegionPositives.targets

    def watched(self, *arguments):
        found = targets(self, *arguments)
        seen.append(torch.stack([found.row_positive, found.column_positive]))
        return found

    monkeypatch.setattr(RegionPositives, "targets", watched)
    loss = region_contrastive_loss(*leaves(), mining=mining, backend="fused").loss
    (forward,) = seen
    loss.backward()
    assert torch.equal(torch.cat(seen[1:], dim=1), forward)


@pytest.mark.parametrize("frozen", ["patches", "sentences", "scale"])
def test_an_input_that_needs_no_gradient_gets_none(frozen):
    names = ("patches", "sentences", "owner", "scale")
    inputs, full = dict(zip(names, leaves(), strict=True)), dict(zip(names, leaves(), strict=True))
    inputs[frozen] = inputs[frozen].detach()
    region_contrastive_loss(**inputs, backend="fused").loss.backward()
    region_contrastive_loss(**full, backend="fused").loss.backward()
    assert inputs[frozen].grad is None
    for name in {"patches", "sentences", "scale"} - {frozen}:
        torch.testing.assert_close(inputs[name].grad, full[name].grad)


def test_one_graph_may_be_used_twice():
    patches, sentences, owner, scale = leaves()
    loss = region_contrastive_loss(patches, sentences, owner, scale, backend="fused").loss
    first = torch.autograd.grad(loss, (patches, sentences, scale), retain_graph=True)
    second = torch.autograd.grad(loss, (patches, sentences, scale))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_changed_between_forward_and_backward_are_an_error():
    patches, sentences, owner, scale = leaves()
    mask = torch.ones(7, 20, dtype=torch.bool, device=DEVICE)
    loss = region_contrastive_loss(patches, sentences, owner, scale, patch_mask=mask, backend="fused").loss
    mask[0, 0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_may_have_any_strides():
    patches, sentences, owner, scale = leaves()
    twisted = patches.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    lines = sentences.detach().T.contiguous().T.requires_grad_()
    region_contrastive_loss(patches, sentences, owner, scale, backend="fused").loss.backward()
    region_contrastive_loss(twisted, lines, owner, scale, backend="fused").loss.backward()
    torch.testing.assert_close(patches.grad, twisted.grad)
    torch.testing.assert_close(sentences.grad, lines.grad)


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_a_mask_may_have_any_strides(scope):
    patches, sentences, owner, scale = leaves()
    drawn = torch.rand(20, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    twisted = drawn.to(DEVICE).T
    settings = {"scope": scope, "backend": "fused"}
    losses = [
        region_contrastive_loss(patches, sentences, owner, scale, patch_mask=mask, **settings).loss.item()
        for mask in (twisted, twisted.contiguous())
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mining", RULES)
def test_what_is_saved_for_backward_is_linear_in_the_batch(mining):
    def saved(rows: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            region_contrastive_loss(*leaves(rows, 3 * rows), mining=mining, backend="fused")
        return sum(sizes.values())

    assert saved(32) <= 2 * saved(16) + 4096


def test_values_in_a_patch_that_is_not_kept_do_not_matter():
    patches, sentences, owner, scale = leaves()
    mask = (torch.arange(20, device=DEVICE) != 3).expand(7, 20)
    poisoned = patches.detach().clone()
    poisoned[:, 3] = float("nan")
    settings = {"patch_mask": mask, "backend": "fused"}
    clean = region_contrastive_loss(patches, sentences, owner, scale, **settings).loss
    loss = region_contrastive_loss(poisoned.requires_grad_(), sentences.detach(), owner, 20.0, **settings).loss
    assert loss.item() == clean.item()
    loss.backward()
    clean.backward()
    assert torch.equal(poisoned.grad, patches.grad)


def test_without_any_sentence_the_loss_is_zero_with_zero_gradients():
    patches, sentences, owner, scale = leaves()
    none = sentences.detach()[:0].requires_grad_()
    loss = region_contrastive_loss(patches, none, owner[:0], scale, backend="fused").loss
    loss.backward()
    assert loss.item() == 0.0
    assert not patches.grad.any()


def test_the_choice_of_a_backend_has_a_reason():
    vectors = torch.zeros(2, 3, 16, device=DEVICE), torch.zeros(4, 16, device=DEVICE)
    assert choose_region_backend(*vectors, backend="fused").backend == "fused"
    wide = (each.double() for each in vectors)
    with pytest.raises(NotSupportedError, match="float64 inputs are computed in float64"):
        choose_region_backend(*wide, backend="fused")
