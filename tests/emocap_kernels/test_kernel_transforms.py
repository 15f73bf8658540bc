from collections.abc import Callable

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from emocap_kernels.errors import NotSupportedError
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

Loss = Callable[[tuple[Tensor, ...], str], Tensor]


def infonce(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
    return contrastive_loss(*inputs[:2], inputs[3], backend=backend).loss


def mil_nce(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
    rule = Mining(guide="text", threshold=0.2)
    return contrastive_loss(*inputs[:2], inputs[3], objective="mil_nce", mining=rule, backend=backend).loss


def sigmoid(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
    return contrastive_loss(*inputs[:2], inputs[3], objective="sigmoid", backend=backend).loss


def region(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
    patches = inputs[0].reshape(3, 2, 16)
    return region_contrastive_loss(patches, inputs[1], inputs[2], inputs[3], backend=backend).loss


def region_within(inputs: tuple[Tensor, ...], backend: str = "auto") -> Tensor:
    patches = inputs[0].reshape(3, 2, 16)
    return region_contrastive_loss(patches, inputs[1], inputs[2], inputs[3], scope="image", backend=backend).loss


WHOLE = (infonce, mil_nce, sigmoid)
LOSSES = (*WHOLE, region, region_within)


def inputs_on(device: str = "cpu") -> tuple[Tensor, ...]:
    """Returns six images (or three with two patches each), six texts, the owners of six sentences, and a scale."""
    torch.manual_seed(0)
    image, text = (normalize(torch.randn(6, 16), dim=1).to(device).requires_grad_() for _ in range(2))
    owner = torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    return image, text, owner, torch.tensor(10.0, device=device, requires_grad=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # The compiler reads it.
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_within_a_compiled_function_is_the_same(loss: Loss):
    results = []
    for compiled in (False, True):
        inputs = inputs_on()

        def doubled(inputs: tuple[Tensor, ...]) -> Tensor:
            return 2 * loss(inputs)

        value = (torch.compile(doubled, backend="eager") if compiled else doubled)(inputs)
        value.backward()
        results.append((value.detach(), *(each.grad for each in inputs if each.requires_grad)))
    for plain, traced in zip(*results, strict=True):
        assert torch.equal(plain, traced)


def test_torch_refuses_a_graph_that_must_not_break():
    def alone(image: Tensor, text: Tensor) -> Tensor:
        return contrastive_loss(image, text, 10.0).loss

    with pytest.raises(Unsupported):
        torch.compile(alone, backend="eager", fullgraph=True)(*inputs_on()[:2])


@pytest.mark.parametrize("loss", [infonce, mil_nce, sigmoid, region])
def test_a_second_derivative_raises_an_error_instead_of_a_partial_result(loss: Loss):
    inputs = inputs_on()
    (by_image,) = torch.autograd.grad(loss(inputs, "chunked"), inputs[0], create_graph=True)
    for side in (inputs[1], inputs[3]):
        with pytest.raises(NotSupportedError, match=r"no second derivative .* backend='reference'"):
            torch.autograd.grad(by_image.square().sum(), side, allow_unused=True, retain_graph=True)
    with pytest.raises(NotSupportedError, match="no second derivative"):
        (by_image.square().sum() + inputs[0].sum()).backward()


def test_a_second_derivative_by_the_bias_alone_raises_an_error():
    image, text, _, scale = inputs_on()
    bias = torch.tensor(-2.0, requires_grad=True)
    loss = contrastive_loss(image, text, scale, objective="sigmoid", bias=bias, backend="chunked").loss
    (by_image,) = torch.autograd.grad(loss, image, create_graph=True)
    with pytest.raises(NotSupportedError, match="no second derivative"):
        torch.autograd.grad(by_image.square().sum(), bias)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_derivative_with_create_graph_is_the_plain_one(loss: Loss):
    gradients = []
    for again in (False, True):
        inputs = inputs_on()
        (gradient,) = torch.autograd.grad(loss(inputs, "chunked"), inputs[0], create_graph=again)
        gradients.append(gradient.detach())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("loss", "backend"), [*((loss, "reference") for loss in LOSSES), (region_within, "chunked")])
def test_the_reference_and_chunked_within_images_have_a_second_derivative(loss: Loss, backend: str):
    inputs = [each.double().detach() for each in inputs_on()]
    image, text, scale = (each.requires_grad_() for each in (inputs[0], inputs[1], inputs[3]))

    def value(*parts: Tensor) -> Tensor:
        return loss((parts[0], parts[1], inputs[2].long(), parts[2]), backend)

    assert torch.autograd.gradgradcheck(value, (image, text, scale))


@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
@pytest.mark.parametrize("loss", WHOLE)
def test_the_global_loss_runs_on_meta_and_fake_tensors(loss: Loss, backend: str):
    inputs = inputs_on("meta")
    value = loss(inputs, backend)
    value.backward()
    assert (value.shape, value.is_meta) == ((), True)
    with FakeTensorMode():
        inputs = inputs_on()
        loss(inputs, backend).backward()
        assert inputs[0].grad is not None
        assert inputs[0].grad.shape == (6, 16)


@pytest.mark.parametrize("loss", [region, region_within])
def test_the_local_loss_raises_an_error_on_meta_and_fake_tensors(loss: Loss):
    with pytest.raises(NotSupportedError, match="reads the values of owner, and meta and fake tensors have none"):
        loss(inputs_on("meta"), "auto")
    with FakeTensorMode(), pytest.raises(NotSupportedError, match="reads the values of owner"):
        loss(inputs_on(), "auto")
