"""Fused kernels are deterministic, reusable and small in memory, with equal positives in forward and backward."""

import pytest
import torch
from emocap_kernels import Mining, choose_backend, contrastive_loss
from emocap_kernels.contrastive.fused.positives import BlockPositives
from emocap_kernels.errors import NotSupportedError
from fused_cases import DEVICE, GUIDES, answer, unit
from torch import Tensor

RULES = [None, Mining(threshold=0.15), Mining("joint", 0.15), Mining("text", top_k=2, treatment="ignore")]
OBJECTIVES = ["infonce", "sigmoid"]


def leaves(rows: int, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(20.0, device=DEVICE, requires_grad=True)
    return unit(rows, width, seed=1).requires_grad_(), unit(rows, width, seed=2).requires_grad_(), scale


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mining", RULES)
def test_two_runs_are_equal_to_the_bit(mining, objective):
    runs = []
    for _ in range(2):
        inputs = leaves(40)
        loss = contrastive_loss(*inputs, objective=objective, mining=mining, backend="fused").loss
        loss.backward()
        runs.append([loss.detach(), *(leaf.grad for leaf in inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_second_derivative_raises_an_error(objective):
    inputs = leaves(20)
    loss = contrastive_loss(*inputs, objective=objective, backend="fused").loss
    (gradient,) = torch.autograd.grad(loss, inputs[0], create_graph=True)
    with pytest.raises(NotSupportedError, match="no second derivative"):
        (gradient.square().sum() + inputs[0].sum()).backward()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mining", RULES)
def test_one_graph_may_be_used_twice(mining, objective):
    inputs = leaves(36)
    loss = contrastive_loss(*inputs, objective=objective, mining=mining, backend="fused").loss
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs, retain_graph=True)
    tripled = torch.autograd.grad(3 * loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, tripled, strict=True):
        torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("mining", [Mining(threshold=0.15), Mining("consensus", 0.0), Mining(top_k=3)])
def test_the_masks_of_backward_are_those_of_forward(mining, monkeypatch):
    seen: list[Tensor] = []
    mask = BlockPositives.mask

    def watched(self, *arguments):
        found = mask(self, *arguments)
        seen.append(found.base.clone())
        return found

    monkeypatch.setattr(BlockPositives, "mask", watched)
    loss = contrastive_loss(*leaves(40), mining=mining, backend="fused").loss
    forward = list(seen)
    loss.backward()
    assert forward
    assert forward[0].any()
    assert all(torch.equal(a, b) for a, b in zip(forward, seen[len(forward) :], strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mining", RULES)
def test_what_is_saved_for_backward_is_linear_in_the_batch(mining, objective):
    def saved(rows: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            contrastive_loss(*leaves(rows), objective=objective, mining=mining, backend="fused")
        return sum(sizes.values())

    # These are two vectors, their gradients or the guide features, and a few numbers of each anchor.
    assert saved(64) <= 64 * (4 * 16 * 4 + 96) + 4096
    assert saved(128) <= 2 * saved(64) + 4096


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_of_equally_similar_candidates_the_lower_index_is_mined(guide, top_k):
    # Products of whole numbers are exact, so equal vectors have equal similarities on any device.
    source = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-1, 2, (40, 16), generator=source).float().to(DEVICE) for _ in range(2))
    image[20:], text[10:20] = image[:20], text[:10]
    setting = {"mining": Mining(guide, top_k=top_k)}
    mine = answer("fused", image, text, 0.3, torch.float32, setting)
    exact = answer("reference", image, text, 0.3, torch.float64, setting)
    torch.testing.assert_close(mine.result.loss.double(), exact.result.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.gradients["image"].double(), exact.gradients["image"], rtol=1e-4, atol=1e-6)


def test_of_equal_scores_the_lower_index_is_the_best():
    image = torch.zeros(70, 16, device=DEVICE)
    image[:, 0] = 1.0
    result = answer("fused", image, image, 50.0, torch.float32, {}).result
    assert [x.item() for x in result.recall_at_1] == pytest.approx([1 / 70, 1 / 70])


def test_with_fewer_candidates_than_top_k_all_are_mined():
    image, text = unit(3, 16, seed=1), unit(3, 16, seed=2)
    assert answer("fused", image, text, 5.0, torch.float32, {"mining": Mining(top_k=8)}).result.positives == 3.0


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_an_input_that_needs_no_gradient_gets_none(frozen):
    for objective in OBJECTIVES:
        image, text, scale = leaves(20)
        whole = answer("fused", image.detach(), text.detach(), 20.0, torch.float32, {"objective": objective})
        inputs = {"image": image, "text": text, "scale": scale}
        inputs[frozen] = inputs[frozen].detach()
        contrastive_loss(**inputs, objective=objective, backend="fused").loss.backward()
        assert inputs[frozen].grad is None
        for name in inputs.keys() - {frozen}:
            assert torch.equal(inputs[name].grad, whole.gradients[name])


def test_without_a_needed_gradient_there_is_no_graph():
    image, text, _ = leaves(20)
    for objective in OBJECTIVES:
        result = contrastive_loss(image.detach(), text.detach(), 20.0, objective=objective, backend="fused")
        assert not result.loss.requires_grad


def test_inputs_changed_between_forward_and_backward_are_an_error():
    guide = unit(20, 16, seed=7)
    loss = contrastive_loss(*leaves(20), mining=Mining("image", 0.2), guide_image=guide, backend="fused").loss
    guide.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_unsupported_inputs_raise_an_error_with_the_reason():
    image, text, scale = leaves(4)
    with pytest.raises(NotSupportedError, match="top_k=9 is above 8"):
        contrastive_loss(image, text, scale, mining=Mining(top_k=9), backend="fused")
    wide = {"guide_text": text.detach().double(), "mining": Mining(threshold=0.1)}
    with pytest.raises(NotSupportedError, match="float64"):
        contrastive_loss(image, text, scale, **wide, backend="fused")
    with pytest.raises(NotSupportedError, match="float64"):
        contrastive_loss(image.double(), text.double(), scale, backend="fused")
    assert choose_backend(image, text, mining=Mining(top_k=9)).backend == "chunked"


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no streams")
@pytest.mark.parametrize("mining", [*RULES, Mining("consensus", 0.1, 3)])
@pytest.mark.parametrize("objective", [*OBJECTIVES, "mil_nce"])
def test_no_value_is_read_back_from_the_device(mining, objective):
    inputs = leaves(300)
    ids = torch.arange(300, device=DEVICE) // 3
    for guarded in (False, True):
        # The first of both rounds compiles, which reads values.
        torch.cuda.set_sync_debug_mode("error" if guarded else "default")
        try:
            contrastive_loss(*inputs, objective=objective, mining=mining, ids=ids, backend="fused").loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
