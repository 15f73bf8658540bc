"""Shared by the tests of the fused kernels: inputs, and the comparison of results with float64 and with eager code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import quick_interpreter  # noqa: F401 - importing it has an effect
import torch
from emocap_kernels import Mining, contrastive_loss
from emocap_kernels.numerics import require_accurate
from emocap_kernels.result import LossResult
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GUIDES = ("counterpart", "text", "image", "consensus", "joint")


def unit(rows: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns random unit vectors, [rows, width]."""
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=1).to(dtype).to(DEVICE)


def ids_of(rows: int) -> Tensor:
    """Returns random ids, of which several rows share one."""
    return torch.randint(0, rows // 2 + 1, (rows,), generator=torch.Generator().manual_seed(5)).to(DEVICE)


def settings(rows: int) -> list[dict[str, Any]]:
    """Returns every guide, rule and treatment, and every objective with a few of them."""
    ids = ids_of(rows)
    rules = [
        Mining(guide, threshold, top_k, treatment)
        for guide in GUIDES
        for threshold, top_k in ((0.15, None), (None, 3))
        for treatment in ("attract", "ignore")
    ]
    found: list[dict[str, Any]] = [{}, {"ids": ids}]
    found += [{"mining": rule, "ids": ids} if number % 2 else {"mining": rule} for number, rule in enumerate(rules)]
    found += [
        {"mining": Mining(guide, threshold=-0.2, treatment=treatment)}
        for guide in ("joint", "image")
        for treatment in ("attract", "ignore")
    ]
    found += [{"mining": Mining("text", -0.05, 4)}, {"mining": Mining("consensus", -0.1, 8), "ids": ids}]
    guided = {"guide_image": unit(rows, 24, seed=8), "guide_text": unit(rows, 24, seed=9)}
    found += [{"mining": rule, **guided} for rule in (Mining("joint", 0.1), Mining("counterpart", top_k=2))]
    for objective in ("mil_nce", "sigmoid"):
        more = {"bias": -3.0} if objective == "sigmoid" else {}
        chosen = (None, rules[0], rules[3], rules[16], rules[17], Mining("joint", -0.2))
        found += [{"objective": objective, "mining": rule, "ids": ids, **more} for rule in chosen]
        found += [{"objective": objective, **more}]
    found += [{"objective": "soft", **guided, "guide_scale": 6.0}, {"objective": "soft", **guided, "ids": ids}]
    return found


def named(setting: dict[str, Any]) -> str:
    """Returns the name of a test case."""
    rule = setting.get("mining")
    parts = [setting.get("objective", "infonce")]
    if rule is not None:
        parts += [
            rule.guide,
            f"threshold {rule.threshold}" if rule.threshold else "",
            f"top {rule.top_k}",
            rule.treatment,
        ]
    return " ".join([*parts, *(key for key in ("ids", "guide_text") if key in setting)])


@dataclass
class Answer:
    """A result, and the gradients by the names of the inputs."""

    result: LossResult
    gradients: dict[str, Tensor]


def answer(
    backend: str, image: Tensor, text: Tensor, scale: float, dtype: torch.dtype, setting: dict[str, Any]
) -> Answer:
    """Computes loss and gradients with embeddings of type `dtype`.

    Scale and bias are float64 for float64, and float32 for the other types.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {"image": image.to(dtype), "text": text.to(dtype), "scale": torch.tensor(scale, dtype=wide, device=DEVICE)}
    setting = {key: _cast(value, dtype) for key, value in setting.items()}
    if "bias" in setting:
        inputs["bias"] = torch.tensor(setting.pop("bias"), dtype=wide, device=DEVICE)
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    result = contrastive_loss(**leaves, **setting, backend=backend)
    result.loss.backward()
    return Answer(result, {key: leaf.grad for key, leaf in leaves.items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def require_as_accurate_as_eager(image: Tensor, text: Tensor, scale: float, setting: dict[str, Any]) -> Answer:
    """Checks loss, both directions and every gradient of the fused kernels by the rule of `numerics`."""
    dtype = image.dtype
    mine = answer("fused", image, text, scale, dtype, setting)
    exact = answer("reference", image, text, scale, torch.float64, setting)
    eager = half_eager(image, text, scale) if dtype != torch.float32 else None
    eager = eager or answer("reference", image, text, scale, dtype, setting)
    largest = max(abs(scale) + abs(setting.get("bias", 0.0)), 1.0)
    for name in ("loss", "image_to_text", "text_to_image"):
        values = [getattr(each.result, name).detach() for each in (mine, eager, exact)]
        require_accurate(name, *values, magnitude=max(largest, values[-1].abs().item()))
    for name, gradient in mine.gradients.items():
        # The largest term of the sums: an anchor contributes at most 2 / rows, times the scale.
        magnitude = max(exact.gradients[name].abs().max().item(), 1.0 if name == "scale" else largest / len(image))
        beside = eager.gradients.get(name, gradient)
        require_accurate(f"gradient of {name}", gradient, beside, exact.gradients[name], magnitude=magnitude)
    torch.testing.assert_close(mine.result.positives.double(), exact.result.positives)
    return mine


def half_eager(image: Tensor, text: Tensor, scale: float) -> Answer:
    """Computes plain InfoNCE as half-precision training code does, with logits in the type of the embeddings."""
    leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    factor = torch.tensor(scale, device=DEVICE, requires_grad=True)
    score = factor * (leaves[0] @ leaves[1].T)
    own = torch.arange(len(image), device=DEVICE)
    rows, columns = cross_entropy(score.float(), own), cross_entropy(score.T.float(), own)
    ((rows + columns) / 2).backward()
    zero = torch.zeros(())
    result = LossResult((rows + columns) / 2, rows, columns, zero, (zero, zero))  # pyright: ignore[reportArgumentType]
    return Answer(result, {"image": leaves[0].grad, "text": leaves[1].grad, "scale": factor.grad})
