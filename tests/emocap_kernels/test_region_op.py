import kernel_oracle as oracle
import pytest
import torch
from emocap_kernels import Mining, region_contrastive_loss
from emocap_kernels.numerics import require_accurate
from emocap_kernels.region import chunked, op, reference, within
from emocap_kernels.region.cases import CASES, RegionCase, draw
from emocap_kernels.result import LossResult
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

BACKENDS = ("reference", "chunked", "auto")
RULES = (
    None,
    Mining(threshold=0.3),
    Mining(threshold=-0.1, treatment="ignore"),
    Mining("image", top_k=3),
    Mining(top_k=2, treatment="ignore"),
    Mining("text", 0.2, 4),
    Mining("joint", 0.0, 5, "ignore"),
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def leaves(*tensors: Tensor, scale: float) -> list[Tensor]:
    given_scale = torch.tensor(scale, dtype=tensors[0].dtype)
    return [t.clone().requires_grad_() for t in (*tensors, given_scale)]


def require_equal(
    result: LossResult, mine: list[Tensor], expected: oracle.Expected, theirs: list[Tensor], *, recall: bool = True
) -> None:
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-11, atol=1e-12)
    result.loss.backward()
    expected.loss.backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    seen = torch.stack((result.image_to_text, result.text_to_image, result.positives)).tolist()
    torch.testing.assert_close(seen, [expected.image_to_text, expected.text_to_image, expected.positives])
    if recall:
        torch.testing.assert_close(torch.stack(result.recall_at_1).tolist(), list(expected.recall))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mining", RULES)
def test_every_rule_and_treatment_equals_the_naive_loops(mining, backend, masked):
    patches, sentences = unit(6, 5, 4, seed=1), unit(14, 4, seed=2)
    owner = torch.tensor([4, 0, 0, 2, 5, 5, 0, 2, 4, 0, 5, 2, 2, 0])
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) > 0.3 if masked else None
    for sharpness in (0.0, 1.0, 10.0):
        mine, theirs = leaves(patches, sentences, scale=25.0), leaves(patches, sentences, scale=25.0)
        settings = {"sharpness": sharpness, "patch_mask": mask, "mining": mining}
        result = region_contrastive_loss(*mine[:2], owner, mine[2], backend=backend, **settings)
        require_equal(result, mine, oracle.region(*theirs[:2], owner, theirs[2], **settings), theirs)


