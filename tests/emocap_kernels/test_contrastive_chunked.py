import os
import subprocess
import sys

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, softmax
from emocap_kernels.contrastive import chunked
from emocap_kernels.contrastive.batch import ContrastiveBatch
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import score_gradient
from torch import Tensor
from torch.nn.functional import normalize

RULES = (
    None,
    Mining(threshold=0.2),
    Mining("text", top_k=3),
    Mining("image", 0.0, 4, "ignore"),
    Mining("consensus", threshold=0.1, treatment="ignore"),
    Mining("joint", threshold=0.3),
    Mining("joint", top_k=2, treatment="ignore"),
)


def inputs_of(rows: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    source = torch.Generator().manual_seed(rows * 1000 + width)
    vectors = normalize(torch.randn(2, rows, width, generator=source, dtype=torch.float64), dim=-1).to(dtype)
    return [vectors[0].requires_grad_(), vectors[1].requires_grad_(), torch.tensor(20.0, dtype=dtype).requires_grad_()]


@pytest.fixture
def in_blocks(monkeypatch):
    """Makes blocks so small that every batch of these tests needs many of them."""

    def small(batch: ContrastiveBatch) -> LossResult:
        return original(batch, block_bytes=3 * batch.text.element_size() * len(batch.text))

    original = chunked.evaluate
    monkeypatch.setattr(chunked, "evaluate", small)


@pytest.mark.parametrize("mining", RULES)
@pytest.mark.parametrize("ids", [None, torch.arange(19) // 2])
def test_many_small_blocks_give_the_loss_and_gradients_of_the_reference(mining, ids, in_blocks):
    mine, theirs = inputs_of(19, 7), inputs_of(19, 7)
    result = contrastive_loss(*mine, mining=mining, ids=ids, backend="chunked")
    expected = contrastive_loss(*theirs, mining=mining, ids=ids, backend="reference")
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(result.recall_at_1, expected.recall_at_1)
    torch.testing.assert_close(result.positives, expected.positives)
    result.loss.backward()
    expected.loss.backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("mining", RULES)
def test_gradcheck_holds_for_image_text_and_scale(mining, in_blocks):
    fixed = [t.detach() for t in inputs_of(7, 4)[:2]]

    def loss(*inputs: Tensor) -> Tensor:
        return contrastive_loss(*inputs, mining=mining, guide_image=fixed[0], guide_text=fixed[1]).loss

    assert torch.autograd.gradcheck(loss, inputs_of(7, 4))


@pytest.mark.parametrize("mining", RULES)
def test_one_graph_may_be_used_twice(mining, in_blocks):
    inputs = inputs_of(11, 5)
    loss = contrastive_loss(*inputs, mining=mining).loss
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs, retain_graph=True)
    tripled = torch.autograd.grad(3 * loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, tripled, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_a_second_derivative_raises_an_error():
    inputs = inputs_of(5, 3)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(factor * contrastive_loss(*inputs).loss, inputs[:1], create_graph=True)
    with pytest.raises(NotSupportedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("mining", RULES)
def test_two_runs_are_equal_to_the_bit(mining):
    runs = []
    for _ in range(2):
        inputs = inputs_of(300, 33, torch.float32)
        loss = contrastive_loss(*inputs, mining=mining).loss
        loss.backward()
        runs.append([loss.detach(), *(t.grad for t in inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("mining", RULES[1:])
def test_the_masks_of_backward_are_those_of_forward(mining, monkeypatch, in_blocks):
    seen: dict[str, list[Tensor]] = {"forward": [], "backward": []}
    rows, gradient = softmax.row_stats, score_gradient

    def watch(phase, targets):
        seen[phase] += [
            m for m in (targets.row_positive, targets.column_positive, targets.row_dropped) if m is not None
        ]

    monkeypatch.setattr(softmax, "row_stats", lambda s, t, best: (watch("forward", t), rows(s, t, best))[1])
    monkeypatch.setattr(chunked, "score_gradient", lambda s, t, *rest: (watch("backward", t), gradient(s, t, *rest))[1])
    contrastive_loss(*inputs_of(40, 9, torch.float32), mining=mining).loss.backward()
    assert len(seen["forward"]) > 20
    assert all(torch.equal(a, b) for a, b in zip(seen["forward"], seen["backward"], strict=True))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_that_needs_no_gradient_gets_none(frozen):
    inputs = [t.detach().requires_grad_(place != frozen) for place, t in enumerate(inputs_of(8, 4))]
    full = inputs_of(8, 4)
    contrastive_loss(*inputs).loss.backward()
    contrastive_loss(*full).loss.backward()
    assert inputs[frozen].grad is None
    for place, t in enumerate(inputs):
        if place != frozen:
            torch.testing.assert_close(t.grad, full[place].grad)


def test_inputs_changed_between_forward_and_backward_are_an_error():
    guide = inputs_of(8, 4)[0].detach().clone()
    loss = contrastive_loss(*inputs_of(8, 4), mining=Mining("image", 0.2), guide_image=guide).loss
    guide.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("mining", RULES)
def test_what_is_saved_for_backward_is_linear_in_the_batch(mining):
    def saved(rows: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            contrastive_loss(*inputs_of(rows, 8, torch.float32), mining=mining)
        return sum(sizes.values())

    assert saved(1024) <= 2 * saved(512) + 4096
    assert saved(1024) < 1024 * 1024 * 4 / 16


PEAK = """
import torch
from emocap_kernels import Mining, contrastive_loss, softmax
from torch.nn.functional import normalize

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
image, text = (normalize(torch.randn(6144, 16), dim=1).requires_grad_() for _ in range(2))
contrastive_loss(image[:64], text[:64], 20.0).loss.backward()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
for mining in (None, Mining(threshold=0.5), Mining("text", top_k=4)):
    contrastive_loss(image, text, 20.0, mining=mining).loss.backward()
print(status("VmHWM") - before)
"""


def test_the_peak_of_memory_stays_below_half_of_one_matrix_of_scores():
    # Memory above 1 MB comes straight from the system, so that the peak does not contain what malloc keeps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", PEAK]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    # The dense loss needs five such matrices; here only blocks and their temporaries are in memory.
    assert int(out) < 0.5 * 6144 * 6144 * 4


def test_only_the_loss_has_a_graph():
    inputs = inputs_of(16, 4)
    result = contrastive_loss(*inputs, mining=Mining(top_k=2))
    assert not any(
        t.requires_grad for t in (result.image_to_text, result.text_to_image, result.positives, *result.recall_at_1)
    )
    with torch.no_grad():
        assert not contrastive_loss(*inputs).loss.requires_grad


def test_a_nan_embedding_gives_a_nan_loss_and_no_crash():
    for mining in RULES:
        image, text, scale = (t.detach().clone() for t in inputs_of(9, 4))
        image[3] = float("nan")
        assert contrastive_loss(image, text, scale, mining=mining).loss.isnan()
