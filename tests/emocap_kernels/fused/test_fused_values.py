"""Fused kernels compared with float64: they are no further from it than the eager code that they replace."""

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss
from emocap_kernels.contrastive.cases import CASES, draw
from fused_cases import DEVICE, answer, named, require_as_accurate_as_eager, settings, unit

ROWS, WIDTH = 45, 24
WIDE_ENOUGH = [case for case in CASES if case.width >= 16]


@pytest.mark.parametrize("setting", settings(ROWS), ids=named)
def test_every_rule_and_objective_is_as_accurate_as_eager_code(setting):
    image, text = unit(ROWS, WIDTH, seed=1), unit(ROWS, WIDTH, seed=2)
    mine = require_as_accurate_as_eager(image, text, 20.0, setting)
    exact = answer("reference", image, text, 20.0, torch.float64, setting)
    assert [x.item() for x in mine.result.recall_at_1] == pytest.approx([x.item() for x in exact.result.recall_at_1])


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"mining": Mining(threshold=0.15)},
        {"mining": Mining("text", top_k=3, treatment="ignore")},
        {"objective": "mil_nce", "mining": Mining("joint", 0.1)},
        {"objective": "sigmoid", "bias": -3.0},
        {"objective": "soft", "guide_image": unit(ROWS, 16, seed=4), "guide_text": unit(ROWS, 16, seed=5)},
    ],
    ids=named,
)
def test_panels_and_chunks_make_no_difference(setting, small_chunks):
    image, text = unit(ROWS, WIDTH, seed=1), unit(ROWS, WIDTH, seed=2)
    require_as_accurate_as_eager(image, text, 20.0, setting)


@pytest.mark.parametrize("case", WIDE_ENOUGH, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hard_inputs_of_every_type_are_as_accurate_as_eager_code(case, dtype):
    if case.rows > 100 and DEVICE == "cpu" and dtype != torch.float32:
        pytest.skip("many tiles in the interpreter; float32 covers the tails")
    image, text = (x.to(DEVICE) for x in draw(case, dtype=dtype))
    require_as_accurate_as_eager(image, text, case.scale, {})


@pytest.mark.parametrize("objective", ["mil_nce", "sigmoid"])
@pytest.mark.parametrize("case", WIDE_ENOUGH[1:], ids=lambda case: case.name)
def test_hard_inputs_of_the_other_objectives_are_as_accurate_as_eager_code(case, objective):
    image, text = (x.to(DEVICE) for x in draw(case, dtype=torch.float32))
    ids = torch.arange(len(image), device=DEVICE) // 2
    bias = {"bias": -10.0} if objective == "sigmoid" else {}
    require_as_accurate_as_eager(image, text, case.scale, {"objective": objective, "ids": ids, **bias})


@pytest.mark.parametrize("width", [16, 50, 384, 640, 1000])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_any_width_and_any_number_of_rows(rows, width):
    require_as_accurate_as_eager(unit(rows, width, seed=1), unit(rows, width, seed=2), 100.0, {})


@pytest.mark.parametrize("treatment", ["attract", "ignore"])
@pytest.mark.parametrize(("length", "scale"), [(1.0, 300.0), (4.0, 20.0), (0.01, 5.0), (1.0, -8.0), (1.0, 0.0)])
def test_vectors_of_any_length_and_any_scale(length, scale, treatment):
    image, text = length * unit(40, 16, seed=1), length * unit(40, 16, seed=2)
    setting = {"mining": Mining("image", top_k=2, treatment=treatment)}
    mine = answer("fused", image, text, scale, torch.float32, setting)
    exact = answer("reference", image, text, scale, torch.float64, setting)
    size = abs(scale) * length**2
    torch.testing.assert_close(mine.result.loss.double(), exact.result.loss, rtol=2e-6, atol=2e-6 * size + 1e-6)
    for name, gradient in mine.gradients.items():
        expected = exact.gradients[name]
        slack = (2e-6 * size + 2e-6) * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=slack)


@pytest.mark.parametrize("objective", ["infonce", "mil_nce", "sigmoid"])
def test_an_own_pair_that_is_the_worst_has_its_exact_loss(objective):
    image = torch.zeros(3, 16, device=DEVICE)
    image[:, 0] = 1.0
    text = image.clone()
    text[1] = -text[1]
    mine = answer("fused", image, text, 100.0, torch.float32, {"objective": objective})
    exact = answer("reference", image, text, 100.0, torch.float64, {"objective": objective})
    torch.testing.assert_close(mine.result.loss.double(), exact.result.loss, rtol=1e-6, atol=0)
    for name in ("image", "text"):
        torch.testing.assert_close(mine.gradients[name].double(), exact.gradients[name], rtol=1e-5, atol=1e-5)


def test_a_nan_embedding_gives_a_nan_loss_and_no_crash():
    for setting in ({}, {"mining": Mining(threshold=0.2)}, {"mining": Mining(top_k=2)}, {"objective": "sigmoid"}):
        image, text = unit(9, 16, seed=1), unit(9, 16, seed=2)
        image[3] = float("nan")
        assert answer("fused", image, text, 10.0, torch.float32, setting).result.loss.isnan()


@pytest.mark.parametrize("objective", ["infonce", "mil_nce", "sigmoid"])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str)
def test_the_gradient_of_fitted_pairs_keeps_its_digits_in_half_precision(dtype, most, with_ids, objective):
    """A probability near 1 minus the 1 of a positive loses all digits if it is rounded before the subtraction."""
    image = unit(40, 64, seed=1, dtype=dtype)
    text = image.clone()
    setting = {"objective": objective} | ({"ids": torch.arange(40, device=DEVICE)} if with_ids else {})
    mine = answer("fused", image, text, 10.0, dtype, setting)
    exact = answer("reference", image, text, 10.0, torch.float64, setting)
    assert exact.result.loss > 1e-4 or objective == "sigmoid"
    for name in ("image", "text"):
        error = (mine.gradients[name].double() - exact.gradients[name]).norm() / exact.gradients[name].norm()
        assert error < most, (name, error)


def test_vectors_may_begin_at_any_address(small_chunks):
    held = unit(41, 16, seed=1).flatten()
    image, text = held[3 : 3 + 20 * 16].view(20, 16), unit(41, 33, seed=2)[1:21, 1:17]
    for rows in (20, 1):
        require_as_accurate_as_eager(image[:rows], text[:rows], 10.0, {})


@pytest.mark.parametrize("guide", ["text", "joint"])
def test_guides_of_another_type_than_the_embeddings(guide):
    image, text = unit(40, 16, seed=1, dtype=torch.bfloat16), unit(40, 16, seed=2, dtype=torch.bfloat16)
    guides = {"guide_image": unit(40, 20, seed=3), "guide_text": unit(40, 20, seed=4)}
    for setting in ({"mining": Mining(guide, 0.1), **guides}, {"objective": "soft", **guides}):
        loss = contrastive_loss(image, text, 10.0, backend="fused", **setting).loss
        exact = contrastive_loss(image, text, 10.0, backend="reference", **setting).loss
        torch.testing.assert_close(loss, exact, rtol=1e-5, atol=1e-5)
