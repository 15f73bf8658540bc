"""Every kernel compiles for sm_80 and sm_90 on a machine without a GPU, within what these have."""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import compiled
from emocap_kernels.contrastive.fused.kernels import gradient, margins, mining, pairwise, statistics
from emocap_kernels.fused import shapes
from emocap_kernels.fused.kernels import nearest

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

PLAIN = {"HAS_IDS": False, "RULE": 0, "ATTRACT": True}
IDS = {"HAS_IDS": True, "RULE": 0, "ATTRACT": True}
JOINT = {"HAS_IDS": False, "RULE": 1, "ATTRACT": True}
MARKED = {"HAS_IDS": True, "RULE": 2, "ATTRACT": False}
MEAN = {"SUM_POSITIVES": False, "STEEP": False}
STEEP = {"SUM_POSITIVES": False, "STEEP": True}
SUMMED = {"SUM_POSITIVES": True, "STEEP": True}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "statistics": (statistics.statistics_kernel, PLAIN | MEAN),
    "statistics, ids": (statistics.statistics_kernel, IDS | MEAN),
    "statistics, joint": (statistics.statistics_kernel, JOINT | MEAN),
    "statistics, marks": (statistics.statistics_kernel, MARKED | STEEP),
    "statistics, mil_nce": (statistics.statistics_kernel, MARKED | SUMMED),
    "gradient": (gradient.gradient_kernel, PLAIN | MEAN),
    "gradient, ids": (gradient.gradient_kernel, IDS | MEAN),
    "gradient, joint": (gradient.gradient_kernel, JOINT | MEAN),
    "gradient, marks": (gradient.gradient_kernel, MARKED | STEEP),
    "gradient, mil_nce": (gradient.gradient_kernel, MARKED | SUMMED),
    "sigmoid": (pairwise.sigmoid_kernel, PLAIN | {"WANTED": True}),
    "sigmoid, marks": (pairwise.sigmoid_kernel, MARKED | {"WANTED": True}),
    "soft": (pairwise.soft_kernel, {"WANTED": True}),
    "threshold": (mining.threshold_kernel, {"MEET": 1}),
    "nearest": (nearest.nearest_kernel, {"TOP_K": 8, "bK": 8, "TWO": True}),
}
# What a program may have; tiles for sm_80 serve its smaller kin as well (sm_86, sm_89).
SHARED_BYTES = {80: 99 * 2**10, 90: 227 * 2**10}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for(name, capability, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability // 10, 0))
    masked = name not in ("statistics", "gradient", "threshold")
    shape = shapes.shape_for(torch.bfloat16, torch.device("cuda"), masked=masked)
    found = compiled(kernel, capability, "bfloat16", {**shape.options(), **constants}, tmp_path)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[capability]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["statistics", "gradient, marks", "sigmoid"])
def test_a_kernel_compiles_in_every_type(name, dtype, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    shape = shapes.shape_for(dtype, torch.device("cuda"), masked=name not in ("statistics", "gradient"))
    short = str(dtype).removeprefix("torch.")
    found = compiled(kernel, 90, short, {**shape.options(), **constants}, tmp_path)
    assert "wgmma.mma_async" in found.ptx
    assert found.shared_bytes <= SHARED_BYTES[90]


def test_the_margins_compile(tmp_path):
    for capability in (80, 90):
        compiled(margins.margins_kernel, capability, "bfloat16", {"bR": 32, "bD": 128}, tmp_path)


@pytest.mark.parametrize(("name", "most"), [("statistics, marks", 384), ("gradient", 512), ("gradient, marks", 128)])
def test_hardly_any_register_of_a_hot_kernel_spills(name, most, tmp_path, monkeypatch):
    kernel, constants = KERNELS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    shape = shapes.shape_for(torch.bfloat16, torch.device("cuda"), masked=constants["RULE"] != 0)
    constants = {**constants, **MEAN}
    found = compiled(kernel, 90, "bfloat16", {**shape.options(), **constants}, tmp_path)
    assert found.stack_bytes <= most
