"""The host reads no value of the device in a step: it would wait until the device has finished its queue."""

import sys
from typing import Any

import pytest
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from emocap_kernels.contrastive.fused import evaluate as _whole
from emocap_kernels.fused import launch
from emocap_kernels.region.fused import evaluate as _local
from emocap_kernels.region.fused import within as _within
from fused_cases import DEVICE, GUIDES, unit
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that make the host wait for a number, or for the size of a result.
WAITING_OPERATIONS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::is_nonzero",
    "aten::equal",
}


class _Recorder(TorchDispatchMode):
    """Records the operations that would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = operation.name().partition(".")[0]
        # Indexing with a mask waits for the number of selected elements.
        masked = name.startswith("aten::index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (arguments[1] if isinstance(arguments[1], (list, tuple)) else [])
        )
        if name in WAITING_OPERATIONS or masked:
            self.seen.append(name)
        return operation(*arguments, **(keywords or {}))


@pytest.fixture
def recorder(monkeypatch):
    """Records the operations around the kernels, which are not started."""
    for module in _modules_that_launch():
        monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    with _Recorder() as found:
        yield found


# These are imported before `launch` is replaced. A module that is imported later would keep the replacement.
IMPORTED = (_whole, _local, _within)


def _modules_that_launch() -> list[Any]:
    ours = [each for name, each in sys.modules.items() if name.startswith("emocap_kernels") and each is not launch]
    return [module for module in ours if getattr(module, "launch", None) is launch.launch]


RULES = [None, *(Mining(guide, threshold, top_k) for guide in GUIDES for threshold, top_k in ((0.2, None), (None, 3)))]


@pytest.mark.parametrize("objective", ["infonce", "mil_nce", "sigmoid"])
@pytest.mark.parametrize("mining", RULES)
def test_a_step_of_the_global_loss_waits_for_nothing(mining, objective, recorder):
    image, text = (unit(20, 16, seed=seed).requires_grad_() for seed in (1, 2))
    scale, ids = torch.tensor(10.0, device=DEVICE, requires_grad=True), torch.arange(20, device=DEVICE) // 2
    result = contrastive_loss(image, text, scale, objective=objective, mining=mining, ids=ids, backend="fused")
    result.loss.backward()
    assert recorder.seen == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"mining": Mining("text", 0.2)}, {"mining": Mining("text", top_k=2)}, {"scope": "image"}],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_the_local_loss_waits_for_nothing(settings, masked, recorder, monkeypatch):
    # On a GPU the device itself checks the owners.
    monkeypatch.setattr("emocap_kernels.checks._check_range", lambda *_: None)
    patches = unit(6 * 5, 16, seed=1).view(6, 5, 16).requires_grad_()
    sentences = unit(11, 16, seed=2).requires_grad_()
    scale, owner = torch.tensor(10.0, device=DEVICE, requires_grad=True), torch.arange(11, device=DEVICE) % 4
    mask = torch.ones(6, 5, dtype=torch.bool, device=DEVICE) if masked else None
    region_contrastive_loss(
        patches, sentences, owner, scale, patch_mask=mask, backend="fused", **settings
    ).loss.backward()
    assert recorder.seen == []


def test_the_recorder_finds_operations_that_wait(recorder):
    numbers = torch.arange(5, device=DEVICE)
    int(numbers.sum())
    numbers[numbers > 2]
    assert recorder.seen[0] == "aten::_local_scalar_dense"
    assert len(recorder.seen) > 1
