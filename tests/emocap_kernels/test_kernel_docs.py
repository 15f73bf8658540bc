"""Every Python snippet of docs/kernels.md and of the package's README runs, and code before equals code after."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip_loss
import pytest
import tiny_models
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

ROOT = Path(__file__).parents[2]


class Towers(nn.Module):
    """A model that returns what a model of open_clip does: unit vectors and the exponentiated scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(5, 8), nn.Linear(7, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)
        return image, text, self.logit_scale.exp()


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    clip, siglip = tiny_models.models()
    return {"model": Towers().double(), "clip": clip, "siglip": siglip}


@pytest.fixture
def namespace(models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names that the page uses without defining them, and a process group of one rank."""
    package = ModuleType("open_clip")
    package.ClipLoss = open_clip_loss.losses.ClipLoss  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "open_clip", package)
    for model in models.values():
        model.zero_grad()
    drawn = {name: torch.randn(6, size, dtype=torch.float64) for name, size in (("images", 5), ("texts", 7))}
    # Another test of this process may have made one, which must remain.
    makes_group = not dist.is_initialized()
    if makes_group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield {"dist": dist, "batch": tiny_models.batch(), **drawn, **models}
    if makes_group:
        dist.destroy_process_group()


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def grads_taken(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Returns the gradients of all parameters that have one, and removes them from the models."""
    taken = {
        f"{name}.{weight}": parameter.grad
        for name, model in models.items()
        for weight, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for model in models.values():
        model.zero_grad()
    return taken


def test_the_page_runs_from_top_to_bottom_and_before_equals_after(namespace, models, capsys):
    steps: list[tuple[Tensor, dict[str, Tensor]]] = []
    for snippet in snippets("docs/kernels.md"):
        exec(snippet, namespace)
        if "loss" in namespace:
            steps.append((namespace.pop("loss").detach(), grads_taken(models)))
    assert len(steps) == 6
    for before, after in zip(steps[::2], steps[1::2], strict=True):
        assert after[1]
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    printed = capsys.readouterr().out
    assert "the inputs are on cpu" in printed
    # Rows 0 and 1 are positives of each other.
    assert "tensor(1.2500)" in printed


def test_the_lines_of_the_readme_run(namespace):
    image, text = (normalize(torch.randn(6, 8), dim=1).requires_grad_() for _ in range(2))
    (lines,) = snippets("kernels/README.md")
    exec(lines, {**namespace, "image": image, "text": text, "logit_scale": 10.0})
    assert image.grad is not None
