import itertools

import kernel_oracle as oracle
import pytest
import torch
from emocap_kernels import Mining, contrastive_loss
from emocap_kernels.contrastive import chunked, op, reference
from emocap_kernels.contrastive.cases import CASES, ContrastiveCase, draw
from emocap_kernels.numerics import require_accurate
from emocap_kernels.result import LossResult
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

BACKENDS = ("reference", "chunked", "auto")
GUIDES = ("counterpart", "text", "image", "consensus", "joint")
RULES = ((0.25, None), (None, 3), (-0.2, 4))
TREATMENTS = ("attract", "ignore")


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=-1).to(dtype)


def leaves(*tensors: Tensor, scale: float) -> list[Tensor]:
    dtype = tensors[0].dtype
    return [t.clone().requires_grad_() for t in (*tensors, torch.tensor(scale, dtype=dtype))]


def require_equal(result: LossResult, inputs: list[Tensor], expected: oracle.Expected, theirs: list[Tensor]) -> None:
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-11, atol=1e-12)
    result.loss.backward()
    expected.loss.backward()
    for mine, their in zip(inputs, theirs, strict=True):
        torch.testing.assert_close(mine.grad, their.grad, rtol=1e-10, atol=1e-12)
    seen = (result.image_to_text, result.text_to_image, result.positives, *result.recall_at_1)
    wanted = (expected.image_to_text, expected.text_to_image, expected.positives, *expected.recall)
    torch.testing.assert_close(torch.stack(seen).tolist(), list(wanted), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_rule_and_treatment_equals_the_naive_loops(guide, rule, treatment, backend):
    mining = Mining(guide, *rule, treatment)
    for ids, given_features in itertools.product((None, torch.tensor([5, 1, 5, 7, 2, 1, 5, 9, 8])), (False, True)):
        image, text = unit(9, 5, seed=1), unit(9, 5, seed=2)
        extra = {"guide_image": unit(9, 4, seed=3), "guide_text": unit(9, 4, seed=4)} if given_features else {}
        mine, theirs = leaves(image, text, scale=17.0), leaves(image, text, scale=17.0)
        result = contrastive_loss(*mine, mining=mining, ids=ids, backend=backend, **extra)
        require_equal(result, mine, oracle.contrastive(*theirs, mining=mining, ids=ids, **extra), theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["guide_image", "guide_text"])
@pytest.mark.parametrize("guide", GUIDES)
def test_one_given_guide_replaces_one_side_only(guide, side, backend):
    width = 5 if guide == "joint" else 3
    image, text, extra = unit(8, 5, seed=1), unit(8, 5, seed=2), {side: unit(8, width, seed=3)}
    for mining in (Mining(guide, threshold=0.1), Mining(guide, top_k=2)):
        mine, theirs = leaves(image, text, scale=9.0), leaves(image, text, scale=9.0)
        result = contrastive_loss(*mine, mining=mining, backend=backend, **extra)
        require_equal(result, mine, oracle.contrastive(*theirs, mining=mining, **extra), theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_infonce_and_ids_alone_equal_the_naive_loops(backend):
    for ids in (None, torch.arange(11), torch.zeros(11, dtype=torch.int64), torch.arange(11) // 3):
        mine, theirs = (
            leaves(unit(11, 6, seed=1), unit(11, 6, seed=2), scale=33.0),
            leaves(unit(11, 6, seed=1), unit(11, 6, seed=2), scale=33.0),
        )
        require_equal(
            contrastive_loss(*mine, ids=ids, backend=backend), mine, oracle.contrastive(*theirs, ids=ids), theirs
        )


@given(
    rows=st.integers(1, 8),
    width=st.integers(1, 5),
    scale=st.floats(1.0, 100.0),
    seed=st.integers(0, 10_000),
    guide=st.sampled_from(GUIDES),
    treatment=st.sampled_from(TREATMENTS),
    threshold=st.none() | st.floats(-0.9, 0.9),
    top_k=st.none() | st.integers(1, 9),
    repeats=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_small_batch_equals_the_naive_loops(rows, width, scale, seed, guide, treatment, threshold, top_k, repeats):
    mining = None if threshold is None and top_k is None else Mining(guide, threshold, top_k, treatment)
    ids = torch.randint(0, repeats * rows, (rows,), generator=torch.Generator().manual_seed(seed))
    image, text = unit(rows, width, seed=seed), unit(rows, width, seed=seed + 1)
    for backend in ("reference", "chunked"):
        mine, theirs = leaves(image, text, scale=scale), leaves(image, text, scale=scale)
        result = contrastive_loss(*mine, mining=mining, ids=ids, backend=backend)
        expected = oracle.contrastive(*theirs, mining=mining, ids=ids)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-10, atol=1e-10)
        result.loss.backward()
        expected.loss.backward()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("case", "mining"),
    [
        (case, mining)
        for case in CASES
        for mining in (None, Mining(threshold=0.2), Mining("joint", top_k=3, treatment="ignore"))
        # With nearly equal vectors the rounding of a cosine decides what is mined, so no result is the only right one.
        if mining is None or case.kind not in ("collapsed", "duplicates")
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_float32_is_no_further_from_float64_than_eager_code(case: ContrastiveCase, mining: Mining | None):
    single = draw(case, dtype=torch.float32)
    # If the threshold were between a cosine and its float32 rounding, the mined sets would differ.
    features = {"guide_image": single[0], "guide_text": single[1]} if mining else {}
    answers = {}
    for name, backend, dtype in (
        ("exact", "reference", torch.float64),
        ("eager", "reference", torch.float32),
        ("chunked", "chunked", torch.float32),
    ):
        inputs = leaves(*(t.to(dtype) for t in single), scale=case.scale)
        result = contrastive_loss(*inputs, mining=mining, backend=backend, **features)
        result.loss.backward()
        answers[name] = [result.loss.detach(), *(t.grad for t in inputs)]
    magnitudes = (case.scale, case.scale / case.rows, case.scale / case.rows, 1.0)
    for part, result, eager, exact, size in zip(
        ("loss", "image", "text", "scale"),
        answers["chunked"],
        answers["eager"],
        answers["exact"],
        magnitudes,
        strict=True,
    ):
        require_accurate(part, result, eager, exact, magnitude=size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_among_equal_candidates_the_lower_index_is_mined(guide, dtype, backend):
    # A matrix product may round equal columns differently. The rule must hold nevertheless.
    image, text = unit(3, 13, seed=1, dtype=dtype).repeat(6, 1), unit(2, 13, seed=2, dtype=dtype).repeat(9, 1)
    for top_k in (1, 4, 7):
        mining = Mining(guide, top_k=top_k)
        mine = leaves(image, text, scale=10.0)
        theirs = leaves(image.double(), text.double(), scale=10.0)
        result = contrastive_loss(*mine, mining=mining, backend=backend)
        expected = oracle.contrastive(*theirs, mining=mining)
        assert result.loss.item() == pytest.approx(expected.loss.item(), rel=2e-6)
        result.loss.backward()
        expected.loss.backward()
        torch.testing.assert_close(mine[0].grad.double(), theirs[0].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cosine_equal_to_the_threshold_is_mined(backend):
    image = torch.eye(4, dtype=torch.float64)
    text = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 0], [0.5, 0.5, -0.5, 0.5]]).double()
    result = contrastive_loss(image, text, 3.0, mining=Mining("joint", threshold=0.5), backend=backend)
    expected = oracle.contrastive(image, text, 3.0, mining=Mining("joint", threshold=0.5))
    assert result.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    assert result.positives.item() == expected.positives


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_may_be_a_number_and_is_never_clamped(backend):
    image, text = unit(6, 4, seed=1), unit(6, 4, seed=2)
    for scale in (1.0, 100.0, 500.0):
        result = contrastive_loss(image, text, scale, backend=backend)
        assert result.loss.item() == pytest.approx(oracle.contrastive(image, text, scale).loss.item(), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sample_alone_has_no_loss_and_no_gradient(backend):
    for mining in (None, Mining(threshold=-1.0), Mining(top_k=5, treatment="ignore")):
        inputs = leaves(unit(1, 4), unit(1, 4, seed=1), scale=100.0)
        result = contrastive_loss(*inputs, mining=mining, backend=backend)
        result.loss.backward()
        assert result.loss.item() == 0.0
        assert result.positives.item() == 1.0
        assert all(t.grad.abs().max() < 1e-12 for t in inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_has_loss_zero_and_a_backward(backend):
    inputs = leaves(unit(0, 4), unit(0, 4), scale=10.0)
    result = contrastive_loss(*inputs, backend=backend)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert [tuple(t.grad.shape) for t in inputs] == [(0, 4), (0, 4), ()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype, backend):
    image, text = unit(40, 16, seed=1).to(dtype), unit(40, 16, seed=2).to(dtype)
    half = [t.clone().requires_grad_() for t in (image, text)]
    wide = [t.float().requires_grad_() for t in (image, text)]
    mining = Mining(threshold=0.3)
    small, large = (contrastive_loss(*x, 100.0, mining=mining, backend=backend) for x in (half, wide))
    assert small.loss.dtype == torch.float32
    assert small.loss.item() == large.loss.item()
    small.loss.backward()
    large.loss.backward()
    for a, b in zip(half, wide, strict=True):
        assert torch.equal(a.grad, b.grad.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_reach_the_similarities(backend):
    image, text = unit(20, 8, seed=1).float(), unit(20, 8, seed=2).float()
    plain = contrastive_loss(image, text, 100.0, backend=backend).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(image, text, 100.0, backend=backend).loss.item() == plain.item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_never_changed(backend):
    image, text, ids = unit(9, 4, seed=1), unit(9, 4, seed=2), torch.arange(9) // 2
    guides = (unit(9, 4, seed=3), unit(9, 4, seed=4))
    before = [t.clone() for t in (image, text, ids, *guides)]
    for mining in (Mining("joint", top_k=2), Mining("consensus", 0.1, 3), Mining(threshold=0.0, treatment="ignore")):
        inputs = leaves(image, text, scale=5.0)
        loss = contrastive_loss(
            *inputs, mining=mining, guide_image=guides[0], guide_text=guides[1], ids=ids, backend=backend
        ).loss
        loss.backward()
        assert torch.equal(inputs[0].detach(), image)
    assert all(torch.equal(a, b) for a, b in zip(before, (image, text, ids, *guides), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_flows_through_the_choice_of_positives(backend):
    image, text = unit(7, 4, seed=1), unit(7, 4, seed=2)
    guide = unit(7, 4, seed=3).requires_grad_()
    inputs = leaves(image, text, scale=5.0)
    contrastive_loss(*inputs, mining=Mining("text", 0.1), guide_text=guide, backend=backend).loss.backward()
    assert guide.grad is None


def test_auto_is_chunked_and_every_backend_is_dispatched(monkeypatch):
    called: list[str] = []
    for name, module in (("chunked", chunked), ("reference", reference)):
        monkeypatch.setattr(module, "evaluate", lambda _, name=name: called.append(name))
    for backend in ("auto", "chunked", "reference"):
        op.contrastive_loss(unit(3, 2), unit(3, 2), 1.0, backend=backend)
    assert called == ["chunked", "chunked", "reference"]