@given(
    rows=st.integers(1, 5),
    patches=st.integers(1, 4),
    sentences=st.integers(1, 9),
    width=st.integers(1, 4),
    scale=st.floats(1.0, 100.0),
    sharpness=st.floats(0.0, 30.0),
    seed=st.integers(0, 10_000),
    threshold=st.none() | st.floats(-0.9, 0.9),
    top_k=st.none() | st.integers(1, 9),
    treatment=st.sampled_from(["attract", "ignore"]),
    masked=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_any_small_batch_equals_the_naive_loops(
    rows, patches, sentences, width, scale, sharpness, seed, threshold, top_k, treatment, masked
):
    mining = None if threshold is None and top_k is None else Mining("text", threshold, top_k, treatment)
    source = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, rows, (sentences,), generator=source)
    mask = torch.rand(rows, patches, generator=source) > 0.4 if masked else None
    tensors = unit(rows, patches, width, seed=seed), unit(sentences, width, seed=seed + 1)
    for backend in ("reference", "chunked"):
        mine, theirs = leaves(*tensors, scale=scale), leaves(*tensors, scale=scale)
        settings = {"sharpness": sharpness, "patch_mask": mask, "mining": mining}
        result = region_contrastive_loss(*mine[:2], owner, mine[2], backend=backend, **settings)
        expected = oracle.region(*theirs[:2], owner, theirs[2], **settings)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-10, atol=1e-10)
        result.loss.backward()
        expected.loss.backward()
        for a, b in zip(mine, theirs, strict=True):
            # The naive loops do not read an image without a kept patch.
            theirs_or_zero = torch.zeros_like(a) if b.grad is None else b.grad
            torch.testing.assert_close(a.grad, theirs_or_zero, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scope_image_equals_the_naive_loops(backend, masked):
    patches, sentences = unit(6, 9, 5, seed=1), unit(14, 5, seed=2)
    owner = torch.tensor([4, 0, 0, 2, 5, 5, 0, 2, 4, 0, 5, 2, 3, 0])
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(4)) > 0.4 if masked else None
    mine, theirs = leaves(patches, sentences, scale=25.0), leaves(patches, sentences, scale=25.0)
    result = region_contrastive_loss(*mine[:2], owner, mine[2], scope="image", patch_mask=mask, backend=backend)
    expected = oracle.within(*theirs[:2], owner, theirs[2], mask)
    require_equal(result, mine, expected, theirs, recall=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scope_image_with_one_patch_or_equal_patches_pools_that_patch(backend):
    sentences, owner = unit(4, 5, seed=2), torch.tensor([0, 1, 1, 0])
    one = unit(2, 1, 5, seed=1)
    for patches in (one, one.expand(2, 3, 5)):
        mine, theirs = leaves(patches, sentences, scale=9.0), leaves(patches, sentences, scale=9.0)
        result = region_contrastive_loss(*mine[:2], owner, mine[2], scope="image", backend=backend)
        expected = oracle.within(*theirs[:2], owner, theirs[2])
        torch.testing.assert_close(result.loss, expected.loss)
        result.loss.backward()
        assert all(t.grad.isfinite().all() for t in mine)


@pytest.mark.parametrize("mining", [None, Mining(top_k=3, treatment="ignore")])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_is_no_further_from_float64_than_eager_code(case: RegionCase, mining):
    drawn = draw(case, dtype=torch.float32)
    answers = {}
    for name, backend, dtype in (
        ("exact", "reference", torch.float64),
        ("eager", "reference", torch.float32),
        ("chunked", "chunked", torch.float32),
    ):
        inputs = leaves(drawn.patches.to(dtype), drawn.sentences.to(dtype), scale=case.scale)
        result = region_contrastive_loss(
            *inputs[:2], drawn.owner, inputs[2], sharpness=case.sharpness, mining=mining, backend=backend
        )
        result.loss.backward()
        answers[name] = [result.loss.detach(), *(t.grad for t in inputs)]
    for part, result, eager, exact, size in zip(
        ("loss", "patches", "sentences", "scale"),
        answers["chunked"],
        answers["eager"],
        answers["exact"],
        (case.scale, case.scale, case.scale, 1.0),
        strict=True,
    ):
        require_accurate(part, result, eager, exact, magnitude=size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_among_equal_sentences_the_lower_index_is_mined(dtype, backend):
    patches, sentences = unit(6, 4, 13, seed=1).to(dtype), unit(3, 13, seed=2).to(dtype).repeat(7, 1)
    owner = torch.arange(21) % 6
    for top_k in (1, 3, 8):
        result = region_contrastive_loss(patches, sentences, owner, 10.0, mining=Mining(top_k=top_k), backend=backend)
        expected = oracle.region(patches.double(), sentences.double(), owner, 10.0, mining=Mining(top_k=top_k))
        assert result.loss.item() == pytest.approx(expected.loss.item(), rel=2e-6)
        assert result.positives.item() == pytest.approx(expected.positives, rel=1e-6)


@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_any_sentence_the_loss_is_zero_with_zero_gradients(backend, scope):
    mine = leaves(unit(3, 4, 5), unit(0, 5), scale=10.0)
    owner = torch.zeros(0, dtype=torch.int64)
    result = region_contrastive_loss(*mine[:2], owner, mine[2], scope=scope, backend=backend)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert all(t.grad is not None and not t.grad.any() for t in mine)


@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_in_a_patch_that_is_not_kept_do_not_matter(backend, scope):
    patches, sentences, owner = unit(3, 4, 5), unit(6, 5, seed=1), torch.arange(6) % 3
    mask = torch.tensor([[True, True, False, True]] * 3)
    poisoned = patches.masked_fill(~mask[:, :, None], float("nan")).requires_grad_()
    mine = leaves(patches, sentences, scale=10.0)
    settings = {"scope": scope, "patch_mask": mask, "backend": backend}
    clean = region_contrastive_loss(*mine[:2], owner, mine[2], **settings).loss
    loss = region_contrastive_loss(poisoned, sentences, owner, 10.0, **settings).loss
    assert loss.item() == clean.item()
    loss.backward()
    clean.backward()
    assert torch.equal(poisoned.grad, mine[0].grad)
    assert not poisoned.grad[:, 2].any()


@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_without_a_kept_patch_has_finite_loss_and_no_gradient(backend, scope):
    mine = leaves(unit(3, 4, 5), unit(6, 5, seed=1), scale=10.0)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    owner = torch.arange(6) % 3
    result = region_contrastive_loss(*mine[:2], owner, mine[2], scope=scope, patch_mask=mask, backend=backend)
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(t.grad.isfinite().all() for t in mine)
    assert not mine[0].grad[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_and_half_precision_leave_the_scores_in_float32(backend):
    patches, sentences, owner = unit(5, 4, 8).bfloat16(), unit(9, 8, seed=1).bfloat16(), torch.arange(9) % 5
    wide = region_contrastive_loss(patches.float(), sentences.float(), owner, 50.0, backend=backend).loss
    half = region_contrastive_loss(patches, sentences, owner, 50.0, backend=backend).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = region_contrastive_loss(patches.float(), sentences.float(), owner, 50.0, backend=backend).loss
    assert wide.item() == half.item() == cast.item()


def test_every_backend_and_scope_is_dispatched(monkeypatch):
    called: list[str] = []
    for module, function in (
        (chunked, "evaluate"),
        (reference, "evaluate"),
        (reference, "evaluate_within"),
        (within, "evaluate"),
    ):
        name = f"{module.__name__.rpartition('.')[2]}.{function}"
        monkeypatch.setattr(module, function, lambda *_, name=name: called.append(name))
    for backend in ("auto", "chunked", "reference"):
        for scope in ("batch", "image"):
            op.region_contrastive_loss(unit(3, 2, 2), unit(3, 2), torch.arange(3), 1.0, scope=scope, backend=backend)
    assert called == [
        *("chunked.evaluate", "within.evaluate") * 2,
        *("reference.evaluate", "reference.evaluate_within"),
    ]
