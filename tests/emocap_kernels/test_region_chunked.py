import os
import subprocess
import sys

import pytest
import torch
from emocap_kernels import Mining, region_contrastive_loss, softmax
from emocap_kernels.distributed.ranks import SINGLE_RANK, Partition
from emocap_kernels.region import chunked
from emocap_kernels.region.batch import RegionBatch, sharded_batch
from emocap_kernels.region.inputs import RegionInputs
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import score_gradient
from torch import Tensor
from torch.nn.functional import normalize

RULES = (
    None,
    Mining(threshold=0.3),
    Mining(top_k=3),
    Mining(threshold=0.1, treatment="ignore"),
    Mining(threshold=0.0, top_k=4, treatment="ignore"),
)
OWNER = torch.tensor([6, 1, 1, 0, 8, 8, 1, 0, 6, 3, 8, 0, 0, 3, 6, 6, 1])


def inputs_of(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    source = torch.Generator().manual_seed(5)
    patches = normalize(torch.randn(9, 5, 4, generator=source, dtype=torch.float64), dim=-1)
    sentences = normalize(torch.randn(17, 4, generator=source, dtype=torch.float64), dim=-1)
    return [t.to(dtype).requires_grad_() for t in (patches, sentences, torch.tensor(20.0))]


def loss_of(patches: Tensor, sentences: Tensor, scale: Tensor, **settings) -> LossResult:
    return region_contrastive_loss(patches, sentences, OWNER, scale, **settings)


@pytest.fixture(params=[1, 5 * 7 * 8, 5 * 17 * 2 * 8], ids=["one pair", "some sentences", "two images"])
def in_tiles(request, monkeypatch):
    """Makes tiles of one image with one sentence or with seven, or of two images with all sentences."""
    original = chunked.evaluate

    def small(batch: RegionBatch) -> LossResult:
        return original(batch, block_bytes=request.param)

    monkeypatch.setattr(chunked, "evaluate", small)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mining", RULES)
def test_many_small_tiles_give_the_loss_and_gradients_of_the_reference(mining, masked, in_tiles):
    mask = torch.rand(9, 5, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    mine, theirs = inputs_of(), inputs_of()
    result = loss_of(*mine, mining=mining, patch_mask=mask, backend="chunked")
    expected = loss_of(*theirs, mining=mining, patch_mask=mask, backend="reference")
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(result.recall_at_1, expected.recall_at_1)
    torch.testing.assert_close(result.positives, expected.positives)
    result.loss.backward()
    expected.loss.backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("scope", "mining"), [*(("batch", rule) for rule in RULES), ("image", None)])
def test_gradcheck_holds_for_patches_sentences_and_scale(scope, mining):
    owner = torch.tensor([2, 0, 0, 2, 3, 0])
    patches, sentences, scale = inputs_of()
    inputs = [patches[:4, :3, :3].detach(), sentences[:6, :3].detach(), scale.detach()]

    def loss(patches: Tensor, sentences: Tensor, scale: Tensor) -> Tensor:
        return region_contrastive_loss(patches, sentences, owner, scale, scope=scope, mining=mining).loss

    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_one_graph_may_be_used_twice(scope):
    inputs = inputs_of()
    loss = loss_of(*inputs, scope=scope).loss
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mining", RULES)
def test_two_runs_are_equal_to_the_bit(mining):
    runs = []
    for _ in range(2):
        inputs = inputs_of(torch.float32)
        loss = loss_of(*inputs, mining=mining).loss
        loss.backward()
        runs.append([loss.detach(), *(t.grad for t in inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("mining", RULES)
def test_scores_and_masks_of_backward_are_those_of_forward(mining, monkeypatch):
    seen: dict[str, list[Tensor]] = {"forward": [], "backward": []}
    rows, gradient = softmax.row_stats, score_gradient

    def watch(phase, score, targets):
        masks = (targets.row_positive, targets.column_positive, targets.row_dropped)
        seen[phase] += [score.clone(), *(mask for mask in masks if mask is not None)]

    monkeypatch.setattr(softmax, "row_stats", lambda s, t, best: (watch("forward", s, t), rows(s, t, best))[1])
    monkeypatch.setattr(
        chunked, "score_gradient", lambda s, t, *rest: (watch("backward", s, t), gradient(s, t, *rest))[1]
    )
    loss_of(*inputs_of(torch.float32), mining=mining).loss.backward()
    assert seen["forward"]
    assert all(torch.equal(a, b) for a, b in zip(seen["forward"], seen["backward"], strict=True))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_that_needs_no_gradient_gets_none(frozen):
    inputs = [t.detach().requires_grad_(place != frozen) for place, t in enumerate(inputs_of())]
    full = inputs_of()
    loss_of(*inputs).loss.backward()
    loss_of(*full).loss.backward()
    assert inputs[frozen].grad is None
    for place, t in enumerate(inputs):
        if place != frozen:
            torch.testing.assert_close(t.grad, full[place].grad)


def test_inputs_changed_between_forward_and_backward_are_an_error():
    mask = torch.ones(9, 5, dtype=torch.bool)
    loss = loss_of(*inputs_of(), patch_mask=mask).loss
    mask[0, 0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_may_have_any_strides():
    plain, strided = inputs_of(), inputs_of()
    twisted = strided[0].transpose(0, 2).contiguous().transpose(0, 2)
    loss_of(*plain).loss.backward()
    loss_of(twisted, *strided[1:]).loss.backward()
    torch.testing.assert_close(plain[0].grad, strided[0].grad)


@pytest.mark.parametrize("mining", RULES)
def test_what_is_saved_for_backward_is_linear_in_the_batch(mining):
    def saved(rows: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        patches, sentences = torch.randn(rows, 4, 8).requires_grad_(), torch.randn(3 * rows, 8).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            region_contrastive_loss(patches, sentences, torch.arange(3 * rows) % rows, 20.0, mining=mining)
        return sum(sizes.values())

    assert saved(256) <= 2 * saved(128) + 4096


@pytest.mark.parametrize("sentences", [1, 12, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_vectors_that_stay_in_half_precision_give_what_widened_ones_give(dtype, sentences):
    """Checks what happens on a GPU. An image may own so many sentences that its part of the gradient is large."""
    source = torch.Generator().manual_seed(3)
    patches = normalize(torch.randn(3, 5, 16, generator=source), dim=-1).to(dtype)
    lines = normalize(torch.randn(2 * sentences, 16, generator=source), dim=-1).to(dtype)
    owner = torch.arange(2 * sentences) % 2
    answers = []
    for narrow in (True, False):
        leaves = [each.clone().requires_grad_() for each in (patches, lines, torch.tensor(100.0))]
        inputs = RegionInputs(leaves[0], leaves[1], owner, leaves[2], 100.0, "batch", None, None, "auto")
        spans = Partition((3,), 0), Partition((2 * sentences,), 0)
        batch = sharded_batch(inputs, *spans, SINGLE_RANK, backward_communicates=True, narrow=narrow)
        assert batch.patches.dtype == (dtype if narrow else torch.float32)
        loss = chunked.evaluate(batch).loss
        loss.backward()
        answers.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-5, atol=1e-5)
    for narrow, wide in zip(answers[0][1:], answers[1][1:], strict=True):
        assert narrow.isfinite().all()
        torch.testing.assert_close(narrow, wide, rtol=2e-2, atol=2e-2 * wide.abs().max().item())


PEAK = """
import torch
from emocap_kernels import Mining, region_contrastive_loss, softmax
from torch.nn.functional import normalize

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
patches = normalize(torch.randn(512, 32, 16), dim=2).requires_grad_()
sentences = normalize(torch.randn(3072, 16), dim=1).requires_grad_()
owner = torch.arange(3072) % 512
region_contrastive_loss(patches[:4], sentences[:8], owner[:8] % 4, 20.0).loss.backward()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
for mining in (None, Mining(threshold=0.5), Mining(top_k=2, treatment="ignore")):
    region_contrastive_loss(patches, sentences, owner, 20.0, mining=mining).loss.backward()
print(status("VmHWM") - before)
"""


def test_the_peak_of_memory_stays_below_half_of_one_matrix_of_similarities():
    # Memory above 1 MB comes straight from the system, so that the peak does not contain what malloc keeps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", PEAK]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert int(out) < 0.5 * 512 * 32 * 3072 * 4
