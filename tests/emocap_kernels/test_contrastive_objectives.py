"""The objectives other than InfoNCE, compared with formulas written from docs/method.md."""

import kernel_oracle as oracle
import pytest
import torch
from emocap_kernels import Mining, contrastive_loss
from emocap_kernels.contrastive import chunked
from emocap_kernels.contrastive.batch import sharded_batch
from emocap_kernels.contrastive.inputs import ContrastiveInputs
from emocap_kernels.contrastive.sums import GradientSums
from emocap_kernels.distributed.ranks import SINGLE_RANK, Partition
from torch import Tensor
from torch.nn.functional import normalize

OBJECTIVES = ["mil_nce", "sigmoid", "soft"]
RULES = [
    None,
    Mining(threshold=0.1),
    Mining("joint", threshold=0.1),
    Mining("text", top_k=2),
    Mining("consensus", threshold=0.0, treatment="ignore"),
    Mining("image", top_k=3, treatment="ignore"),
]


def inputs_of(rows: int, width: int, dtype=torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    source = torch.Generator().manual_seed(seed)
    image, text, teacher = (
        normalize(torch.randn(rows, width, generator=source, dtype=torch.float64), dim=1).to(dtype) for _ in range(3)
    )
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)
    return (*(x.requires_grad_() for x in (image, text, scale, bias)), teacher)


def arguments(objective: str, bias: Tensor, teacher: Tensor, mining: Mining | None) -> dict:
    if objective == "soft":
        return {"objective": "soft", "guide_image": teacher, "guide_text": teacher.flip(0), "guide_scale": 4.0}
    return {"objective": objective, "mining": mining} | ({"bias": bias} if objective == "sigmoid" else {})


@pytest.fixture(params=[None, 3], ids=["one block", "blocks of 3 rows"])
def blocks(request, monkeypatch):
    if request.param is None:
        return
    original = chunked.evaluate
    monkeypatch.setattr(
        chunked, "evaluate", lambda batch: original(batch, block_bytes=request.param * 8 * len(batch.text))
    )


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("ids", [None, torch.arange(11) // 2])
@pytest.mark.parametrize("mining", RULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_are_those_of_the_formula(objective, mining, ids, backend, blocks):
    if objective == "soft" and mining is not None:
        return
    *mine, teacher = inputs_of(11, 6)
    *theirs, _ = inputs_of(11, 6)
    result = contrastive_loss(*mine[:3], ids=ids, backend=backend, **arguments(objective, mine[3], teacher, mining))
    expected = oracle.contrastive(*theirs[:3], ids=ids, **arguments(objective, theirs[3], teacher, mining))
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=1e-12)
    assert result.image_to_text.item() == pytest.approx(expected.image_to_text, rel=1e-12)
    assert result.text_to_image.item() == pytest.approx(expected.text_to_image, rel=1e-12)
    assert result.positives.item() == pytest.approx(expected.positives)
    assert [x.item() for x in result.recall_at_1] == pytest.approx(expected.recall)
    result.loss.backward()
    expected.loss.backward()
    for a, b in zip(mine, theirs, strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradcheck_holds_and_one_graph_may_be_used_twice(objective):
    *inputs, teacher = inputs_of(6, 4)

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # Objectives without a bias get a gradient of 0 for it.
        return contrastive_loss(image, text, scale, **arguments(objective, bias, teacher, None)).loss + 0 * bias

    assert torch.autograd.gradcheck(loss, inputs)
    value = loss(*inputs)
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    second = torch.autograd.grad(3 * value, inputs, retain_graph=True)
    third = torch.autograd.grad(value, inputs)
    assert all(torch.equal(a, c) for a, c in zip(first, third, strict=True))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_half_precision_inputs_are_computed_as_float32(objective):
    *half, teacher = inputs_of(9, 16, torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in half[:2]]
    a = contrastive_loss(half[0], half[1], 7.0, **arguments(objective, half[3], teacher, None))
    b = contrastive_loss(*wide, 7.0, **arguments(objective, half[3], teacher.float(), None))
    assert torch.equal(a.loss, b.loss)
    a.loss.backward()
    b.loss.backward()
    torch.testing.assert_close(half[0].grad, wide[0].grad.bfloat16())


def test_mil_nce_with_own_pairs_only_is_infonce():
    *inputs, _ = inputs_of(12, 5)
    a = contrastive_loss(*inputs[:3], objective="mil_nce").loss
    torch.testing.assert_close(a, contrastive_loss(*inputs[:3]).loss, rtol=1e-13, atol=0)


def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient():
    image, text, scale, *_ = inputs_of(12, 5)
    guides = {"guide_image": image.detach(), "guide_text": text.detach()}
    loss = contrastive_loss(image, text, scale, objective="soft", **guides).loss
    assert abs(loss.item()) < 1e-14
    loss.backward()
    assert image.grad.abs().max() < 1e-15


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_scores_of_a_hundred_stay_finite_and_right(objective, cosine):
    image = torch.eye(8)[:1].expand(8, 8).clone().requires_grad_()
    text = (cosine * torch.eye(8)[:1].expand(8, 8)).clone().requires_grad_()
    teacher = {"objective": objective} | ({"guide_text": -text.detach()} if objective == "soft" else {})
    loss = contrastive_loss(image, text, 100.0, **teacher).loss
    exact = contrastive_loss(image.double(), text.double(), 100.0, backend="reference", **teacher).loss
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-5)
    loss.backward()
    assert image.grad.isfinite().all()
    assert text.grad.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_a_needed_gradient_none_is_computed(objective, monkeypatch):
    image, text, scale, bias, teacher = inputs_of(6, 4)
    monkeypatch.setattr(GradientSums, "add", lambda *_: pytest.fail("a gradient was computed"))
    settings = arguments(objective, bias.detach(), teacher, None)
    assert not contrastive_loss(image.detach(), text.detach(), 3.0, **settings).loss.requires_grad
    with torch.no_grad():
        contrastive_loss(image, text, scale, **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", ["infonce", *OBJECTIVES])
def test_vectors_that_stay_in_half_precision_give_what_widened_ones_give(objective, dtype):
    """Checks what happens on a GPU, whose matrix units multiply halves without converting them."""
    *half, teacher = inputs_of(23, 16, dtype)
    keywords = {"bias": None, "mining": None, "guide_image": None, "guide_text": None, "guide_scale": None}
    keywords |= {"schedule": "auto"}
    keywords |= {"objective": objective} | arguments(objective, half[3], teacher, None)
    answers = []
    for narrow in (True, False):
        image, text, scale = (x.detach().clone().requires_grad_() for x in half[:3])
        inputs = ContrastiveInputs(image=image, text=text, scale=scale, ids=None, **keywords)
        batch = sharded_batch(inputs, Partition((23,), 0), SINGLE_RANK, backward_communicates=True, narrow=narrow)
        assert batch.image.dtype == (dtype if narrow else torch.float32)
        loss = chunked.evaluate(batch, block_bytes=5 * 4 * 23).loss
        loss.backward()
        answers.append((loss.detach(), image.grad, text.grad, scale.grad))
    # The gradient of the scale is summed before the gradient of the scores is rounded.
    torch.testing.assert_close(answers[0][3], answers[1][3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-6, atol=1e-6)
    for narrow, wide in zip(answers[0][1:3], answers[1][1:3], strict=True):
        # The gradient of the scores is rounded to half precision, and so is the result.
        torch.testing.assert_close(narrow, wide, rtol=2e-2, atol=2e-2 * wide.abs().max().item())
